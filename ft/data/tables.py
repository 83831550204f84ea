"""Pairs from the user's own tables (jsonl, json, csv, tsv, parquet, TMX), aligned files or the Hub."""

import dataclasses
import functools
import itertools
import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ft.data import columns, delimited, mixture, tmx
from ft.data.delimited import Quoting
from ft.data.encodings import suffix_of, text_lines, unpacked
from ft.data.rows import (
    Record,
    Rows,
    an_object,
    checked,
    digest,
    json_object,
    loads,
)
from ft.errors import UserError
from ft.files import read_bytes
from ft.text import languages
from ft.text.languages import Language
from ft.text.meaning import shows, weighs

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".tmx")
Choice: TypeAlias = Callable[[Sequence[str]], Sequence[str]]
"""Which columns hold source and target, of the names of all."""

_PEEKED = 1000  # rows whose columns are looked at for those that are wanted


def open_pairs(
    spec: str,
    *,
    pair: str = "en-fr",
    source_column: str | None = None,
    target_column: str | None = None,
    quoting: Quoting = "auto",
    on_bad_row: str = "error",
    seed: int = 42,
    max_rows: int | None = None,
) -> Rows:
    """The rows of all that ``spec`` names: one of these, or several, as ``mixture.mixed`` has them.

    - a table or a dataset on the Hub, as ``pairs`` takes it: ``my.jsonl``, ``owner/name``;
    - two line-aligned files with a colon between: ``news.eng:news.fra``; where their suffixes are
      the codes of the two languages, these say which is the source;
    - a folder of such files, two of each name: for en-fr ``*.en``/``*.eng`` and ``*.fr``/``*.fra``; or
      of one table, wherever in it that lies.
    """
    direction = languages.pair(pair)
    named = {"source_column": source_column, "target_column": target_column}

    def one(part: str, split: str) -> Rows:
        path = Path(part).expanduser()
        if path.is_dir():
            if aligned := _folder(path, direction, on_bad_row):
                return aligned
            part = str(table_in(path))
        if ":" in part.removeprefix("hub:") and not path.exists():
            source, target = _directed(part, direction)
            return parallel(source, target, on_bad_row=on_bad_row)
        options: dict[str, Any] = {"split": split, "quoting": quoting, "on_bad_row": on_bad_row}
        return pairs(part, pair=pair, **named, **options)

    return mixture.mixed(spec, one, seed=seed, max_rows=max_rows)


def pairs(
    path: str | Path,
    *,
    pair: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    split: str = "train",
    quoting: Quoting = "auto",
    on_bad_row: str = "error",
) -> Rows:
    """Rows of a .jsonl, .json, .csv, .tsv, .parquet or .tmx file, or of a dataset on the Hub.

    Where ``path`` is no file and has no such suffix, the Hub is asked for ``split`` of
    ``owner/name`` or ``owner/name/configuration``, as with ``hub:`` in front in any case. The columns
    are those that are named, else those that are called as the languages of ``pair`` are, at the top or
    inside of one (WMT's ``translation``, by name ``translation.en``), else ``source`` and ``target``. csv
    and tsv begin with a header; ``quoting`` as ``delimited.records`` has it. A file may be gzipped (``.csv.gz``).
    Messages give a row's line as an editor shows it; in json, parquet and Hub data they count rows.
    Raises UserError for a missing file, an unknown column, bad rows unless ``on_bad_row="skip"``.
    """
    direction = languages.pair(pair) if pair else None
    choose = functools.partial(columns.choose, direction, (source_column, target_column), str(path))
    ignored: dict[str, None] = {}

    def reads(names: Sequence[str]) -> Sequence[str]:
        """The columns to read of a format that has all their names first."""
        ignored.update(dict.fromkeys(names))
        return [*choose(names), *(name for name in names if weighs(name) or shows(name))]

    records, origin, sha256, where = read_table(
        path, reads, split, quoting=quoting, direction=direction
    )
    flat = ((number, columns.flat(r) if isinstance(r, dict) else r) for number, r in records)
    first = list(itertools.islice(flat, _PEEKED))
    names = list(dict.fromkeys(k for _, r in first if isinstance(r, dict) for k in r))
    chosen = choose(names) if names else ("source", "target")
    used = {*chosen, *(name.rpartition(".")[0] for name in chosen)}
    for name in [name for name in ignored if name in used or weighs(name) or shows(name)]:
        del ignored[name]
    made: dict[str, Any] = {"columns": chosen, "ignored": ignored, "used": used}
    rows = checked(
        itertools.chain(first, flat), origin, sha256, where, on_bad_row=on_bad_row, **made
    )
    outer = (name for name in rows.ignored if name.rpartition(".")[0] not in rows.ignored)
    return dataclasses.replace(rows, ignored=tuple(outer))


def read_table(
    path: str | Path,
    choose: Choice | None = None,
    split: str = "train",
    *,
    quoting: Quoting = "auto",
    direction: tuple[Language, Language] | None = None,
    suffix: str = "",
) -> tuple[Iterable[Record], str, str, str]:
    """Records of a file or a dataset as ``pairs`` takes it, its origin, its hash, and what stands before
    a record's number in messages. Only the columns that ``choose`` names are read where the format
    allows it; none: all. A TMX file needs a ``direction``; ``suffix`` is read in place of the file's own.
    """
    file = Path(path).expanduser()
    suffix, of_hub = suffix or suffix_of(file), str(path).startswith("hub:")
    if of_hub or (not file.exists() and suffix not in FORMATS):
        return _hub(str(path).removeprefix("hub:"), split, choose)
    data, origin = read_bytes(file), str(file)
    where, note = f"{file}:", ""
    match suffix:
        case ".jsonl" | ".json":
            records, counted, note = _json(data, origin, suffix)
            where = f"{file}: row " if counted else where
        case ".csv" | ".tsv":
            lines, bad = text_lines(data, origin)
            records, note = delimited.records(lines, bad, origin, suffix, quoting)
        case ".parquet":
            records, where = _parquet(unpacked(data, origin), origin, choose), f"{file}: row "
        case ".tmx" if direction:
            records = tmx.records(unpacked(data, origin), origin, *direction)
        case ".tmx":
            raise UserError(f"{file} holds translations; a recipe that translates takes it")
        case _:
            raise UserError(f"{file} has suffix {suffix!r}; allowed are {', '.join(FORMATS)}")
    return records, f"{origin} ({note})" if note else origin, digest(data), where


def parallel(
    source_file: str | Path, target_file: str | Path, *, on_bad_row: str = "error"
) -> Rows:
    """Rows of two files of which line n of the second translates line n of the first."""
    data = [read_bytes(Path(file).expanduser()) for file in (source_file, target_file)]
    (source, bad_source), (target, bad_target) = map(text_lines, data, (source_file, target_file))
    if len(source) != len(target):
        raise UserError(
            f"{source_file} has {len(source)} lines and {target_file} has {len(target)}; "
            "line n of one must translate line n of the other"
        )
    bad = {n: f"source: {why}" for n, why in bad_source.items()}
    bad |= {n: f"target: {why}" for n, why in bad_target.items() if n not in bad}
    records = (
        (n, bad.get(n) or {"source": s.removesuffix("\r"), "target": t.removesuffix("\r")})
        for n, (s, t) in enumerate(zip(source, target, strict=True), 1)
    )
    origin = f"{source_file}:{target_file}"
    sha256 = digest(" ".join(map(digest, data)).encode())
    return checked(records, origin, sha256, f"{origin}:", on_bad_row=on_bad_row)


def _directed(part: str, direction: tuple[Language, Language]) -> tuple[str, str]:
    """The two aligned files of ``a:b``, that of the source first. ``UserError`` for those of other languages."""
    source, target = mixture.aligned(part) or part.partition(":")[::2]
    codes = [suffix_of(Path(file)).removeprefix(".") for file in (source, target)]
    if all(map(languages.known, codes)):
        wanted = [language.is_called(code) for language, code in zip(direction, codes, strict=True)]
        swapped = [
            language.is_called(code) for language, code in zip(direction, codes[::-1], strict=True)
        ]
        if all(swapped) and not all(wanted):
            return target, source
        if not all(wanted):
            pair = f"{direction[0].code}-{direction[1].code}"
            raise UserError(f"{part} are files of {codes[0]} and {codes[1]}, not of {pair}")
    return source, target


def table_in(folder: Path) -> Path:
    """The one table of a folder, such as a copy of a dataset. ``UserError`` that names them if it is not one."""
    found = [f for f in sorted(folder.rglob("*")) if suffix_of(f) in FORMATS and f.is_file()]
    names = [str(f.relative_to(folder)) for f in found]
    if len(found) != 1:
        named = f" ({', '.join(names[:9])}{', …' * bool(names[9:])})" if names else ""
        raise UserError(
            f"{folder} holds {len(found)} tables{named}; name a file itself, or several with commas between"
        )
    return found[0]


def _folder(folder: Path, direction: tuple[Language, Language], on_bad_row: str) -> Rows | None:
    """Line-aligned files of a folder, those of one stem together, in the order of their names; or none."""
    files = [(f, suffix_of(f).removeprefix(".")) for f in sorted(folder.iterdir()) if f.is_file()]
    source, target = (
        {
            re.sub(r"\.(gz|zst)$", "", f.name, flags=re.IGNORECASE)[: -len(code) - 1]: f
            for f, code in files
            if code and who.is_called(code)
        }
        for who in direction
    )
    pair = f"{direction[0].code}-{direction[1].code}"
    if alone := sorted(source.keys() ^ target.keys()):
        raise UserError(f"{folder}: no {pair} partner for {', '.join(alone)}")
    if not source and any(suffix_of(f) in FORMATS for f in folder.rglob("*")):
        return None
    if not source:
        wanted = " and one in ".join(" or ".join(f".{c}" for c in who.codes) for who in direction)
        raise UserError(f"{folder} has no files for {pair}: of each name, one in {wanted}")
    found = (parallel(source[stem], target[stem], on_bad_row=on_bad_row) for stem in source)
    return functools.reduce(operator.add, found)


def _json(data: bytes, origin: str, suffix: str) -> tuple[Iterable[Record], bool, str]:
    """Records of JSON lines, or of a list of objects; whether rows are counted instead of lines; a note.

    What is in the file decides, where it is one of the two; else its suffix says what it should be.
    """
    lines, bad = text_lines(data, origin)
    text = "\n".join(lines)
    listed = text.lstrip().startswith("[")
    if suffix == ".jsonl" and not listed:
        return _lines(lines, bad), False, ""
    try:
        value = loads(unpacked(data, origin) if bad else text)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from None
    except (ValueError, RecursionError) as error:
        objects = sum(line.startswith("{") for line in lines)
        if suffix == ".jsonl" or (objects > 1 and not listed):
            return _lines(lines, bad), False, ""
        raise UserError(f"{origin} holds broken JSON: {error}") from None
    if suffix == ".jsonl" and not (value and all(isinstance(row, dict) for row in value)):
        return _lines(lines, bad), False, ""
    value, note = _listed(value) if isinstance(value, dict) else (value, "")
    if not isinstance(value, list):
        raise UserError(f"{origin} holds one {type(value).__name__}; wanted is a list of objects")
    return enumerate(map(an_object, value), 1), True, note


def _listed(value: dict[str, Any]) -> tuple[Any, str]:
    """The rows in ``{"version": …, "data": […]}`` and a note of what stands beside them; or the object alone."""
    lists = [k for k, v in value.items() if isinstance(v, list) and v and isinstance(v[0], dict)]
    if len(lists) != 1:
        return value, ""
    if {"role", "from"} & value[lists[0]][0].keys():  # turns: the object is a row itself
        return [value], ""
    beside = [k for k, v in value.items() if k not in lists and v not in (None, "", [], {})]
    return value[lists[0]], f"not read beside {lists[0]!r}: {', '.join(beside)}" * bool(beside)


def _lines(lines: list[str], bad: dict[int, str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if number in bad:
            yield number, bad[number]
        elif line.strip():
            yield number, json_object(line)


def _parquet(data: bytes, origin: str, choose: Choice | None) -> Iterable[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{origin} is not a readable parquet file: {_line(error)}") from None
    if choose:
        table = table.flatten()
        table = table.select(list(dict.fromkeys(choose(table.column_names))))
    return enumerate(table.to_pylist(), 1)


def _hub(name: str, split: str, choose: Choice | None) -> tuple[Iterable[Record], str, str, str]:
    """Rows of a dataset on the Hub; their hash is of the rows, as there is no one file."""
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+(/[\w.-]+)?", name):
        raise UserError(
            f"{name} does not exist; wanted is a file ({', '.join(FORMATS)}) or a dataset on the "
            "Hub, owner/name"
        )
    import datasets

    owner, repo, *configuration = name.split("/")
    try:
        dataset = datasets.load_dataset(f"{owner}/{repo}", *configuration, split=split)
        dataset = dataset.flatten() if choose else dataset
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow have each their own
        raise UserError(
            f"{name} is no file here, and as a dataset on the Hub (split {split!r}) it cannot be "
            f"loaded: {_line(error)}. Private or gated data needs `hf auth login`."
        ) from None
    if choose:
        dataset = dataset.select_columns(list(dict.fromkeys(choose(dataset.column_names))))
    chosen = dataset.to_list()
    sha256 = digest(json.dumps(chosen, default=str).encode())
    return enumerate(chosen, 1), f"{name} ({split}) on the Hub", sha256, f"{name}: row "


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
