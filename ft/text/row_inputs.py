"""What a model with our loss takes of a packed row, filled up to one of few sizes where those are graphs."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ft.text.examples import IGNORE

if TYPE_CHECKING:
    from torch import Tensor

STEPS, LEAST = 8, 64  # sizes to each doubling, and tokens of the smallest step between them
HEAD = ("supervised_at", "targets", "share")  # of a row's inputs, what only the head reads


def bucket(n: int) -> int:
    """The next size of rows from ``n`` tokens on, of ``STEPS`` to each doubling, all multiples of ``LEAST``.

    They are at most 1/``STEPS`` larger so (from ``STEPS`` · ``LEAST`` on), half of that on average.
    """
    step = _step(n)
    return -(-max(n, 1) // step) * step


def buckets(n: int) -> Iterator[int]:
    """The sizes of rows up to ``n`` tokens, the largest first."""
    size = bucket(n)
    while size > 0:
        yield size
        size -= _step(size)


def _step(n: int) -> int:
    """How far the size of a row of ``n`` tokens is from the one below it."""
    return max(LEAST, (1 << max(n - 1, 1).bit_length() - 1) // STEPS)


def of(row: Mapping[str, "Tensor"], examples: int) -> dict[str, Any]:
    """What a model with our loss takes in place of a packed row's labels, so that it waits for no GPU.

    ``supervised_at`` [S] are places whose next token is supervised, ``targets`` [S] these tokens;
    ``example_offsets`` [``examples`` + 2, int32] the ends of what is at most ``examples`` examples, the
    last repeated, and ``example_lengths`` their lengths as numbers.
    """
    import torch

    labels = row["labels"][0, 1:]
    at = (labels != IGNORE).nonzero().squeeze(1)
    starts = (row["position_ids"][0] == 0).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], row["input_ids"].shape[1]]
    offsets = [0, *ends, *[ends[-1]] * (examples + 1 - len(ends))]
    return {
        "input_ids": row["input_ids"],
        "position_ids": row["position_ids"],
        "supervised_at": at,
        "targets": labels[at],
        "example_offsets": torch.tensor(offsets, dtype=torch.int32),
        "example_lengths": tuple(e - s for s, e in zip(starts, ends, strict=True)),
    }


def padded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``of`` made, at the size of a graph.

    What is added to its tokens is one more example, of its first token alone, of which nothing is
    supervised.
    """
    import torch
    from torch.nn.functional import pad as fill

    ids = inputs["input_ids"]
    more = bucket(ids.shape[1]) - ids.shape[1]
    positions, offsets = fill(inputs["position_ids"], (0, more)), inputs["example_offsets"].clone()
    if more:
        positions[0, -more:] = torch.arange(more)
        last = len(inputs["example_lengths"])
        offsets[last + 1 :] = positions.shape[1]
    return dict(inputs) | {
        "input_ids": fill(ids, (0, more), value=int(ids[0, 0])),
        "position_ids": positions,
        "example_offsets": offsets,
        "example_lengths": (*inputs["example_lengths"], *[more] * bool(more)),
    }
