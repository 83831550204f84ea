"""Many encoded examples without an object for each token: flat arrays, on disk where they are large."""

import mmap
import tempfile
import weakref
from array import array
from collections.abc import Iterable, Sequence
from typing import IO, Literal, overload

from ft.errors import UserError

IGNORE = (
    -100
)  # label of a position that no loss is taken of: PyTorch's and Hugging Face's convention
Example = dict[str, list[int]]  # {"input_ids", "labels"}, equal lengths
LARGE = 2**26  # bytes of an array that grows in memory; a larger one grows in a temporary file


class Examples(Sequence[Example]):
    """Examples ``{"input_ids", "labels"}``, each made when it is asked for.

    A token takes five bytes: its id, and whether it is supervised, as a label is the id itself or
    ``IGNORE``. What is large lies in files without a name in the folder for temporary files
    (``TMPDIR``), which the system removes with the process, however that ends.
    """

    def __init__(self, examples: Iterable[Example] = ()) -> None:
        self._ids, self._marks = _Growing("i"), _Growing("b")
        self._ends, self.supervised = array("q", [0]), 0
        for example in examples:
            marks = bytes(label != IGNORE for label in example["labels"])
            self.add(example["input_ids"], marks)

    def add(self, ids: Sequence[int], marks: bytes | bytearray) -> None:
        """One example more: its ids [T], and for each 1 where it is supervised, else 0."""
        assert len(ids) == len(marks)
        self._ids.extend(ids)
        self._marks.extend(marks)
        self._ends.append(self._ends[-1] + len(ids))
        self.supervised += marks.count(1)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        start, end = self._ends[at], self._ends[at + 1]
        ids, marks = self._ids.part(start, end), self._marks.part(start, end)
        labels = [i if mark else IGNORE for i, mark in zip(ids, marks, strict=True)]
        return {"input_ids": ids, "labels": labels}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of each example."""
        return array("q", (b - a for a, b in zip(self._ends, self._ends[1:], strict=False)))


def lengths_of(examples: Sequence[Example]) -> Sequence[int]:
    """Tokens of each example; of ``Examples`` without making one."""
    if isinstance(examples, Examples):
        return examples.lengths
    return [len(example["input_ids"]) for example in examples]


class _Growing:
    """Numbers that are only ever added: in memory, and from ``LARGE`` bytes on in a temporary file."""

    def __init__(self, kind: Literal["i", "b"]) -> None:
        self.kind, self.tail = kind, array(kind)
        self.before = 0  # numbers that lie in the file
        self.file: IO[bytes] | None = None
        self.map: memoryview | None = None

    def extend(self, values: Iterable[int]) -> None:
        self.tail.extend(array(self.kind, values))  # of bytes, or of a list, at once
        if len(self.tail) * self.tail.itemsize >= LARGE:
            self._write()

    def _write(self) -> None:
        try:
            if self.file is None:
                self.file = tempfile.TemporaryFile()  # noqa: SIM115  # it lives as long as this
                weakref.finalize(self, self.file.close)
            self.tail.tofile(self.file)
            self.file.flush()
        except OSError as error:
            raise UserError(
                f"encoded examples do not fit into {tempfile.gettempdir()}: {error.strerror}; make room "
                "there, or name another folder with TMPDIR"
            ) from None
        self.before, self.tail, self.map = self.before + len(self.tail), array(self.kind), None

    def part(self, start: int, end: int) -> list[int]:
        """The numbers from ``start`` to before ``end``, none of which may lie on both sides of a write."""
        if start >= self.before:
            return self.tail[start - self.before : end - self.before].tolist()
        view = self.map
        if view is None:
            assert self.file
            mapped = mmap.mmap(self.file.fileno(), 0, access=mmap.ACCESS_READ)
            self.map = view = memoryview(mapped).cast(self.kind)  # pyright: ignore
        return view[start:end].tolist()
