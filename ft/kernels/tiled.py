"""Attention of a packed row whose scores are formed in pieces: PyTorch's operations, with a soft cap, anywhere."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft.text.batches import QUERIES, ROW

if TYPE_CHECKING:
    from torch import Tensor


def attend(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    lengths: Sequence[int] | None,
    offsets: "Tensor | None",
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> "Tensor":
    """Attention whose scores are formed for ``QUERIES`` tokens at a time, and again for the gradient.

    [1, H, T, D] and [1, K, T, D] to [1, T, H, D]; memory grows with T and not with its square
    (the recomputation of FlashAttention, arXiv:2205.14135). Scores are capped and normalised in
    float32. Of known ``lengths`` only the examples' own scores are formed; of ``offsets`` alone
    [E + 1, int32], all before a token, those of other examples masked, so that no operation depends
    on the data and a CUDA graph can hold it.
    """
    import torch

    length = query.shape[2]
    short = offsets is not None and length <= ROW and query.device.type != "cpu"
    if lengths is None or short:
        assert offsets is not None
        places = torch.arange(length, device=query.device, dtype=offsets.dtype)
        documents, lengths = torch.bucketize(places, offsets, right=True), [length]
    else:
        documents = None
    return _function().apply(
        query, key, value, documents, _tiles(lengths, window), scale, window, softcap
    )


def _tiles(lengths: Sequence[int], window: int) -> list[tuple[int, int, int]]:
    """(first query, end of queries and keys, first key) of each piece of scores."""
    found, start = [], 0
    for length in lengths:
        for at in range(0, length, QUERIES):
            end = start + min(at + QUERIES, length)
            found.append(
                (start + at, end, max(start, start + at + 1 - window) if window else start)
            )
        start += length
    return found


@functools.cache
def _function() -> Any:
    import torch

    def scores(q, k, documents, tile, scale, window, softcap):  # noqa: ANN001, ANN202
        """Capped scores [K, H/K * n, m] in float32 of q [K, H/K, T, D] and k [K, T, D]; -inf where masked."""
        first, end, begin = tile
        s = (q[:, :, first:end].flatten(1, 2) @ k[:, begin:end].transpose(1, 2)).float() * scale
        if softcap is not None:
            s = s.div_(softcap).tanh_().mul_(softcap)
        rows = torch.arange(first, end, device=q.device)[:, None]
        columns = torch.arange(begin, end, device=q.device)
        seen = rows >= columns
        if window and end - begin > window:
            seen = seen & (rows - columns < window)
        if documents is not None:
            seen = seen & (documents[first:end, None] == documents[begin:end])
        shaped = s.view(*q.shape[:2], end - first, end - begin)
        return shaped.masked_fill_(~seen, float("-inf")).view_as(s)

    class Tiled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, documents, tiles, *options):  # noqa: ANN001, ANN002, ANN205
            _, heads, length, size = query.shape
            k, v = key[0], value[0]
            q = query[0].unflatten(0, (len(k), -1))  # [K, H/K, T, D]
            out = torch.empty(length, *q.shape[:2], size, dtype=q.dtype, device=q.device)
            lse = torch.empty(*q.shape[:3], dtype=torch.float32, device=q.device)
            for tile in tiles:
                first, end, begin = tile
                s = scores(q, k, documents, tile, *options)
                total = s.logsumexp(-1, keepdim=True)
                mixed = s.sub_(total).exp_().to(v.dtype) @ v[:, begin:end]
                shape = (*q.shape[:2], end - first)
                out[first:end] = mixed.view(*shape, size).permute(2, 0, 1, 3)
                lse[:, :, first:end] = total.view(shape)
            ctx.save_for_backward(query, key, value, out, lse, documents)
            ctx.tiles, ctx.options = tiles, options
            return out.view(1, length, heads, size)

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            query, key, value, out, lse, documents = ctx.saved_tensors
            scale, _, softcap = ctx.options
            k, v = key[0], value[0]
            q = query[0].unflatten(0, (len(k), -1))
            grad = grads[0][0].unflatten(1, q.shape[:2])  # [T, K, H/K, D]
            delta = (grad.float() * out.float()).sum(-1).permute(1, 2, 0)  # [K, H/K, T]
            grad = grad.permute(1, 2, 0, 3)
            d_q = torch.empty_like(q)
            d_k, d_v = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (k, v))
            for tile in ctx.tiles:
                first, end, begin = tile
                s = scores(q, k, documents, tile, *ctx.options)
                rows = grad[:, :, first:end].flatten(1, 2)
                p = (s - lse[:, :, first:end].flatten(1)[..., None]).exp_()
                d_v[:, begin:end] += p.to(v.dtype).transpose(1, 2) @ rows
                d_s = (rows @ v[:, begin:end].transpose(1, 2)).float()
                d_s = d_s.sub_(delta[:, :, first:end].flatten(1)[..., None]).mul_(p)
                if softcap is not None:  # 0 and not nan where masked: there p is 0, and s is -inf
                    d_s *= 1 - (s.clamp_(min=-softcap) / softcap) ** 2
                d_s = d_s.mul_(scale).to(q.dtype)
                d_q[:, :, first:end] = (d_s @ k[:, begin:end]).view_as(d_q[:, :, first:end])
                d_k[:, begin:end] += d_s.transpose(1, 2) @ q[:, :, first:end].flatten(1, 2)
            none = (None,) * 5
            return d_q.view_as(query), d_k[None].to(k.dtype), d_v[None].to(v.dtype), *none

    return Tiled
