"""Ids from the logits of next tokens: the likeliest, or drawn ones, and how likely they are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ft.errors import UserError

if TYPE_CHECKING:
    from torch import Generator, Tensor

BLOCK = 512  # ids whose maximum is taken together
Check = tuple["Tensor", str]  # whether all is well [], where the logits are, and what to say if not


def draw(logits: "Tensor", generators: Sequence["Generator"]) -> "tuple[Tensor, Check]":
    """An id for each row of ``logits`` [B, V], by their softmax: one uniform number looked up in its sum.

    Where a row forbids every token, the check says so.
    """
    import torch

    device, logits = logits.device, logits.to(generators[0].device)
    upto = logits.float().softmax(-1).cumsum(-1, dtype=torch.float64)
    total = upto[:, -1:]
    uniform = [
        torch.rand(1, dtype=torch.float64, generator=g, device=logits.device) for g in generators
    ]
    where = (torch.stack(uniform) * total).minimum(total.nextafter(torch.zeros_like(total)))
    ids = torch.searchsorted(upto, where, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)
    none = "no token is left to draw: together the filters forbid all of them"
    return ids.to(device), (torch.isfinite(total).all().to(device), none)


def best(logits: "Tensor") -> "tuple[Tensor, Check]":
    """The most likely ids [B]; the check is that the highest logits are finite."""
    import torch

    ids = argmax(logits)
    wrong = (
        "the model's logits are not finite (NaN or infinite): its weights are damaged, or its "
        "activations overflow; fp32 or bf16 rather than fp16 keeps Gemma's in range"
    )
    return ids, (torch.isfinite(logits.gather(1, ids[:, None])).all(), wrong)


def read(checks: Sequence[Check], *columns: "Tensor") -> list[list[float]]:
    """The numbers of columns [B] that lie on one device, which is waited for once.

    Raises ``UserError`` for a check that fails.
    """
    import torch

    flags = [well for well, _ in checks]
    found = torch.cat([x.double().flatten() for x in (*flags, *columns)]).tolist()
    for well, (_, wrong) in zip(found, checks, strict=False):
        if not well:
            raise UserError(wrong)
    at, lists = len(checks), []
    for column in columns:
        lists.append(found[at : at + len(column)])
        at += len(column)
    return lists


def check_finite(logits: "Tensor") -> None:
    """Raise ``UserError`` where the highest logit is NaN or infinite."""
    read([best(logits)[1]])


def logprobs(logits: "Tensor", ids: "Tensor") -> "Tensor":
    """The log-probability [B] of ids [B] by ``logits`` [B, V]."""
    logits = logits.float()
    return logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(-1)


def likeliest(
    logits: "Tensor", k: int, banned: Sequence[Sequence[int]] = ()
) -> tuple["Tensor", "Tensor"]:
    """The log-probabilities and ids [B, K] of the ``k`` likeliest next tokens, those ``banned`` in each row last.

    They are looked for in the K blocks with the highest maxima, which hold them all.
    """
    import torch

    # a few rows at a time: what lies between stays in the cache of a processor
    parts = logits.split(4) if logits.device.type == "cpu" else (logits,)
    total = torch.cat([part.float().logsumexp(-1, keepdim=True) for part in parts])
    if any(banned):
        logits = logits.clone()
        for row, ids in zip(logits, banned, strict=True):
            row[list(ids)] = -torch.inf
    rows, size = logits.shape
    if size % BLOCK or size <= k * BLOCK:
        best = logits.topk(min(k, size))
        return best.values.float() - total, best.indices
    blocks = logits.reshape(rows, -1, BLOCK)
    where = blocks.amax(-1).topk(k).indices  # [B, K]
    among = blocks.gather(1, where[:, :, None].expand(-1, -1, BLOCK)).flatten(1)
    best = among.topk(k)
    ids = where.gather(1, best.indices // BLOCK) * BLOCK + best.indices % BLOCK
    return best.values.float() - total, ids


def argmax(logits: "Tensor") -> "Tensor":
    """The first id of the highest logit, [B, V] to [B]: by blocks, a tenth of ``argmax``'s time in bf16."""
    import torch

    if logits.shape[1] % BLOCK:
        return logits.argmax(-1)
    blocks = logits.reshape(len(logits), -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)  # [B]
    within = blocks[torch.arange(len(blocks), device=logits.device), best].argmax(-1)
    return best * BLOCK + within
