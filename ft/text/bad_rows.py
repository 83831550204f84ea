"""Bad rows, by one rule for whatever is made of rows: an error that names each, or left out and counted."""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ft.errors import UserError
from ft.text import control

T = TypeVar("T")
Row = Mapping[str, Any]


class Good(Generic[T]):
    """What ``make`` makes of each good row, one after the other.

    A row is bad whose own text holds a control token (it would end a turn, or make a new one, where the
    data only has text), and one for which ``make`` raises ``UserError``. After the last, bad ones raise
    ``UserError``, unless the rows' ``on_bad_row`` is "skip" and one is good. ``place`` names a row as
    the rows do.
    """

    def __init__(self, rows: Sequence[Row], tokenizer: Any, make: Callable[[Row], T]) -> None:
        self.rows, self.make = rows, make
        self.place: Callable[[int], str] = getattr(rows, "place", lambda at: f"row {at + 1}")
        self.policy: str = getattr(rows, "on_bad_row", "error")
        self.kept = array("q")  # the numbers of good rows so far
        self.bad: dict[int, str] = {}  # those of bad ones, and why
        self._control = control.tokens(tokenizer)

    def __iter__(self) -> Iterator[T]:
        for number, row in enumerate(self.rows):
            if found := control.found_in(row, self._control):
                self.bad[number] = f"{self.place(number)}, {found}; remove it from the data"
                continue
            try:
                made = self.make(row)
            except UserError as error:
                self.bad[number] = f"{self.place(number)}: {error}"
                continue
            self.kept.append(number)
            yield made
        settle(self.bad, len(self.kept), self.policy)


def settle(bad: Mapping[int, str], good: int, policy: str) -> None:
    """Raise ``UserError`` for bad rows, if they are not to be skipped or none is good."""
    first = next(iter(bad.values()), "")
    if bad and policy == "error":
        more = f" (and {len(bad) - 1} more rows are bad)" if len(bad) > 1 else ""
        raise UserError(f"{first}, or leave such rows out with --on-bad-row skip{more}")
    if bad and not good:
        raise UserError(f"all {len(bad)} rows are bad; the first is {first}")
