"""Attention inside the examples of a packed row, and of one new token without a kernel."""

import functools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft.kernels import flash, flash_decode, fused, tiled

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sdpa_by_example"
LANES = 32  # numbers in bf16 of a processor's vector
CAPPED = "eager_by_example"  # for scores with a soft cap, which sdpa does not have
KERNELS = ("flash", "varlen")  # of packed rows, that can be asked for by name
PLACES = "one_token_at"  # an argument of attention: its new token, and places that keep none
ONLY = "packed_by"  # of an attention layer: the one of them, or sdpa or eager, that was asked for


def install(model: Any, only: str | None = None) -> None:
    """Let a model whose attention is sdpa, or eager, run packed rows example by example.

    A row of examples under a block mask costs the square of the row; the examples alone cost the
    sum of their squares, a tenth of it at MTNT's lengths, and cannot see each other by
    construction. A single new token of each row (decoding) is two small matrix products, which
    PyTorch's fused kernel makes slow on a CPU: in bf16 it took half of a decoding step. Everything
    else goes through transformers' sdpa or eager attention as before. ``only``, one of ``KERNELS``, ``sdpa`` or
    ``eager``, is what packed rows go through on a GPU, in place of the fastest that works.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask, sdpa_mask

    config = model.config.get_text_config()
    name = CAPPED if config._attn_implementation in ("eager", CAPPED) else NAME
    AttentionInterface.register(name, _forward)
    AttentionMaskInterface.register(name, eager_mask if name == CAPPED else sdpa_mask)
    config._attn_implementation = name
    for module in model.modules():
        if only and type(module).__name__.endswith("Attention"):
            setattr(module, ONLY, only)


def lack(kernel: str, device: Any, compute: str, head: int, capped: bool) -> str:
    """Why one of ``KERNELS`` cannot be had here, for heads of a size; nothing where it can."""
    import torch

    if device.type != "cuda":
        return f"it needs an NVIDIA GPU, and this is a {device.type}"
    if compute == "float32":
        return "it computes in 16 bits, and this run in float32"
    if kernel == "varlen" and capped:
        return "it has no soft cap on scores, which Gemma 2 needs"
    if head > max(flash.SIZES):
        return f"it allows heads of {max(flash.SIZES)} at most, and this model has {head}"
    place = device, getattr(torch, compute), head
    if works(*place) if kernel == "varlen" else flash_works(*place, capped):
        return ""
    return "it cannot be compiled here, or answers otherwise than PyTorch's operations"


def helps(device: str, attention: str, kind: str) -> bool:
    """Whether ``install`` is worth it; Gemma 2 keeps its eager attention on a CPU, where rows are short."""
    return attention == "sdpa" or (attention == "eager" and kind == "gemma2" and device != "cpu")


def describe(model: Any, device: Any, compute: str, head: int) -> str:
    """How a packed row is attended, for people."""
    import torch

    place = device, getattr(torch, compute), head
    capped = model.config.get_text_config()._attn_implementation == CAPPED
    named = asked(model)
    if not capped and named in (None, "varlen") and works(*place):
        return "packed rows by PyTorch's flash kernel of examples"
    if named in (None, "flash") and flash_works(*place, capped):
        return "packed rows by a flash kernel of examples"
    if capped:
        return "scores of packed rows in pieces, formed again for the gradient"
    return "the examples of a packed row one by one"


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model."""
    return model.config.get_text_config()._attn_implementation in (NAME, CAPPED)


def asked(model: Any) -> str | None:
    """What ``install`` was told that packed rows must go through."""
    return next((getattr(m, ONLY) for m in model.modules() if hasattr(m, ONLY)), None)


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


def one_token_each(model: Any, seen: "Tensor", at: "Tensor") -> dict[str, Any]:
    """What lets attention to keys and values at fixed places be ``flash_decode``'s, where that works.

    ``seen`` [B, L] is not set at padding; ``at`` [1] is the place of the new token.
    """
    return {PLACES: (seen, at)} if installed(model) else {}


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
    one_token_at: "tuple[Tensor, Tensor] | None" = None,
    **kwargs: Any,
) -> tuple["Tensor", Any]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if one_token_at is not None and flash_decode.usable(query, key, value) and not dropout:
        size, capped = query.shape[-1], softcap is not None
        scale = size**-0.5 if scaling is None else scaling
        if flash_decode.works(query.device, query.dtype, size, capped):
            given = query, key, value, *one_token_at
            return flash_decode.attend(*given, scale, sliding_window or 0, softcap), None
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
    plain, only = softcap is None and not dropout, getattr(module, ONLY, None)
    if only in KERNELS and example_offsets is None:
        example_offsets = flash.offsets_of(tuple(example_lengths or ()), query.device)
    by_varlen = plain and only in (None, "varlen")
    if by_varlen and example_offsets is not None and works(query.device, query.dtype, size):
        longest = query.shape[2] if example_lengths is None else max(example_lengths)
        return varlen(query, key, value, example_offsets, longest, scaling, window), None
    scale = size**-0.5 if scaling is None else scaling
    place, capped = (query.device, query.dtype, size), softcap is not None
    wanted = (capped or example_offsets is not None) and not dropout and only in (None, "flash")
    if wanted and fused.usable(query, key, value) and flash_works(*place, capped):
        if example_offsets is None:
            example_offsets = flash.offsets_of(tuple(example_lengths or ()), query.device)
        return flash.attend(query, key, value, example_offsets, scale, window, softcap), None
    if example_lengths is not None and softcap is None:
        return _one_by_one(query, key, value, example_lengths, dropout, scaling, window), None
    given = query, key, value, example_lengths, example_offsets
    return tiled.attend(*given, scale, window, softcap), None


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
    """Whether ``varlen`` answers here as ``tiled.attend`` does, forward and backward; tried once."""
    run = lambda q, k, v, offsets, *rest: varlen(q, k, v, offsets, q.shape[2], *rest[:2])  # noqa: E731
    return flash.agrees(run, _masked, device, dtype, size)


@functools.cache
def flash_works(device: Any, dtype: Any, size: int, capped: bool) -> bool:
    """Whether ``flash.attend`` answers here as ``tiled.attend`` does, forward and backward; tried once."""
    if size not in flash.SIZES:
        return False
    return flash.agrees(flash.attend, _masked, device, dtype, size, 5.0 if capped else None)


def _masked(query, key, value, offsets, *options):  # noqa: ANN001, ANN002, ANN202
    """``tiled.attend`` of offsets alone."""
    return tiled.attend(query, key, value, None, offsets, *options)


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
