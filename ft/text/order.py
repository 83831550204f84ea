"""The order in which examples are seen: by seed and epoch alone, and the same for any number of processes."""

from collections.abc import Iterator, Sequence

from ft.text.tokens import IGNORE, Example


class Order:
    """A permutation of the examples for each ``epoch``; without ``shuffle``, the order of the data.

    With ``group`` examples to an optimizer step, examples of like length come together (as in
    transformers' group_by_length): each stretch of 50 steps is sorted, longest first. It ends with
    blanks, index ``len(lengths)``, up to a multiple of ``multiple``, the batch of all processes:
    Accelerate would fill the last one with examples from the beginning.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        seed: int,
        group: int | None = None,
        shuffle: bool = True,
        multiple: int = 1,
    ) -> None:
        self.lengths, self.seed, self.group, self.epoch = lengths, seed, group, 0
        self.shuffle, self.blanks = shuffle, -len(lengths) % multiple

    def __len__(self) -> int:
        return len(self.lengths) + self.blanks

    def __iter__(self) -> Iterator[int]:
        return iter([*self._examples(), *[len(self.lengths)] * self.blanks])

    def _examples(self) -> Sequence[int]:
        import torch

        if not self.shuffle:
            return range(len(self.lengths))
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.group is None:
            return order
        stretch = 50 * self.group
        parts = [order[i : i + stretch] for i in range(0, len(order), stretch)]
        return [i for part in parts for i in sorted(part, key=lambda j: -self.lengths[j])]


def blank(pad: int) -> Example:
    """An example that teaches nothing, for a process that has none left in an epoch's last step."""
    return {"input_ids": [pad] * 2, "labels": [IGNORE] * 2}


def is_blank(example: Example) -> bool:
    """Whether nothing of the example is supervised."""
    return set(example["labels"]) == {IGNORE}
