"""Tables of cells, csv and tsv: which character parts them, whether quotes are quoting, rows by their header."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ft.data.rows import Record
from ft.errors import UserError

Quoting: TypeAlias = Literal["auto", "quoted", "raw"]
_DELIMITERS = ",;\t|"
_NUMBER = re.compile(r"[-+]?\d*[.,]?\d*(?:[eE][-+]?\d+)?")


@dataclass(frozen=True)
class Line:
    """A record: the line that it begins at, its last line, its cells, and which of them stood in quotes."""

    first: int
    last: int
    cells: list[str]
    quoted: list[bool]
    broken: bool  # a cell opens a quote that does not close at its end


def records(
    lines: list[str], bad: dict[int, str], origin: str, suffix: str, quoting: Quoting = "auto"
) -> tuple[Iterator[Record], str]:
    """The rows of a .csv or .tsv by the names of its header, and a note of how its quotes were read.

    A quoted cell stands in double quotes, has doubled ones inside, and may hold line breaks. In csv
    quotes are that; in tsv ``auto`` looks at the file: pandas, Excel and R quote, MTNT's layout does
    not. The note is empty where no cell begins with a quote. csv may be parted by ``;``, tab or ``|``
    where its header is, or a line ``sep=;`` of Excel's in front of it says so. Raises ``UserError`` for a header that names a column twice, for quotes that
    do not close, and where the quotes of one file contradict each other.
    """
    said = re.fullmatch(rf"sep=([{_DELIMITERS}])\r?", lines[0]) if lines else None
    lines = ["", *lines[1:]] if said else lines
    text = "\n".join(lines)
    delimiter = "\t" if suffix == ".tsv" else _delimiter(next(filter(str.strip, lines), ""))
    delimiter = said[1] if said else delimiter
    notes = [f"parted by {delimiter!r}"] if suffix == ".csv" and delimiter != "," else []
    if not re.search(rf'(?:^|[{re.escape(delimiter)}])"', text, re.MULTILINE):
        found = _split(lines, delimiter)
    elif suffix == ".csv" and quoting != "raw":
        found = _scan(text, delimiter)
    else:
        if quoting == "auto":
            quoting = _quoting(text, delimiter, origin)
        notes += [f"read as {quoting}"]
        found = _split(lines, delimiter) if quoting == "raw" else _scan(text, delimiter)
    return _named(found, bad, origin), ", ".join(notes)


def _delimiter(header: str) -> str:
    plain = re.sub(r'"(?:[^"]|"")*"', "", header)
    return max(_DELIMITERS, key=plain.count)  # the first of them where none is there


def _split(lines: list[str], delimiter: str) -> Iterator[Line]:
    for number, line in enumerate(lines, 1):
        cells = line.removesuffix("\r").split(delimiter)
        yield Line(number, number, cells, [False] * len(cells), False)


def _scan(text: str, delimiter: str) -> Iterator[Line]:
    """Records of quoted cells. One whose quotes do not close is read as far as its line goes."""
    d = re.escape(delimiter)
    pattern = re.compile(rf'(?:"([^"]*+(?:""[^"]*+)*+)"|([^{d}\n]*))({d}|\r?\n|\r?\Z)')
    place, number = 0, 1
    while place < len(text):
        cells, quoted, broken, first = [], [], False, number
        while True:
            found = pattern.match(text, place)
            assert found is not None
            inside, bare, end = found.groups()
            place = found.end()
            number += text.count("\n", found.start(), place)
            last = end != delimiter
            if inside is None:
                bare = bare.removesuffix("\r") if last else bare
                broken = broken or bare.startswith('"')
            cells.append(bare if inside is None else inside.replace('""', '"'))
            quoted.append(inside is not None)
            if last:
                break
        yield Line(first, number - end.endswith("\n"), cells, quoted, broken)


def _quoting(text: str, delimiter: str, origin: str) -> Quoting:
    """Whether the quotes of a tsv are quoting: what a writer of quotes would have written, or not."""
    scan = _scan(text, delimiter)
    header = next(line for line in scan if line.cells != [""])
    if any(header.quoted):
        return "quoted"
    # the first line of each kind; 0: there is none
    needed, spare, commas, bare, loose, loose_commas = 0, 0, 0, 0, 0, 0
    for line in scan:
        fits = len(line.cells) == len(header.cells)
        for cell, quoted in zip(line.cells, line.quoted, strict=True):
            if quoted and re.search(rf'["\r\n{re.escape(delimiter)}]', cell):
                # an opened quote of one line may by chance meet another: then the widths are odd
                sure = fits or ('"' in cell and line.first == line.last)
                needed = needed or line.first * sure
            elif quoted and "," in cell:  # Excel quotes these in a tsv too
                commas = commas or line.first
            elif quoted:
                spare = spare or line.first
            elif '"' in cell:
                bare = bare or line.first
            elif not _NUMBER.fullmatch(cell):
                loose = loose or line.first
                loose_commas = loose_commas or line.first * ("," in cell)
    if loose_commas:
        spare = spare or commas
    else:
        needed = needed or commas
    if not bare and (needed or spare) and not (spare and loose):
        return "quoted"
    if not needed:
        return "raw"
    other = bare or spare
    raise UserError(
        f"{origin}: line {needed} has cells quoted as CSV's, line {other} has quotes that are none; "
        "say which they are with --quoting quoted or --quoting raw"
    )


def _named(found: Iterator[Line], bad: dict[int, str], origin: str) -> Iterator[Record]:
    """Records with the header's names."""
    header: list[str] | None = None
    for line in found:
        why = next((bad[n] for n in range(line.first, line.last + 1) if n in bad), None)
        if line.broken:
            # where a quote does not close, nobody knows where rows end: nothing after it can be skipped
            raise UserError(
                f"{origin}:{line.first}: broken CSV from this row on: a quote that opens a cell does not "
                "close at its end. If quotes are text there, say --quoting raw"
            )
        if not why and not any(line.cells):
            continue  # an empty line is nothing, and so is Excel's, of empty cells
        if header is None:
            if why:
                raise UserError(f"{origin}:{line.first}: the header cannot be read: {why}")
            header = [name.strip() or f"(column {n})" for n, name in enumerate(line.cells, 1)]
            twice = [name for name, times in Counter(header).items() if times > 1]
            if twice:
                raise UserError(
                    f"{origin}:{line.first}: the header names the column {twice[0]!r} "
                    f"{header.count(twice[0])} times; give each column a name of its own"
                )
        else:
            yield line.first, why or _row(header, line.cells)


def _row(header: list[str], cells: list[str]) -> dict[str, Any] | str:
    if len(cells) != len(header):
        return f"wrong number of columns: {len(cells)}, but the header has {len(header)}"
    return dict(zip(header, cells, strict=True))
