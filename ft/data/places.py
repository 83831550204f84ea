"""Where rows stand in the files that they were read from, in a few bytes for each; bad ones by name."""

import dataclasses
from array import array
from collections.abc import Iterable, Sequence

SHOWN = 20  # bad rows that one message names


@dataclasses.dataclass(frozen=True)
class Places:
    """Where each row stands for a user to find it: what is before its number, and that number."""

    files: tuple[str, ...] = ()  # "pairs.jsonl:", "pairs.parquet: row "
    file: "array[int]" = dataclasses.field(default_factory=lambda: array("i"))
    number: "array[int]" = dataclasses.field(default_factory=lambda: array("q"))

    def __add__(self, other: "Places") -> "Places":
        moved = array("i", (at + len(self.files) for at in other.file))
        return Places(self.files + other.files, self.file + moved, self.number + other.number)

    def of(self, index: int) -> str:
        """``pairs.jsonl:7``; of rows that were made and not read, their own number."""
        if index >= len(self.number):
            return f"row {index + 1}"
        return f"{self.files[self.file[index]]}{self.number[index]}"

    def only(self, indices: Iterable[int]) -> "Places":
        """Those of some rows, in their order."""
        kept = [i for i in indices if i < len(self.number)]
        return Places(
            self.files,
            array("i", (self.file[i] for i in kept)),
            array("q", (self.number[i] for i in kept)),
        )


def listed(bad: Sequence[str], origin: str) -> str:
    """What to say of bad rows: how many, the first of them, and what to do."""
    lines = "".join(f"\n  {line}" for line in bad[:SHOWN])
    more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    count = "1 bad row" if len(bad) == 1 else f"{len(bad)} bad rows"
    advice = "Mend the data, or leave such rows out with --on-bad-row skip."
    return f"{count} in {origin}:{lines}{more}\n{advice}"
