"""Dropout on a CPU: cheap random bits, and causal attention with dropout in blocks that stay in the cache.

PyTorch draws a number of some 6 ns for each entry, on one core where the processor is not Intel's, and
its fused attention has no dropout on a CPU: without these two, dropout takes a sixth of the mini-GPT's
training step. On other devices PyTorch's own are as good.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 64  # queries that meet their keys at once: 8 heads of 256 keys are half a MiB


def dropped(shape: Sequence[int], p: float) -> Tensor:
    """True with probability ``p`` (to 1/65,536) for each entry, from PyTorch's default generator."""
    count = math.prod(shape)
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    return (bits.view(torch.int16)[:count] < round(p * 2**16) - 2**15).view(shape)


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """``torch.nn.functional.dropout``."""
    if x.device.type != "cpu" or not (training and p):
        return F.dropout(x, p, training)
    return x.masked_fill(dropped(x.shape, p), 0.0) / (1 - p)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, p: float) -> Tensor:
    """Scaled dot-product attention of a CPU, causal, its weights dropped with probability ``p``.

    [B, H, T, D] each, to [B, T, H, D]. The weights of a block are computed, dropped and used
    while they are in the processor's cache; keys after the block's last query are left out.
    """
    return _CausalAttention.apply(q, k, v, p)


class _CausalAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, p):  # noqa: ANN001, ANN205
        batch, heads, length, size = q.shape
        found = q.new_empty(batch, length, heads, size)
        kept = []  # of each block: weights [H, t, S], and which of them are dropped
        later = torch.full((BLOCK, BLOCK), float("-inf"), dtype=q.dtype).triu(1)
        for row in range(batch):
            for start in range(0, length, BLOCK):
                here, end = slice(start, start + BLOCK), min(start + BLOCK, length)
                scores = torch.bmm(q[row, :, here] * size**-0.5, k[row, :, :end].mT)
                scores[:, :, start:] += later[: end - start, : end - start]
                weights = scores.float().softmax(-1).to(q.dtype)
                drop = dropped(weights.shape, p)
                mixed = torch.bmm(weights.masked_fill(drop, 0.0), v[row, :, :end])
                found[row, here] = mixed.transpose(0, 1) / (1 - p)
                kept.append((weights, drop))
        ctx.save_for_backward(q, k, v, found)
        ctx.kept, ctx.p = kept, p
        return found

    @staticmethod
    def backward(ctx, *grads):  # noqa: ANN001, ANN205
        q, k, v, found = ctx.saved_tensors
        length, scale = q.shape[2], q.shape[3] ** -0.5
        dq, dk, dv = (torch.zeros_like(found).transpose(1, 2) for _ in range(3))
        (upward,) = grads
        mean = (
            (upward * found).sum(-1).transpose(1, 2)[..., None]
        )  # of weight * gradient: [B, H, T, 1]
        upward = upward.transpose(1, 2) / (1 - ctx.p)  # [B, H, T, D]
        blocks = iter(ctx.kept)
        for row in range(len(q)):
            for start in range(0, length, BLOCK):
                here, end = slice(start, start + BLOCK), min(start + BLOCK, length)
                weights, drop = next(blocks)
                up = upward[row, :, here]
                dv[row, :, :end] += torch.bmm(weights.masked_fill(drop, 0.0).mT, up)
                d = torch.bmm(up, v[row, :, :end].mT).masked_fill_(drop, 0.0)
                d.sub_(mean[row, :, here]).mul_(weights).mul_(scale)  # softmax's backward
                dq[row, :, here] = torch.bmm(d, k[row, :, :end])
                dk[row, :, :end] += torch.bmm(d.mT, q[row, :, here])
        return dq, dk, dv, None
