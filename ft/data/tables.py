"""Pairs from the user's own tables (jsonl, json, csv, tsv, parquet), aligned files or the Hub."""

import csv
import functools
import json
import operator
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ft.data.rows import (
    Record,
    Rows,
    an_object,
    checked,
    digest,
    json_object,
    lines_of,
    read,
    require,
)
from ft.errors import UserError

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = {"en": (".en", ".eng"), "fr": (".fr", ".fra"), "ja": (".ja", ".jpn")}


def open_pairs(
    spec: str,
    *,
    pair: str = "en-fr",
    source_column: str = "source",
    target_column: str = "target",
    split: str = "train",
    on_bad_row: str = "error",
) -> Rows:
    """The rows of all that ``spec`` names: one of these, or several with commas between.

    - a table or a dataset on the Hub, as ``pairs`` takes it: ``my.jsonl``, ``owner/name``;
    - two line-aligned files with a colon between: ``news.eng:news.fra``;
    - a folder of such files, two of each name: for en-fr ``*.en``/``*.eng`` and ``*.fr``/``*.fra``.
    """
    columns = {"source_column": source_column, "target_column": target_column}

    def one(part: str) -> Rows:
        path = Path(part).expanduser()
        if path.is_dir():
            return _folder(path, pair, on_bad_row)
        if ":" in part and not path.exists():
            source, _, target = part.partition(":")
            return parallel(source, target, on_bad_row=on_bad_row)
        return pairs(part, **columns, split=split, on_bad_row=on_bad_row)

    parts = [part.strip() for part in spec.split(",")]
    if not all(parts):
        raise UserError(f"{spec!r} names nothing beside a comma; write PATH or PATH,PATH")
    return functools.reduce(operator.add, map(one, parts))


def pairs(
    path: str | Path,
    *,
    source_column: str = "source",
    target_column: str = "target",
    split: str = "train",
    on_bad_row: str = "error",
) -> Rows:
    """Rows of a .jsonl, .json (a list), .csv, .tsv or .parquet file, or of a dataset on the Hub.

    Where ``path`` is no file and has no such suffix, the Hub is asked for ``split`` of
    ``owner/name`` or ``owner/name/configuration``. csv and tsv begin with a header; tsv has no
    quoting: a quote is text. In parquet and on the Hub, ``translation.en`` is a nested column.
    Messages give a row's line as an editor shows it; in json, parquet and Hub data they count rows.
    Raises UserError for a missing file, an unknown column, bad rows unless ``on_bad_row="skip"``.
    """
    columns = (source_column, target_column)
    table = read_table(path, columns, split)
    return checked(*table, columns=columns, on_bad_row=on_bad_row)


def read_table(
    path: str | Path, columns: tuple[str, ...] | None = None, split: str = "train"
) -> tuple[Iterable[Record], str, str, str]:
    """Records of a file or a dataset as ``pairs`` takes it, its origin, its hash, and what stands before
    a record's number in messages. Only ``columns`` are read where the format allows it; none: all.
    """
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if not file.exists() and suffix not in FORMATS:
        return _hub(str(path), split, columns)
    data, origin = read(file), str(file)
    match suffix:
        case ".jsonl":
            records = _jsonl(*lines_of(data))
        case ".json":
            records = _json(data, origin)
        case ".csv":
            records = _csv(*lines_of(data), origin)
        case ".tsv":
            records = _tsv(*lines_of(data))
        case ".parquet":
            records = _parquet(data, origin, columns)
        case _:
            raise UserError(f"{file} has suffix {suffix!r}; allowed are {', '.join(FORMATS)}")
    where = f"{file}: row " if suffix in (".json", ".parquet") else f"{file}:"
    return records, origin, digest(data), where


def parallel(
    source_file: str | Path, target_file: str | Path, *, on_bad_row: str = "error"
) -> Rows:
    """Rows of two files of which line n of the second translates line n of the first."""
    data = [read(Path(file).expanduser()) for file in (source_file, target_file)]
    (source, bad_source), (target, bad_target) = map(lines_of, data)
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


def _folder(folder: Path, pair: str, on_bad_row: str) -> Rows:
    """Line-aligned files of a folder, those of one stem together, in the order of their names."""
    files = sorted(folder.iterdir())
    ends = [SUFFIXES.get(code, (f".{code}",)) for code in pair.split("-")]
    source, target = ({f.stem: f for f in files if f.suffix in suffixes} for suffixes in ends)
    if alone := sorted(source.keys() ^ target.keys()):
        raise UserError(f"{folder}: no {pair} partner for {', '.join(alone)}")
    if not source:
        wanted = " and one in ".join(map(" or ".join, ends))
        raise UserError(f"{folder} has no files for {pair}: of each name, one in {wanted}")
    found = (parallel(source[stem], target[stem], on_bad_row=on_bad_row) for stem in source)
    return functools.reduce(operator.add, found)


def _jsonl(lines: list[str], bad: dict[int, str]) -> Iterator[Record]:
    for number, line in enumerate(lines, 1):
        if number in bad:
            yield number, bad[number]
        elif line.strip():
            yield number, json_object(line)


def _json(data: bytes, origin: str) -> Iterable[Record]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{origin} holds broken JSON: {error}") from None
    if not isinstance(value, list):
        raise UserError(f"{origin} holds one {type(value).__name__}; wanted is a list of objects")
    return enumerate(map(an_object, value), 1)


def _csv(lines: list[str], bad: dict[int, str], origin: str) -> Iterator[Record]:
    reader = csv.reader((line + "\n" for line in lines), strict=True)
    header, number = None, 1
    try:
        for cells in reader:
            why = next((bad[n] for n in range(number, reader.line_num + 1) if n in bad), None)
            if header is None:
                header = cells
            elif cells:
                yield number, why or _named(header, cells)
            number = reader.line_num + 1
    except csv.Error as error:
        # Where the quoting is broken, nobody knows where rows end: nothing after it can be skipped.
        raise UserError(f"{origin}:{number}: broken CSV from this row on: {error}") from None


def _tsv(lines: list[str], bad: dict[int, str]) -> Iterator[Record]:
    rows = (line.removesuffix("\r").split("\t") for line in lines)
    header = next(rows, [])
    for number, cells in enumerate(rows, 2):
        yield number, bad.get(number) or _named(header, cells)


def _named(header: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        return f"wrong number of columns: {len(cells)}, but the header has {len(header)}"
    return dict(zip(header, cells, strict=True))


def _parquet(data: bytes, origin: str, columns: tuple[str, ...] | None) -> Iterable[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{origin} is not a readable parquet file: {_line(error)}") from None
    if columns:
        table = table.flatten()
        require(columns, table.column_names, origin)
        table = table.select(list(dict.fromkeys(columns)))
    return enumerate(table.to_pylist(), 1)


def _hub(
    name: str, split: str, columns: tuple[str, ...] | None
) -> tuple[Iterable[Record], str, str, str]:
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
        dataset = dataset.flatten() if columns else dataset
    except Exception as error:  # datasets, huggingface_hub, httpx and pyarrow have each their own
        raise UserError(
            f"{name} is no file here, and as a dataset on the Hub (split {split!r}) it cannot be "
            f"loaded: {_line(error)}. Private or gated data needs `hf auth login`."
        ) from None
    if columns:
        require(columns, dataset.column_names, name)
        dataset = dataset.select_columns(list(dict.fromkeys(columns)))
    chosen = dataset.to_list()
    sha256 = digest(json.dumps(chosen, default=str).encode())
    return enumerate(chosen, 1), f"{name} ({split}) on the Hub", sha256, f"{name}: row "


def _line(error: Exception) -> str:
    """The first line of an error's message."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
