"""How examples lie in rows: their order, packing, padding, and the tiles that their logits are formed in."""

import bisect
import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ft.text.tokens import IGNORE, Example

if TYPE_CHECKING:
    from torch import Tensor

GPU_TILE = (
    2**29
)  # bytes of logits that a GPU holds at once: about 1,024 rows of 256,000 words in 16 bits
STEP = 128  # rows of a tile are a multiple of it, so that the products' own tiles are full
QUERIES = 512  # whose attention scores are held at once, where a soft cap keeps a fused kernel away
ROW = 1024  # tokens of a row whose masked scores cost less than more launches on a GPU
TILE = 2**25  # logits held at once, of any number of rows: 128 MiB in fp32, at most half more
PIECE = 2048  # words whose logits a CPU forms in one product: its cache holds them, and wide products crawl
ROWS = 256  # whose logits a CPU forms in one product: as many, or half more, make each product as fast as can be


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


def largest(order: Order, size: int, epochs: int, *, padded: bool = False) -> list[int]:
    """The examples of the batch of most tokens, among those of ``size`` that so many epochs have."""

    def tokens(batch: Sequence[int]) -> int:
        lengths = [order.lengths[i] for i in batch]
        return max(lengths, default=0) * len(batch) if padded else sum(lengths)

    found: list[int] = []
    now = order.epoch
    for order.epoch in range(epochs):
        chosen = [i for i in order if i < len(order.lengths)]
        batches = (chosen[at : at + size] for at in range(0, len(chosen), size))
        found = max(found, *batches, key=tokens)
    order.epoch = now
    return found


def blank(pad: int) -> Example:
    """An example that teaches nothing, for a process that has none left in an epoch's last step."""
    return {"input_ids": [pad] * 2, "labels": [IGNORE] * 2}


def is_blank(example: Example) -> bool:
    """Whether nothing of the example is supervised."""
    return set(example["labels"]) == {IGNORE}


class WithBlank(Sequence[Example]):
    """Examples, made as they are asked for, and a blank one behind the last."""

    def __init__(self, examples: Sequence[Example], blank: Example) -> None:
        self.examples, self.blank = examples, blank

    def __len__(self) -> int:
        return len(self.examples) + 1

    def __getitem__(self, index: Any) -> Any:
        return self.examples[index] if index < len(self.examples) else self.blank


def row_length(device: str) -> int:
    """Tokens of a packed row: a CPU is busy with 512, a GPU (``cuda``) is not."""
    return 8192 if device == "cuda" else 512


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of ``lengths`` in rows of at most ``capacity`` tokens.

    A length over the capacity gets a row of its own. Each index occurs once.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (left - lengths[index], row))
    return rows


def packed_row(examples: Sequence[Example]) -> dict[str, "Tensor"]:
    """Examples laid end to end in one row: ``input_ids``, ``position_ids``, ``labels``, each [1, T].

    Positions restart with each example and there is no 2-D mask: from these two facts transformers
    derives attention that keeps examples apart. Labels stand at their token, as Hugging Face has
    them, and the first of each example is masked, since the token before it is another example's.
    """
    import torch

    ids = [i for e in examples for i in e["input_ids"]]
    labels = [i for e in examples for i in (IGNORE, *e["labels"][1:])]
    positions = [i for e in examples for i in range(len(e["input_ids"]))]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
    }


def padded_batch(examples: Sequence[Example], pad: int) -> dict[str, "Tensor"]:
    """Examples padded on the right to the longest: the same keys as ``packed_row``, each [B, T].

    No mask is needed: a causal model's real positions never see what stands to their right.
    """
    import torch

    width = max(len(e["input_ids"]) for e in examples)

    def fill(key: str, value: int) -> "Tensor":
        return torch.tensor([e[key] + [value] * (width - len(e[key])) for e in examples])

    labels = fill("labels", IGNORE)
    labels[:, 0] = IGNORE
    return {
        "input_ids": fill("input_ids", pad),
        "position_ids": torch.arange(width).expand(len(examples), width).contiguous(),
        "labels": labels,
    }


def layout(
    examples: Sequence[Example], *, packing: bool, capacity: int, pad: int
) -> list[dict[str, "Tensor"]]:
    """One batch as the pieces that run through the model one after the other.

    Packed: rows of at most ``capacity`` tokens without any padding. Otherwise one padded batch.
    """
    if not packing:
        return [padded_batch(examples, pad)]
    rows = pack([len(e["input_ids"]) for e in examples], capacity)
    return [packed_row([examples[i] for i in row]) for row in rows]


def tiles(n: int, words: int) -> list[slice]:
    """Slices of ``n`` rows whose logits of so many words are held at once, one empty slice for none.

    They are of one size: products of few rows are slow.
    """
    count = max(1, round(n / min(ROWS, max(1, TILE // words))))
    bounds = [n * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(bounds)]


def gpu_tiles(n: int, vocabulary: int, width: int) -> list[slice]:
    """Slices of ``n`` rows whose logits of ``width`` bytes are held at once, all but the last of one size."""
    most = max(1, GPU_TILE // (vocabulary * width))
    size = -(-n // max(1, round(n / most)))
    if size > STEP:
        size = -(-size // STEP) * STEP
    return [slice(at, min(at + size, n)) for at in range(0, n, max(1, size))]
