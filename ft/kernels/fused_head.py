"""The head's losses and gradients on a GPU: two products a tile of rows, and two passes over its logits between them."""

from typing import TYPE_CHECKING, Any

from ft.text import batches

if TYPE_CHECKING:
    from torch import Tensor

SPAN, BLOCK = 2**15, 2**12  # words of a program, and those that it has in registers


def losses(
    hidden: "Tensor",
    weight: "Tensor",
    targets: "Tensor",
    softcap: float | None,
    d_hidden: "Tensor | None" = None,
    d_weight: "Tensor | None" = None,
) -> "Tensor":
    """Loss of each row; the gradients of their sum are written into ``d_hidden`` and added to ``d_weight``.

    hidden and d_hidden [N, D], weight and d_weight [V, D], targets [N] with any negative one for "none".
    Logits are formed in the dtype of ``weight`` and overwritten with their gradient; all between is
    fp32. No result's shape depends on the data, so a CUDA graph can hold it.
    """
    import torch

    hidden, weight = _as_multiplied(hidden, weight)
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    for part, logits in _tiles(hidden, weight):
        wanted = targets[part].contiguous()
        tops, totals, chosen, _ = _statistics(logits, wanted, softcap)
        if d_hidden is None and d_weight is None:
            found[part] = _losses(tops, totals, chosen, wanted)
            continue
        _gradient(logits, wanted, tops, totals, chosen, found[part], softcap)
        if d_hidden is not None and d_hidden.dtype == logits.dtype:
            torch.mm(logits, weight, out=d_hidden[part])
        elif d_hidden is not None:
            d_hidden[part] = logits @ weight
        if d_weight is not None and d_weight.dtype == logits.dtype:
            d_weight.addmm_(logits.T, hidden[part])
        elif d_weight is not None:
            d_weight += logits.T @ hidden[part]
    return found


def scores(
    hidden: "Tensor",
    weight: "Tensor",
    targets: "Tensor",
    softcap: float | None,
) -> "tuple[Tensor, Tensor]":
    """Loss of each row, and its share of the highest logit: 1/n where n words, the target one, have it."""
    import torch

    hidden, weight = _as_multiplied(hidden, weight)
    found, shares = torch.empty(2, len(targets), dtype=torch.float32, device=hidden.device)
    for part, logits in _tiles(hidden, weight):
        wanted = targets[part].contiguous()
        tops, totals, chosen, ties = _statistics(logits, wanted, softcap, count=True)
        found[part] = _losses(tops, totals, chosen, wanted)
        highest = tops.amax(1, keepdim=True)
        tied = (ties * (tops == highest)).sum(1)
        shares[part] = ((chosen == highest[:, 0]) & (wanted >= 0)) / tied
    return found, shares


def _as_multiplied(hidden: "Tensor", weight: "Tensor") -> "tuple[Tensor, Tensor]":
    """In the dtype that autocast, where it is on, would multiply them in: it leaves results given by ``out=``."""
    import torch

    kind = hidden.device.type
    if not torch.is_autocast_enabled(kind):
        return hidden, weight
    dtype = torch.get_autocast_dtype(kind)
    return hidden.to(dtype), weight.to(dtype)


def _losses(tops: "Tensor", totals: "Tensor", chosen: "Tensor", targets: "Tensor") -> "Tensor":
    """Of each row [N], zero where nothing is supervised, from its parts' statistics."""
    import torch

    return (torch.logsumexp(tops + totals.log(), 1) - chosen).masked_fill_(targets < 0, 0)


def _tiles(hidden: "Tensor", weight: "Tensor") -> Any:
    """Each tile's rows and their logits, in memory that the next tile's will take."""
    import torch

    parts = batches.gpu_tiles(len(hidden), len(weight), hidden.element_size())
    held = hidden.new_empty(max((p.stop - p.start for p in parts), default=0), len(weight))
    for part in parts:
        logits = held[: part.stop - part.start]
        torch.mm(hidden[part], weight.T, out=logits)
        yield part, logits


def _kernels() -> Any:
    from ft.kernels import triton_ops

    return triton_ops


def _options(vocabulary: int, softcap: float | None) -> dict[str, Any]:
    block = min(BLOCK, 1 << (vocabulary - 1).bit_length())
    span = min(SPAN, -(-vocabulary // block) * block)
    warps = min(8, max(1, block // 512))
    return {"CAP": softcap is not None, "SPAN": span, "BLOCK": block, "num_warps": warps}


def _statistics(
    logits: "Tensor", targets: "Tensor", softcap: float | None, *, count: bool = False
) -> "tuple[Tensor, Tensor, Tensor, Tensor]":
    """Of each part of each row [N, P] the highest logit, the sum of exponentials relative to it, and how
    many logits are the highest; of each row [N] the target's logit. Returned: tops, totals, chosen, ties.
    """
    import torch

    kernels, (rows, vocabulary) = _kernels(), logits.shape
    options = _options(vocabulary, softcap)
    parts = -(-vocabulary // options["SPAN"])
    new = {"dtype": torch.float32, "device": logits.device}
    tops, totals = torch.empty(2, rows, parts, **new)
    ties = torch.empty(rows, parts, **new) if count else tops
    chosen = torch.empty(rows, **new)
    kernels.head_statistics[(rows, parts)](
        logits, targets, tops, totals, chosen, ties, vocabulary, softcap or 1.0, COUNT=count, **options
    )  # fmt: skip
    return tops, totals, chosen, ties


def _gradient(
    logits: "Tensor",
    targets: "Tensor",
    tops: "Tensor",
    totals: "Tensor",
    chosen: "Tensor",
    found: "Tensor",
    softcap: float | None,
) -> None:
    """Write the losses into ``found``, and over the logits their gradient."""
    kernels, (rows, vocabulary) = _kernels(), logits.shape
    parts = tops.shape[1]
    kernels.head_gradient[(rows, parts)](
        logits, targets, tops, totals, chosen, found, vocabulary, softcap or 1.0,
        PARTS=1 << (parts - 1).bit_length(), **_options(vocabulary, softcap),
    )  # fmt: skip
