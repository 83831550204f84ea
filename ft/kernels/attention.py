"""Attention inside the examples of a packed row, and of one new token without a kernel."""

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft.kernels import flash, fused
from ft.text.batches import QUERIES, ROW

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sdpa_by_example"
LANES = 32  # numbers in bf16 of a processor's vector
CAPPED = "eager_by_example"  # for scores with a soft cap, which sdpa does not have


def install(model: Any) -> None:
    """Let a model whose attention is sdpa, or eager, run packed rows example by example.

    A row of examples under a block mask costs the square of the row; the examples alone cost the
    sum of their squares, a tenth of it at MTNT's lengths, and cannot see each other by
    construction. A single new token of each row (decoding) is two small matrix products, which
    PyTorch's fused kernel makes slow on a CPU: in bf16 it took half of a decoding step. Everything
    else goes through transformers' sdpa or eager attention as before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    config = model.config.get_text_config()
    name = CAPPED if config._attn_implementation in ("eager", CAPPED) else NAME
    AttentionInterface.register(name, _forward)
    AttentionMaskInterface.register(name, eager_mask if name == CAPPED else sdpa_mask)
    config._attn_implementation = name


def helps(device: str, attention: str, kind: str) -> bool:
    """Whether ``install`` is worth it; Gemma 2 keeps its eager attention on a CPU, where rows are short."""
    return attention == "sdpa" or (attention == "eager" and kind == "gemma2" and device != "cpu")


def describe(model: Any, device: Any, compute: str, head: int) -> str:
    """How a packed row is attended, for people."""
    import torch

    place = device, getattr(torch, compute), head
    capped = model.config.get_text_config()._attn_implementation == CAPPED
    if not capped and works(*place):
        return "packed rows by PyTorch's flash kernel of examples"
    if flash_works(*place, capped):
        return "packed rows by a flash kernel of examples"
    if capped:
        return "scores of packed rows in pieces, formed again for the gradient"
    return "the examples of a packed row one by one"


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model."""
    return model.config.get_text_config()._attn_implementation in (NAME, CAPPED)


def examples_of(position_ids: "Tensor") -> list[int] | None:
    """Lengths of the examples of a packed row [1, T]; none for any other batch. Waits for a GPU."""
    if position_ids.shape[0] != 1:
        return None
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], position_ids.shape[1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def no_mask(model: Any, position_ids: "Tensor") -> dict[str, Any]:
    """What keeps transformers from making a mask [T, T] that a packed row does not need."""
    return {"attention_mask": position_ids.new_zeros(1, 1, 1, 1)} if installed(model) else {}


def _forward(
    module: Any,
    query: "Tensor",  # [1, H, T, D]
    key: "Tensor",  # [1, K, T, D]
    value: "Tensor",
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    example_lengths: Sequence[int] | None = None,
    example_offsets: "Tensor | None" = None,
    **kwargs: Any,
) -> tuple["Tensor", Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    options = {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
    if example_lengths is None and example_offsets is None:
        if module.config._attn_implementation == CAPPED:
            eager = sys.modules[type(module).__module__].eager_attention_forward
            return eager(
                module, query, key, value, attention_mask, softcap=softcap, **options, **kwargs
            )
        if query.shape[2] == 1 and not dropout and query.device.type == "cpu":
            return _one_token(query, key, value, attention_mask, scaling), None
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, **options, **kwargs
        )
    window, size = sliding_window or 0, query.shape[-1]
    if query.device.type == "cpu" and example_lengths is not None and softcap is None:
        # autocast brings them to one precision in sdpa itself, and sums gradients of shared keys in fp32
        return _one_by_one(query, key, value, example_lengths, dropout, scaling, window), None
    query, key = (x.to(value.dtype) for x in (query, key))  # rotated in fp32 where autocast is on
    plain = softcap is None and not dropout
    if example_offsets is not None and plain and works(query.device, query.dtype, size):
        longest = query.shape[2] if example_lengths is None else max(example_lengths)
        return varlen(query, key, value, example_offsets, longest, scaling, window), None
    scale = size**-0.5 if scaling is None else scaling
    place, capped = (query.device, query.dtype, size), softcap is not None
    wanted = (capped or example_offsets is not None) and not dropout
    if wanted and fused.usable(query, key, value) and flash_works(*place, capped):
        if example_offsets is None:
            example_offsets = flash.offsets_of(tuple(example_lengths or ()), query.device)
        return flash.attend(query, key, value, example_offsets, scale, window, softcap), None
    if example_lengths is not None and softcap is None:
        return _one_by_one(query, key, value, example_lengths, dropout, scaling, window), None
    return tiled(query, key, value, example_lengths, example_offsets, scale, window, softcap), None


def _one_by_one(query, key, value, lengths, dropout, scaling, window):  # noqa: ANN001, ANN202
    """sdpa of each example alone: [1, H, T, D] to [1, T, H, D]."""
    import torch

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = [x.split(list(lengths), dim=2) for x in (query, key, value)]
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        length = q.shape[2]
        band = None
        if 0 < window < length:
            ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
            band = ones.tril().triu(1 - window)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=band, dropout_p=dropout, is_causal=band is None, scale=scaling
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def varlen(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    offsets: "Tensor",
    longest: int,
    scaling: float | None,
    window: int = 0,
) -> "Tensor":
    """PyTorch's flash attention of examples that begin at ``offsets`` [E + 1, int32] of a row.

    [1, H, T, D] and [1, K, T, D] in half precision to [1, T, H, D]; an offset may repeat.
    """
    from torch.nn.attention.varlen import varlen_attn

    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    back = window - 1 if window else -1
    span: Any = {"window_size": (back, 0), "scale": scaling}
    out: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest, **span)
    return out[None]


@functools.cache
def works(device: Any, dtype: Any, size: int) -> bool:
    """Whether ``varlen`` answers here as ``tiled`` does, forward and backward; tried once."""
    run = lambda q, k, v, offsets, *rest: varlen(q, k, v, offsets, q.shape[2], *rest[:2])  # noqa: E731
    return flash.agrees(run, _masked, device, dtype, size)


@functools.cache
def flash_works(device: Any, dtype: Any, size: int, capped: bool) -> bool:
    """Whether ``flash.attend`` answers here as ``tiled`` does, forward and backward; tried once."""
    if size not in flash.SIZES:
        return False
    return flash.agrees(flash.attend, _masked, device, dtype, size, 5.0 if capped else None)


def _masked(query, key, value, offsets, *options):  # noqa: ANN001, ANN002, ANN202
    """``tiled`` of offsets alone."""
    return tiled(query, key, value, None, offsets, *options)


def tiled(
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


def _one_token(
    query: "Tensor", key: "Tensor", value: "Tensor", mask: Any, scaling: float | None
) -> "Tensor":
    """One query for each row: [B, H, 1, D] with [B, K, S, D] to [B, 1, H, D]; softmax in fp32.

    In bf16 S is filled up in front to a multiple of ``LANES``: a row's sums have one order in every batch.
    """
    import torch

    batch, heads, _, size = query.shape
    groups = query.reshape(batch, key.shape[1], -1, size)  # heads that share a key: [B, K, H/K, D]
    scores = (groups @ key.transpose(2, 3)).float() * (size**-0.5 if scaling is None else scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, :, -key.shape[2] :], float("-inf"))
    elif mask is not None:
        scores = scores + mask[:, :, :, -key.shape[2] :]
    if value.dtype == torch.bfloat16 and (short := -key.shape[2] % LANES):
        scores = torch.nn.functional.pad(scores, (short, 0), value=float("-inf"))
        value = torch.nn.functional.pad(value, (0, 0, short, 0))
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).reshape(batch, heads, 1, size).transpose(1, 2)
