"""Rows of text, checked one by one, with every bad row named at once; samples, splits and duplicates of them."""

import dataclasses
import hashlib
import json
import random
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, overload

from ft.data.doubles import doubles
from ft.data.places import Places, listed
from ft.errors import UserError, nearest, one_of
from ft.text.meaning import blank, is_one, shows, weighs

Record: TypeAlias = tuple[int, dict[str, Any] | str]
"""A row's number, counted from 1, with its columns or with the reason why it cannot be read."""

Row: TypeAlias = dict[str, Any]
"""Fields by name: strings, and under ``messages`` a conversation."""

Some = TypeVar("Some", bound=Sequence[Row])


@dataclasses.dataclass(frozen=True)
class Faulty:
    """A row of which a part is bad: why, and what is left of it where bad rows are skipped."""

    why: str
    rest: Row


@dataclasses.dataclass(frozen=True)
class Rows(Sequence[Row]):
    """Rows, such as ``{"source", "target"}`` or ``{"messages"}``, and where they came from."""

    rows: list[Row]
    origin: str  # for people: "MTNT en-fr valid, data/MTNT/valid/valid.en-fr.tsv"
    sha256: str  # of the bytes read
    skipped: int = 0  # bad rows left out, or what is bad of them
    ignored: tuple[str, ...] = ()  # columns that nothing is learnt from
    places: Places = dataclasses.field(default_factory=Places, compare=False, repr=False)
    sources: tuple[str, ...] = ()  # of a mixture: what they are called
    source: "array[int]" = dataclasses.field(default_factory=lambda: array("H"), compare=False)
    """Of a mixture: the number of each row's source."""
    on_bad_row: str = "error"  # or "skip": what becomes of a row that turns out to be bad later

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        return self.rows[index]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __add__(self, other: "Rows") -> "Rows":
        return Rows(
            self.rows + other.rows,
            f"{self.origin} + {other.origin}",
            digest(f"{self.sha256} {other.sha256}".encode()),
            self.skipped + other.skipped,
            tuple(dict.fromkeys(self.ignored + other.ignored)),
            self.places + other.places if len(self.places.number) == len(self) else Places(),
            on_bad_row=self.on_bad_row,
        )

    def place(self, index: int) -> str:
        """Where a row stands in its file: ``pairs.jsonl:7``, ``pairs.parquet: row 7``."""
        return self.places.of(index)

    def by_source(self) -> dict[str, int]:
        """How many rows each source of a mixture gives; nothing of what is not mixed."""
        return {name: self.source.count(i) for i, name in enumerate(self.sources)}

    def chosen(self, indices: Sequence[int], origin: str, what: str) -> "Rows":
        """The rows of ``indices``, in that order; ``what`` tells their hash from that of all."""
        return dataclasses.replace(
            self,
            rows=[self.rows[i] for i in indices],
            origin=origin,
            sha256=digest(f"{self.sha256} {what}".encode()),
            places=self.places.only(indices),
            source=array("H", (self.source[i] for i in indices if self.sources)),
        )

    def map_targets(self, change: Callable[[str], str]) -> "Rows":
        """The rows with changed targets; the origin names what changed them."""
        name = getattr(change, "__name__", "changed")
        rows = [row | {"target": change(row["target"])} for row in self.rows]
        sha256 = digest(f"{self.sha256} {name}".encode())
        return dataclasses.replace(self, rows=rows, origin=f"{self.origin} ({name})", sha256=sha256)

    def sample(self, n: int, seed: int) -> "Rows":
        """``n`` rows drawn by ``seed``, in their order; all of them where there are no more."""
        if n >= len(self):
            return self
        chosen = sorted(random.Random(seed).sample(range(len(self)), n))
        origin = f"{n} rows drawn by seed {seed} of {self.origin}"
        return self.chosen(chosen, origin, f"{n} of seed {seed}")

    def only(self, wanted: Callable[[Row], bool], what: str) -> "Rows":
        """The rows that are ``wanted``; the origin says ``what`` they are. ``UserError`` if there are none."""
        return self.without([i for i, row in enumerate(self) if not wanted(row)], what)

    def without(self, indices: Iterable[int], what: str) -> "Rows":
        """The rows but those of ``indices``; the origin says ``what`` is left. ``UserError`` if nothing is."""
        left_out = set(indices)
        kept = [i for i in range(len(self)) if i not in left_out]
        if not kept:
            raise UserError(f"no row of {self.origin} is left: {what}")
        return self.chosen(kept, f"{self.origin}, {what}", what)

    def split(
        self, n: int, seed: int, flags: str = "--valid-rows and --test-rows"
    ) -> tuple["Rows", "Rows"]:
        """All rows but ``n`` drawn by ``seed``, and these, without the bad ones, which count once.

        ``UserError`` if that leaves none, which names the ``flags`` that say how many.
        """
        if not 0 < n < len(self):
            raise UserError(
                f"{n} rows are to be held out of the {len(self)} of {self.origin}; that must leave some to "
                f"train on: give more rows, or lower {flags}"
            )
        held = set(random.Random(seed).sample(range(len(self)), n))
        rest = [i for i in range(len(self)) if i not in held]
        what = f"{n} drawn by seed {seed}"
        drawn = dataclasses.replace(self, skipped=0).without(rest, what)
        return self.without(held, f"without {what}"), drawn

    def head(self, n: int) -> "Rows":
        """The first ``n`` rows; all of them where there are no more."""
        if n >= len(self):
            return self
        return self.chosen(range(n), f"the first {n} rows of {self.origin}", str(n))


def held_out(rows: Rows, asked: int | None, most: int) -> int:
    """How many rows to hold out: as many as are asked for, or else a tenth, ``most`` at most."""
    return asked or min(most, max(1, len(rows) // 10))


def changed(rows: Some, change: Callable[[Row], Row]) -> Some:
    """Each row changed; ``Rows`` keep their places and what becomes of bad ones."""
    new: Any = [change(row) for row in rows]
    return dataclasses.replace(rows, rows=new) if isinstance(rows, Rows) else new  # pyright: ignore


def summary(
    splits: Mapping[str, Rows], advice: str = "", known: tuple[int, int] | None = None
) -> str:
    """Lines for people: the rows of each split and their origin, and what of the first stands twice.

    ``advice`` follows that note; ``known`` is what ``doubles`` found, where that was asked already.
    """
    lines = [f"{split:6}{len(rows):>7,} rows  {rows.origin}" for split, rows in splits.items()]
    if ignored := dict.fromkeys(name for rows in splits.values() for name in rows.ignored):
        lines.append(f"ignored columns: {', '.join(ignored)}")
    lines += mixture(splits)
    twice, shared = known or doubles(splits)
    if twice or shared:
        told = "text" in next(iter(splits.values()))[0]
        same = "are held out as well" if told else "ask what a held-out row asks"
        lines.append(f"note: {twice} training rows are there twice, {shared} {same}{advice}")
    rows = (row for split in splits.values() for row in split)
    if broken := sum("\n" in row.get("target", "") for row in rows):
        lines.append(f"note: {broken:,} translations with line breaks: none ends an answer")
    return "\n".join(lines)


def mixture(splits: Mapping[str, Rows]) -> list[str]:
    """A line for each source of a mixture: how many rows of each split are its own; else none."""
    lines = []
    for name in next(iter(splits.values())).sources:
        counts = {
            split: (rows.by_source().get(name, 0), len(rows)) for split, rows in splits.items()
        }
        told = (f"{n:,} of {split} ({n / all_rows:.1%})" for split, (n, all_rows) in counts.items())
        lines.append(f"source {name}: {', '.join(told)}")
    return lines


def checked(
    records: Iterable[Record],
    origin: str,
    sha256: str,
    where: str,
    columns: tuple[str, str] = ("source", "target"),
    on_bad_row: str = "error",
    read: Callable[[dict[str, Any]], Row | Faulty | str] | None = None,
    ignored: dict[str, None] | None = None,
    used: Collection[str] = (),
) -> Rows:
    """The good ones of ``records``; the others are an error that names them, or are counted.

    ``where`` stands before a row's number in messages; ``columns`` are those of source and target.
    ``read`` instead makes a row of a record's columns, or says what is wrong with it, or with a part;
    it may note columns that it makes nothing of in ``ignored``. With the columns that are ``used``,
    all others that are not empty are noted there, and one that would change what is learnt is a fault.
    Raises UserError for bad rows (unless ``on_bad_row="skip"``), a column that no row has, no rows.
    """
    one_of("on_bad_row", on_bad_row, ("error", "skip"))
    rows: list[Row] = []
    numbers = array("q")
    bad: list[str] = []
    seen: dict[str, None] = {}
    ignored = {} if ignored is None else ignored
    for number, record in records:
        if isinstance(record, str):
            bad.append(f"{where}{number}: {record}")
            continue
        seen.update(dict.fromkeys(record))
        unused = _unused(record, used, ignored) if used else ""
        row = unused or (read(record) if read else _pair(record, columns))
        if isinstance(row, Faulty):
            bad.append(f"{where}{number}: {row.why}")
            row = row.rest
        if isinstance(row, str):
            bad.append(f"{where}{number}: {row}")
        else:
            rows.append(row)
            numbers.append(number)
    if seen and not read:
        require(columns, seen, origin)
    if bad and on_bad_row == "error":
        raise UserError(listed(bad, origin))
    if not rows:
        why = f"all {len(bad)} are bad; the first is {bad[0]}" if bad else "it is empty"
        raise UserError(f"no rows in {origin}: {why}")
    places = Places((where,), array("i", bytes(4 * len(rows))), numbers)
    kept = {"skipped": len(bad), "ignored": tuple(ignored), "places": places}
    return Rows(rows, origin, sha256, **kept, on_bad_row=on_bad_row)


def _unused(record: dict[str, Any], used: Collection[str], ignored: dict[str, None]) -> str:
    """Why a record may not lose its other columns, which are noted; nothing where it may."""
    for name, value in record.items():
        if name in used or name in ignored or value in (None, "", [], {}):
            continue
        if shows(name) or (weighs(name) and not is_one(value)):
            return (
                f"the column {name!r} would change what is learnt, and is not used here; remove it"
            )
        if not weighs(name):
            ignored[name] = None
    return ""


def _pair(record: dict[str, Any], columns: tuple[str, str]) -> Row | str:
    if faults := [found for column in columns if (found := fault(record, column))]:
        return "; ".join(dict.fromkeys(faults))
    return {"source": record[columns[0]], "target": record[columns[1]]}


def fault(record: dict[str, Any], column: str) -> str:
    """What is wrong with a column that should hold text; an empty string for nothing."""
    if column not in record:
        return f"no column {column!r}"
    value = record[column]
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        return f"{column} is not a string but {kind}"
    if blank(value):
        return f"{column} " + ("has no character that can be seen" if value.strip() else "is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:  # JSON may say "\ud83d" without its other half
        return f"{column} has half a character (U+{ord(value[error.start]):04X}) at {error.start}"
    return ""


def require(columns: Iterable[str], there: Iterable[str], origin: str) -> None:
    """UserError for the first of ``columns`` that is not among those that are there."""
    there = list(there)
    for column in columns:
        if column not in there:
            raise UserError(
                f"{origin} has no column {column!r}; its columns are "
                f"{', '.join(map(repr, there))}.{nearest(column, there)}"
            )


def json_object(text: str) -> dict[str, Any] | str:
    """A row of JSON lines, or why it is none."""
    try:
        value = loads(text)
    except UserError as error:
        return str(error)
    except (ValueError, RecursionError) as error:
        return f"broken JSON: {error}".replace("line 1 ", "")
    return an_object(value)


def loads(text: str | bytes) -> Any:
    """``json.loads``. Raises ``UserError`` for an object that has a key twice, of which it would keep the last."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(
            f"an object has the key {twice!r} {names.count(twice)} times; keep one of them"
        )
    return found


def an_object(value: Any) -> dict[str, Any] | str:
    """A JSON value that should be a row, or why it is none."""
    return value if isinstance(value, dict) else f"not a JSON object but {type(value).__name__}"


def digest(data: bytes) -> str:
    """The SHA-256 of bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
