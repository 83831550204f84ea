"""Attention of one new token of each text to keys and values at fixed places, as two Triton kernels.

PyTorch's operations for it are several times as many, repeat the keys for each query that shares them, and with a
soft cap read all places, however few of them are filled.
"""

import functools
from typing import TYPE_CHECKING, Any

from ft.kernels import flash, fused

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (*flash.SIZES, 512)  # of heads
SPAN, SPANS = 64, 64  # keys of a program at least, and programs of a text's at most
GROUP = 16  # rows of the smallest product
KEYS = {True: 32, False: 64}  # of a tile, by whether heads are wider than 128


def attend(
    query: "Tensor",
    keys: "Tensor",
    values: "Tensor",
    seen: "Tensor",
    at: "Tensor",
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> "Tensor":
    """[B, H, 1, D] with keys and values [B, K, L, D], one after the other, to [B, 1, H, D].

    A query sees places up to ``at`` [1, int64], and fewer than ``window`` before it, but where ``seen`` [B, L, bool] is
    not set. Whoever sees nothing gets zeros. The same inputs give the same bits.
    """
    import torch

    query = query if query.stride(-1) == 1 else query.contiguous()
    batch, heads, _, size = query.shape
    shared, length = keys.shape[1:3]
    span = max(SPAN, -(-length // (SPAN * SPANS)) * SPAN)
    count, group = -(-length // span), heads // shared
    sums = query.new_empty(batch, heads, count, size, dtype=torch.float32)
    totals, tops = torch.empty_like(sums[..., 0]), torch.empty_like(sums[..., 0])
    out = query.new_empty(batch, 1, heads, size)
    kernels, wide = _kernels(), size > 128
    tensors = query, keys, values, seen.view(torch.uint8), at, sums, totals, tops
    sizes = *query.stride()[:2], length, window or flash.UNBOUNDED, span, shared, group
    rows = max(GROUP, 1 << (group - 1).bit_length())
    options = {"CAP": softcap is not None, "D": size, "GROUP": rows, "N": KEYS[wide]}
    kernels.spans[(count, batch * shared)](
        *tensors, *sizes, scale, softcap or 1.0, **options, num_warps=4, num_stages=2
    )
    warps = 8 if wide else 4
    kernels.together[(batch * heads,)](
        sums, totals, tops, out, count, D=size, SPANS=SPANS, num_warps=warps
    )
    return out


def put(keys: "Tensor", values: "Tensor", k: "Tensor", v: "Tensor", at: "Tensor") -> None:
    """Write the keys and values of a token [B, K, 1, D] at place ``at`` [1, int64] of [B, K, L, D]."""
    k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (k, v))
    heads, length, size = keys.shape[1:]
    strides = *k.stride()[:2], *v.stride()[:2]
    _kernels().put[(len(keys) * heads,)](
        keys, values, k, v, at, length, *strides, heads, D=size, num_warps=1
    )


def usable(*tensors: "Tensor") -> bool:
    """Whether the kernels can take these: 16 bits on this process's GPU, heads of ``SIZES``."""
    first = tensors[0]
    return first.element_size() == 2 and first.shape[-1] in SIZES and fused.usable(*tensors)


@functools.cache
def works(device: Any, dtype: Any, size: int, capped: bool) -> bool:
    """Whether ``put`` and ``attend`` answer here as ``plain`` does; tried once, and no while a graph is captured."""
    import torch

    if device.type == "cuda":
        old = torch.cuda.get_device_capability(device)[0] < flash.AMPERE
        if old or torch.cuda.is_current_stream_capturing():
            return False
    generator = torch.Generator(device).manual_seed(0)
    new = functools.partial(torch.randn, device=device, generator=generator)
    query, k, v = (new(2, heads, 1, size).to(dtype) for heads in (4, 2, 2))
    keys, values = (new(2, 2, 300, size).to(dtype) for _ in range(2))
    seen = torch.ones(2, 300, dtype=torch.bool, device=device)
    seen[1, :170] = False
    at, options = torch.tensor([210], device=device), (size**-0.5, 100, 5.0 if capped else None)
    try:
        put(keys, values, k, v, at)
        written = (keys[:, :, 210] == k[:, :, 0]).all() & (values[:, :, 210] == v[:, :, 0]).all()
        found = attend(query, keys, values, seen, at, *options)
        expected = plain(query, keys, values, seen, at, *options)
        off = (found.float() - expected.float()).norm() / expected.float().norm()
        return bool(written & (off < 0.02))
    except Exception:  # whatever a compiler, a driver or a missing package says
        return False


def plain(
    query: "Tensor",
    keys: "Tensor",
    values: "Tensor",
    seen: "Tensor",
    at: "Tensor",
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> "Tensor":
    """``attend`` in PyTorch's operations, all in float32."""
    import torch

    batch, heads, _, size = query.shape
    places = torch.arange(keys.shape[2], device=keys.device)
    visible = seen & (places <= at) & (places > at - (window or flash.UNBOUNDED))
    groups = query.float().reshape(batch, keys.shape[1], -1, size)  # [B, K, H / K, D]
    scores = groups @ keys.float().transpose(2, 3) * scale
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    weights = scores.softmax(-1).nan_to_num(0.0)
    return (weights @ values.float()).reshape(batch, 1, heads, size).to(query.dtype)


def _kernels() -> Any:
    from ft.kernels import triton_decode

    return triton_decode
