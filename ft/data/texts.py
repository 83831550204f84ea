"""Plain text to go on pretraining with: documents of files, folders and the Hub, with some of them held out."""

import dataclasses
import functools
import glob
import operator
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ft.data import mixture, shards, tables
from ft.data.encodings import suffix_of, text_lines, text_of
from ft.data.places import Places, listed
from ft.data.rows import Record, Row, Rows, checked, digest, fault, held_out
from ft.errors import UserError, hub_errors, nearest
from ft.files import read_bytes
from ft.text.meaning import blank

_TABLES = tuple(suffix for suffix in tables.FORMATS if suffix != ".tmx")
_FORMATS = {".txt": "text", ".md": "text", ".lines": "lines"} | dict.fromkeys(_TABLES, "table")


def texts(
    source: str,
    *,
    text_field: str = "text",
    on_bad_row: str = "error",
    seed: int = 42,
    max_rows: int | None = None,
) -> Rows:
    """Documents ``{"text"}`` of all sources, mixed as ``mixture.mixed`` has it.

    A source is a table (jsonl, json, csv, tsv, parquet) with the column ``text_field``, or with several
    that follow each other (``a+b``); a .txt or .md file, which is one document, or .lines, where each line
    is one; a folder or a glob of all these, whose origin counts the files of other kinds, which are not
    read; ``hub:owner/name``, ``builtin``. ``lines:FILE``, ``text:`` and ``jsonl:`` say the format
    themselves, and a file may be packed (.gz, .zst). Raises ``UserError`` for bad rows unless ``on_bad_row="skip"``.
    """

    def one(place: str, split: str) -> Rows:
        options: dict[str, Any] = {"fields": text_field.split("+"), "on_bad_row": on_bad_row}
        if place.endswith(("#train", "#valid")):
            raise UserError(
                f"{place}: such parts are of the mini-GPT's corpora; --valid-rows holds out here"
            )
        if place.startswith("hub:"):
            return _hub(f"{place}:{split}" if split != "train" else place, **options)
        if place == "builtin":
            made = _file(shards.builtin(), "table", **options)
            return dataclasses.replace(made, origin="Python's own prose (builtin)")
        said, name = shards.format_said(place)
        files, note = _files(name)
        rows = [_file(file, _format(file, said), **options) for file in files]
        whole = functools.reduce(operator.add, rows)
        if not whole:
            raise UserError(f"no text in {place}")
        return dataclasses.replace(whole, origin=f"{place} ({note})") if note else whole

    return mixture.mixed(source, one, seed=seed, max_rows=max_rows)


def splits(
    data: str,
    *,
    test_data: str | None = None,
    text_field: str = "text",
    on_bad_row: str = "error",
    valid_rows: int | None = None,
    test_rows: int | None = None,
    seed: int,
    max_rows: int | None = None,
) -> dict[str, Rows]:
    """``texts`` as train, valid and test, drawn by ``seed``; the test documents are ``test_data``'s, if given.

    Without ``valid_rows`` and ``test_rows`` each is a tenth of the documents, 50 at most.

    Raises ``UserError`` where that leaves nothing to train on.
    """
    common: dict[str, Any] = {"text_field": text_field, "on_bad_row": on_bad_row, "seed": seed}
    rows = texts(data, **common, max_rows=max_rows)
    of_valid, of_test = (held_out(rows, asked, 50) for asked in (valid_rows, test_rows))
    count = of_valid + (0 if test_data else of_test)
    if count >= len(rows):
        raise UserError(
            f"{count} documents are to be held out of the {len(rows)} of {rows.origin}; that must leave some. "
            "A .txt file is one document: give more files, a .lines file (one document a line), or lower "
            "--valid-rows and --test-rows"
        )
    train, held = rows.split(count, seed)
    if test_data:
        return {
            "train": train,
            "valid": held,
            "test": texts(test_data, **common).head(test_rows or 50),
        }
    valid, test = held.split(of_test, seed)
    return {"train": train, "valid": valid, "test": test}


def _files(name: str) -> tuple[list[Path], str]:
    """The files of a folder or a glob that hold text, and how many hold none; or the one that is named."""
    path = Path(name).expanduser()
    if path.is_dir():
        there = [f for f in path.rglob("*") if not _hidden(f.relative_to(path))]
    elif path.exists() or not glob.has_magic(name):
        return [path], ""
    else:
        there = [Path(f) for f in glob.glob(str(path), recursive=True)]
    there = sorted(f for f in there if f.is_file())
    files = [f for f in there if suffix_of(f) in _FORMATS]
    if not files:
        raise UserError(f"{name} holds no text: no {', '.join(_FORMATS)} (or .gz, .zst of one)")
    other = Counter(f.suffix or f.name for f in there if suffix_of(f) not in _FORMATS)
    unread = ", ".join(f"{n} {suffix}" for suffix, n in sorted(other.items()))
    return files, f"{len(files)} files" + f"; not read: {unread}" * bool(unread)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _format(file: Path, said: str) -> str:
    if said:
        return said.removesuffix(":")
    if not file.exists():
        wanted = "a file, a folder, a glob, hub:owner/name or builtin"
        raise UserError(
            f"{file} does not exist; wanted is {wanted}.{nearest(str(file), ['builtin'])}"
        )
    if suffix_of(file) not in _FORMATS:
        raise UserError(
            f"{file} has suffix {file.suffix!r}; allowed are {', '.join(_FORMATS)}, each also with .gz or "
            ".zst; or say the format: text:FILE, lines:FILE or jsonl:FILE"
        )
    return _FORMATS[suffix_of(file)]


def _file(file: Path, kind: str, *, fields: list[str], on_bad_row: str) -> Rows:
    """The documents of a file, of which one without any text is none."""
    if kind in ("table", "jsonl"):
        found = tables.read_table(file, suffix=".jsonl" if kind == "jsonl" else "")
        return _rows(*found, fields=fields, on_bad_row=on_bad_row)
    data = read_bytes(file)
    if kind == "text":
        text, bad = text_of(data, file)
        numbered = [(1, text)]
    else:
        lines, bad = text_lines(data, file)
        numbered = [(n, line.removesuffix("\r")) for n, line in enumerate(lines, 1) if n not in bad]
        numbered = [(n, line.replace("\\n", "\n")) for n, line in numbered]
    if bad and on_bad_row == "error":
        raise UserError(listed([f"{file}:{n}: {why}" for n, why in bad.items()], str(file)))
    numbered = [(n, text) for n, text in numbered if not blank(text)]
    numbers = array("q", (n for n, _ in numbered))
    places = Places((f"{file}:",), array("i", bytes(4 * len(numbers))), numbers)
    kept = {"skipped": len(bad), "places": places, "on_bad_row": on_bad_row}
    return Rows([{"text": text} for _, text in numbered], str(file), digest(data), **kept)


def _hub(place: str, *, fields: list[str], on_bad_row: str) -> Rows:
    found: list[Rows] = []
    for shard in shards.find([place]):
        told = (place, digest(repr(shards.hashes([shard])).encode()), f"{shard.name}: row ")
        with hub_errors(shard.name.removeprefix("hub:")):
            rows = _rows(enumerate(shard.rows, 1), *told, fields=fields, on_bad_row=on_bad_row)
        found.append(rows)
    return dataclasses.replace(functools.reduce(operator.add, found), origin=place)


def _rows(
    records: Iterable[Record],
    origin: str,
    sha256: str,
    where: str,
    *,
    fields: list[str],
    on_bad_row: str,
) -> Rows:
    def read(record: dict[str, Any]) -> Row | str:
        if missing := next((field for field in fields if field not in record), None):
            return (
                f"no column {missing!r}, its columns are {', '.join(map(repr, record))}; --text-field names "
                f"the text's, several as a+b.{nearest(missing, record)}".removesuffix(".")
            )
        if len(fields) == 1:
            return fault(record, fields[0]) or {"text": record[fields[0]]}
        if wrong := next((f for f in fields if not isinstance(record[f], str)), None):
            return fault(record, wrong)
        row = {"text": "".join(record[field] for field in fields)}
        return fault(row, "text") or row

    return checked(records, origin, sha256, where, on_bad_row=on_bad_row, read=read, used=fields)
