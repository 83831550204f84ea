"""Plain text to go on pretraining with: documents of files, folders and the Hub, with some of them held out."""

from pathlib import Path
from typing import Any

from ft.data import documents, mixture, shards
from ft.data.encodings import suffix_of
from ft.data.rows import Row, Rows, checked, digest, fault
from ft.data.tables import FORMATS, read_table
from ft.errors import UserError


def texts(
    source: str,
    *,
    text_field: str = "text",
    on_bad_row: str = "error",
    seed: int = 42,
    max_rows: int | None = None,
) -> Rows:
    """Documents ``{"text"}`` of all sources, mixed as ``mixture.mixed`` has it.

    A source is a table (jsonl, json, csv, tsv, parquet) with the column ``text_field``, or what ``shards.find``
    takes: .txt and .md (one document each), .lines, each also as .gz, a folder or glob of such
    files, jsonl among them, ``hub:owner/name``, ``builtin``. Raises ``UserError`` for bad rows unless ``on_bad_row="skip"``.
    """

    def one(place: str, split: str) -> Rows:
        file = Path(place).expanduser()
        if file.is_file() and suffix_of(file) in FORMATS:
            return _table(file, text_field, on_bad_row)
        return _documents(f"{place}:{split}" if split != "train" else place, text_field, on_bad_row)

    return mixture.mixed(source, one, seed=seed, max_rows=max_rows)


def splits(
    data: str,
    *,
    test_data: str | None = None,
    text_field: str = "text",
    on_bad_row: str = "error",
    valid_rows: int,
    test_rows: int,
    seed: int,
    max_rows: int | None = None,
) -> dict[str, Rows]:
    """``texts`` as train, valid and test, drawn by ``seed``; the test documents are ``test_data``'s, if given.

    Raises ``UserError`` where that leaves nothing to train on.
    """
    common: dict[str, Any] = {"text_field": text_field, "on_bad_row": on_bad_row, "seed": seed}
    rows = texts(data, **common, max_rows=max_rows)
    count = valid_rows + (0 if test_data else test_rows)
    if count >= len(rows):
        raise UserError(
            f"{count} documents are to be held out of the {len(rows)} of {rows.origin}; that must leave some. "
            "A .txt file is one document: give more files, a .lines file (one document a line), or lower "
            "--valid-rows and --test-rows"
        )
    train, held = rows.split(count, seed)
    if test_data:
        return {"train": train, "valid": held, "test": texts(test_data, **common).head(test_rows)}
    valid, test = held.split(test_rows, seed)
    return {"train": train, "valid": valid, "test": test}


def _table(file: Path, text_field: str, on_bad_row: str) -> Rows:
    records, origin, sha256, where = read_table(file)

    def read(record: dict[str, Any]) -> Row | str:
        return fault(record, text_field) or {"text": record[text_field]}

    made = {"read": read, "used": (text_field,)}
    return checked(records, origin, sha256, where, on_bad_row=on_bad_row, **made)


def _documents(place: str, text_field: str, on_bad_row: str) -> Rows:
    found = shards.find([place])
    bad = documents.BadRows(on_bad_row)
    rows: list[Row] = []
    for shard in found:
        parts: list[str] = []
        for piece in documents.read(shard, documents.Place(), bad, text_field):
            parts.append(piece.text)
            if piece.ends:
                text, parts = "".join(parts), []
                if text.strip():
                    rows.append({"text": text})
    if not rows:
        why = f"; the last of {bad.skipped} bad rows is {bad.last}" if bad.skipped else ""
        raise UserError(f"no text in {place}{why}")
    sha256 = digest(repr((shards.hashes(found), text_field)).encode())
    origin = "Python's own prose (builtin)" if place == "builtin" else place
    return Rows(rows, origin, sha256, bad.skipped, on_bad_row=on_bad_row)
