"""Ids from logits: the most likely ones, and draws with a generator for each row."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ft.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor

BLOCK = 512  # ids whose maximum is taken together


def draw(logits: "Tensor", generators: Sequence["Generator"]) -> "Tensor":
    """An id for each row of ``logits`` [B, V], by their softmax: one uniform number looked up in its sum.

    Raises ``UserError`` if a row forbids every token.
    """
    import torch

    device, logits = logits.device, logits.to(generators[0].device)
    upto = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    total = upto[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise UserError("no token is left to draw: together the filters forbid all of them")
    uniform = [
        torch.rand(1, dtype=torch.float64, generator=g, device=logits.device) for g in generators
    ]
    where = (torch.stack(uniform) * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(upto, where, right=True).squeeze(1).to(device)


def check_finite(logits: "Tensor") -> "Tensor":
    """The most likely ids [B]. Raises ``UserError`` where the highest logit is NaN or infinite."""
    import torch

    best = argmax(logits)
    if not bool(torch.isfinite(logits.gather(1, best[:, None])).all()):
        raise UserError(
            "the model's logits are not finite (NaN or infinite): its weights are damaged, or its "
            "activations overflow; fp32 or bf16 rather than fp16 keeps Gemma's in range"
        )
    return best


def logprobs(logits: "Tensor", ids: "Tensor") -> list[float]:
    """The log-probability of ids [B] by ``logits`` [B, V]."""
    logits = logits.float()
    return (logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)).tolist()


def argmax(logits: "Tensor") -> "Tensor":
    """The first id of the highest logit, [B, V] to [B]: by blocks, a tenth of ``argmax``'s time in bf16."""
    import torch

    if logits.shape[1] % BLOCK:
        return logits.argmax(-1)
    blocks = logits.reshape(len(logits), -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)  # [B]
    within = blocks[torch.arange(len(blocks), device=logits.device), best].argmax(-1)
    return best * BLOCK + within
