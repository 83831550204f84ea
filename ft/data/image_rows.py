"""Rows of images, a prompt and its completion, from the user's own table; every image is opened once."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ft import files
from ft.data import images
from ft.data import pictures as drawn
from ft.data.rows import Record, Row, Rows, checked, digest, fault
from ft.data.tables import read_table
from ft.errors import UserError

DRAWN = "pictures"  # the name of generated pictures as data
MARKER = "<image>"  # where an image stands in a prompt; without any, all come first


def read(source: str | Path, *, on_bad_row: str = "error") -> Rows:
    """Rows ``{"images", "prompt", "completion", "where"}`` of a jsonl, json, csv, tsv or parquet file.

    Its columns are ``image`` (a path) or ``images`` (a list of paths), ``prompt`` and ``completion``.
    Paths are relative to the file. A row without images is text. A prompt that names places with
    ``<image>`` names as many as it has images. The hash is of the table and of every image.
    Raises UserError for bad rows (an image that is missing, damaged or of a useless size included)
    unless ``on_bad_row="skip"``, and where no row has an image.
    """
    place = Path(source).expanduser()
    if not place.is_file():
        raise UserError(
            f"{source}: there is no such file; image rows are read from a table with paths"
        )
    records, origin, sha256, where = read_table(place)
    known: dict[Path, str] = {}  # what is wrong with an image, or its hash

    def one(record: dict[str, Any]) -> Row | str:
        faults = [found for column in ("prompt", "completion") if (found := fault(record, column))]
        paths = _paths(record)
        if isinstance(paths, str):
            return "; ".join([paths, *faults])
        found = [place.parent / Path(path).expanduser() for path in paths]
        for path, written in zip(found, paths, strict=True):
            if path not in known:
                known[path] = _judged(path, written)
            if not known[path].startswith("sha256:"):
                faults.append(known[path])
        marks = str(record.get("prompt", "")).count(MARKER)
        if marks and marks != len(found):
            faults.append(f"the prompt has {MARKER} {marks} times, the row {len(found)} images")
        row: Row = {"images": [str(path) for path in found], "where": record[_WHERE]}
        return "; ".join(faults) or row | {key: record[key] for key in ("prompt", "completion")}

    numbered = _numbered(records, where)
    rows = checked(numbered, origin, sha256, where, on_bad_row=on_bad_row, read=one)
    if not any(row["images"] for row in rows):
        raise UserError(
            f"no row of {origin} has an image: they stand in a column 'image' (a path) or 'images' (a list)"
        )
    seen = " ".join(dict.fromkeys(known[Path(path)] for row in rows for path in row["images"]))
    return Rows(rows.rows, origin, digest(f"{sha256} {seen}".encode()), rows.skipped)


def splits(
    source: str | Path = DRAWN,
    *,
    pictures: int,
    valid_rows: int,
    test_rows: int,
    seed: int,
    on_bad_row: str = "error",
) -> dict[str, Rows]:
    """``read``'s rows as train, valid and test, drawn by ``seed``.

    Of ``pictures``, which are drawn into the user's cache, that many are to train on. Raises UserError
    as ``read`` does, and where no row is left to train on.
    """
    if source == DRAWN:
        n = pictures + valid_rows + test_rows
        source = drawn.write(files.cache_dir() / f"pictures-v{drawn.VERSION}-{n}-{seed}", n, seed)
    train, held = read(source, on_bad_row=on_bad_row).split(valid_rows + test_rows, seed)
    valid, test = held.split(test_rows, seed)
    return {"train": train, "valid": valid, "test": test}


_WHERE = "\0where"  # a key that no table has


def _numbered(records: Iterable[Record], where: str) -> Iterable[Record]:
    """The records, each told where it stands, with a bar where that takes long."""
    from tqdm import tqdm

    for number, record in tqdm(records, desc="images", unit="row", delay=2, leave=False):
        yield number, record if isinstance(record, str) else {**record, _WHERE: f"{where}{number}"}


def _paths(record: dict[str, Any]) -> list[str] | str:
    """The paths of a row's images, or what is wrong with them."""
    if record.get("image") is not None and record.get("images") is not None:
        return "both 'image' and 'images'; give one of them"
    given = record["image"] if record.get("image") is not None else record.get("images")
    paths = [] if given is None or given == "" else [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(p, str) and p.strip() for p in paths):
        return f"images are not paths but {str(given)[:60]!r}"
    return paths


def _judged(path: Path, written: str) -> str:
    """The hash of an image that can be used, or why it cannot."""
    try:
        images.open_image(written if "://" in written else path)
    except UserError as error:
        return str(error)
    return f"sha256:{files.sha256(path)}"
