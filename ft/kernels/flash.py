"""Flash attention of a packed row whose scores may have a soft cap, as Triton kernels.

One kernel forward and two backward, where ``tiled.attend`` launches a hundred operations for
each piece of scores. It is the algorithm of FlashAttention-2 (arXiv:2307.08691) on a row of examples.
"""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SIZES = (16, 32, 64, 128, 256)  # of heads; the tiles of wider ones do not fit a GPU's shared memory
AMPERE = 8  # compute capability; before it Triton's products spill kilobytes of each thread, and varlen_attn is none
UNBOUNDED = 2**30  # a window wider than any row, whose sum with a place fits 32 bits


def possible(device: Any, dtype: Any) -> bool:
    """Whether kernels of packed rows can run at all: in half precision on a GPU since ``AMPERE``."""
    import torch

    half = dtype in (torch.bfloat16, torch.float16)
    gpu = device.type == "cuda"
    return half and gpu and torch.cuda.get_device_capability(device)[0] >= AMPERE


def agrees(
    run: Callable[..., "Tensor"],
    reference: Callable[..., "Tensor"],
    device: Any,
    dtype: Any,
    size: int,
    softcap: float | None = None,
) -> bool:
    """Whether ``run`` answers in half precision on a GPU as ``reference`` does, both ways.

    Both take query, key, value, offsets, scale, window and soft cap. No while a graph is captured.
    """
    import torch

    if not possible(device, dtype) or torch.cuda.is_current_stream_capturing():
        return False
    generator = torch.Generator(device).manual_seed(0)
    offsets = torch.tensor([0, 70, 75, 135, 135], dtype=torch.int32, device=device)
    made = [
        torch.randn(1, heads, 135, size, device=device, generator=generator).to(dtype)
        for heads in (4, 2, 2)
    ]
    found, options = [], (size**-0.5, 40, softcap)
    try:
        with torch.enable_grad():
            for kind in (run, reference):
                leaves = [x.clone().requires_grad_() for x in made]
                out = kind(*leaves, offsets, *options)
                found.append([out, *torch.autograd.grad(out.float().square().sum(), leaves)])
    except Exception:  # whatever a compiler, a driver or a missing package says
        return False
    pairs = zip(*found, strict=True)
    return all(bool((a - b).float().norm() < 0.02 * b.float().norm()) for a, b in pairs)


@functools.lru_cache(8)
def offsets_of(lengths: Sequence[int], device: Any) -> "Tensor":
    """Where examples of these lengths (a tuple) begin, and the end [E + 1, int32]; one copy for all layers."""
    import itertools

    import torch

    with torch.inference_mode(False):  # a later row of these lengths may have gradients
        ends = itertools.accumulate(lengths, initial=0)
        return torch.tensor([*ends], dtype=torch.int32, device=device)


def attend(
    query: "Tensor",
    key: "Tensor",
    value: "Tensor",
    offsets: "Tensor",
    scale: float,
    window: int = 0,
    softcap: float | None = None,
) -> "Tensor":
    """Attention of each token to those before it in its example, and fewer than ``window`` away.

    [1, H, T, D] and [1, K, T, D] in half precision to [1, T, H, D]; ``offsets`` [E + 1, int32] begin
    with 0, end with T and may repeat. What is kept for the gradient grows with T alone; a CUDA graph
    can hold it, and the same inputs give the same bits.
    """
    return _function().apply(query, key, value, offsets, scale, window, softcap)


def tiles(size: int, grouped: bool) -> dict[str, dict[str, int]]:
    """Queries M and keys N of a tile, warps and stages of each kernel for heads of this size.

    ``grouped``: on a data-center GPU since Hopper, where four warps share a product of 64 rows and
    there is room. The others fit the 99 KiB of shared memory that consumer cards have.
    """
    if size > 128:
        forward = (64, 32, 4, 2) if grouped else (64, 32, 8, 2)
        queries = (64, 32, 8, 2) if grouped else (32, 32, 4, 2)
        keys = (32, 64, 8, 2) if grouped else (32, 32, 8, 1)
    else:
        forward, queries = (64, 64, 4, 2), (64, 64 if grouped else 32, 4, 2)
        keys = (64 if grouped else 32, 64, 8 if grouped and size > 64 else 4, 2)
    shapes = {"forward": forward, "backward_queries": queries, "backward_keys": keys}
    names = ("M", "N", "num_warps", "num_stages")
    return {kernel: dict(zip(names, shape, strict=True)) for kernel, shape in shapes.items()}


@functools.cache
def _grouped(device: Any) -> bool:
    import torch

    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] in (9, 10)


def _rows(x: "Tensor") -> "Tensor":
    """x [1, heads, T, D] with neighbours in the last dimension, as the kernels read it."""
    return x if x.stride(-1) == 1 else x.contiguous()


@functools.cache
def _function() -> Any:
    import torch
    from torch.autograd.function import once_differentiable

    def launch(kernel, heads, tensors, strided, query, key, offsets, scale, window, softcap):  # noqa: ANN001, ANN202
        from ft.kernels import triton_attention

        length, size = query.shape[2:]
        shape = tiles(size, _grouped(query.device))[kernel]
        strides = [stride for x in strided for stride in x.stride()[1:3]]
        sizes = length, len(offsets), window or UNBOUNDED, query.shape[1] // key.shape[1]
        grid = (-(-length // shape["N" if kernel == "backward_keys" else "M"]), heads)
        options = {"CAP": softcap is not None, "D": size, **shape}
        getattr(triton_attention, kernel)[grid](
            *tensors, *strides, *sizes, scale, softcap or 1.0, **options
        )

    class Flash(torch.autograd.Function):
        @staticmethod
        def forward(ctx, query, key, value, offsets, *options):  # noqa: ANN001, ANN002, ANN205
            query, key, value = made = [_rows(x) for x in (query, key, value)]
            _, heads, length, size = query.shape
            out = query.new_empty(1, length, heads, size)
            lse = query.new_empty(heads, length, dtype=torch.float32)
            tensors = *made, offsets, out, lse
            launch("forward", heads, tensors, made, query, key, offsets, *options)
            ctx.save_for_backward(*tensors)
            ctx.options = options
            return out

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            query, key, value, offsets, out, lse = ctx.saved_tensors
            made, gradient = (query, key, value), _rows(grads[0].transpose(1, 2))
            d_q, d_k, d_v = (
                x.new_empty(1, x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in made
            )
            delta = torch.empty_like(lse)
            rest = [*made, gradient], query, key, offsets, *ctx.options
            tensors = *made, offsets, out, lse, gradient, d_q, delta
            launch("backward_queries", query.shape[1], tensors, *rest)
            tensors = *made, offsets, lse, delta, gradient, d_k, d_v
            launch("backward_keys", key.shape[1], tensors, *rest)
            return d_q, d_k, d_v, None, None, None, None

    return Flash
