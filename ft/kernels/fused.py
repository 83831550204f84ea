"""RMSNorm, GEGLU and rotary embedding, each one Triton kernel a direction in place of PyTorch's three to twelve.

Every result has the dtype that PyTorch's has and is rounded where PyTorch's is, so that the two
differ by the order of sums in fp32 alone. What the backward can compute again from its inputs is not kept.
"""

import functools
import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

SHARES = 256  # programs that sum a norm's weight gradient; each adds the rows of its own
ELEMENTS = 1024  # of an elementwise kernel's program


def usable(*tensors: "Tensor") -> bool:
    """Whether the kernels can take these: 16- or 32-bit floats of one dtype on this process's GPU.

    ``TRITON_INTERPRET=1``, Triton's own setting, runs them on a CPU.
    """
    import torch

    first = tensors[0]
    if not _has_triton() or first.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        return False
    if any(x.dtype != first.dtype or x.device != first.device for x in tensors):
        return False
    if first.is_cuda:
        return first.device.index == torch.cuda.current_device() and not lack(first.device)
    return first.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def lack(device: Any) -> str:
    """Why no kernel can be compiled and launched on a GPU where Triton is; nothing where they can. Tried once.

    Triton asks for a C compiler, Python's headers, a folder to write to, and a GPU that it knows.
    """
    import torch

    if device.type != "cuda" or not _has_triton():
        return ""
    try:
        _norm(_rows(torch.ones(1, 16, device=device)), None, 1e-6, 0.0)
    except Exception as error:  # whatever Triton, a compiler or a driver says
        return " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return ""


def rms_norm(x: "Tensor", weight: "Tensor | None", eps: float, offset: float = 0.0) -> "Tensor":
    """``x / sqrt(mean(x²) + eps) * (weight + offset)``, in fp32 and rounded once to the dtype of x.

    x [..., D], weight [D]. Gemma 1 to 3 and RecurrentGemma have offset 1; without a weight nothing is scaled.
    """
    return _functions().norm.apply(x, weight, eps, offset)


def geglu(gate: "Tensor", up: "Tensor") -> "Tensor":
    """``gelu(gate) * up`` of one shape, with GELU's tanh approximation, which is rounded before the product."""
    return _functions().geglu.apply(gate, up)


def rotary(cos: "Tensor", sin: "Tensor", *tensors: "Tensor") -> "tuple[Tensor, ...]":
    """``x * cos + rotate_half(x) * sin`` of one or two x [B, H, T, D] and cos and sin [B or 1, T, D].

    Two of one batch, such as queries and keys, are one kernel. Results lie in memory as [B, T, H, D], which
    the products around attention take.
    """
    return _functions().rotary.apply(cos, sin, *tensors)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _warps(elements: int) -> int:
    """Of a program with this many elements: 16 a thread, as far as 16 warps go."""
    return min(16, max(1, elements // 512))


class _Rows(NamedTuple):
    """x [..., D] as rows of D numbers: ``heads`` one after the other, the next so many ``apart`` from their beginning.

    Where single rows are a part of wider ones, so are those of the gradient: its reader has room there.
    """

    x: "Tensor"
    heads: int
    apart: int


def _rows(x: "Tensor") -> _Rows:
    """x as it lies in memory, if its rows do, in whatever order, or if they are a part of wider ones; else a copy."""
    if x.is_contiguous() or (x.dim() == 4 and x.transpose(1, 2).is_contiguous()):
        return _Rows(x, 1, x.shape[-1])
    if (
        x.dim() == 3
        and x.stride(2) == 1
        and (len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    ):
        return _Rows(x, 1, x.stride(1))
    one = x.dim() == 4 and (len(x) == 1 or x.stride(0) == x.shape[1] * x.stride(1))
    if one and x.stride()[2:] == (x.shape[3], 1):
        return _Rows(x, x.shape[2], x.stride(1))
    return _Rows(x.contiguous(), 1, x.shape[-1])


def _alike(x: "Tensor", like: "Tensor") -> "Tensor":
    """x in the memory order of ``like``."""
    import torch

    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


@functools.cache
def _functions() -> Any:
    """The autograd functions, made at the first use: importing this module imports no PyTorch."""
    import types

    import torch
    from torch.autograd.function import once_differentiable

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, eps, offset):  # noqa: ANN001, ANN205
            rows = _rows(x)
            ctx.save_for_backward(rows.x, weight)
            ctx.options, ctx.lie = (eps, offset), rows[1:]
            return _norm(rows, weight, eps, offset)

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            x, weight = ctx.saved_tensors
            rows = _Rows(x, *ctx.lie)
            gradient = _alike(grads[0], _room(rows))
            trained = weight is not None and ctx.needs_input_grad[1]
            eps, offset = ctx.options
            d_x, d_weight = _norm_backward(rows, weight, gradient, eps, offset, trained)
            return d_x, d_weight, None, None

    class Geglu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):  # noqa: ANN001, ANN205
            flat = [x.reshape(-1, x.shape[-1]) for x in (gate, up)]
            if flat[0].stride() != flat[1].stride() or flat[0].stride(1) != 1:
                flat = [x.contiguous() for x in flat]
            ctx.save_for_backward(*flat)
            out = gate.new_empty(gate.shape)
            _halves(_kernels().geglu_forward, *flat, out)
            return out

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            gate, up = ctx.saved_tensors
            d_gate, d_up = room_beside(gate, up)
            tensors = gate, up, grads[0].contiguous(), d_gate, d_up
            _halves(_kernels().geglu_backward, *tensors, apart=[d_gate.stride(0)])
            return d_gate.view_as(grads[0]), d_up.view_as(grads[0])

    class Rotary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, cos, sin, *tensors):  # noqa: ANN001, ANN002, ANN205
            ctx.save_for_backward(cos, sin)
            return _rotate(cos, sin, tensors, backward=False)

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            cos, sin = ctx.saved_tensors
            return None, None, *_rotate(cos, sin, grads, backward=True)

    return types.SimpleNamespace(norm=Norm, geglu=Geglu, rotary=Rotary)


def room_beside(gate: "Tensor", up: "Tensor") -> "tuple[Tensor, Tensor]":
    """Room for the gradients of gate and up [N, D], side by side, as both lie themselves if they do."""
    (rows, width), apart = gate.shape, gate.stride(0)
    beside = up.data_ptr() == gate.data_ptr() + width * gate.element_size()
    made = gate.new_empty(rows, max(2 * width, apart * beside))
    return made[:, :width], made[:, width : 2 * width]


def _kernels() -> Any:
    from ft.kernels import triton_layers

    return triton_layers


def _norm_shape(width: int) -> dict[str, int]:
    block = 1 << (width - 1).bit_length()
    rows = max(1, ELEMENTS // block)  # heads are narrow: several to a program
    return {"ROWS": rows, "BLOCK": block, "num_warps": _warps(rows * block)}


def _room(rows: _Rows) -> "Tensor":
    """Room for as many numbers, of rows one after the other."""
    import torch

    whole = rows.heads == 1 and rows.apart == rows.x.shape[-1]
    return torch.empty_like(rows.x) if whole else rows.x.new_empty(rows.x.shape)


def _norm(rows: _Rows, weight: "Tensor | None", eps: float, offset: float) -> "Tensor":
    x, width = rows.x, rows.x.shape[-1]
    many, shape, out = x.numel() // width, _norm_shape(width), _room(rows)
    scaled: dict[str, Any] = {"OFFSET": offset, "SCALED": weight is not None}
    grid, tensors = (-(-many // shape["ROWS"]),), (x, x if weight is None else weight, out)
    _kernels().norm_forward[grid](*tensors, many, width, *rows[1:], eps, **scaled, **shape)
    return out


def _norm_backward(
    rows: _Rows,
    weight: "Tensor | None",
    gradient: "Tensor",
    eps: float,
    offset: float,
    trained: bool,
) -> "tuple[Tensor, Tensor | None]":
    import torch

    x, width = rows.x, rows.x.shape[-1]
    many, shape = x.numel() // width, _norm_shape(width)
    apart = rows.apart if x.dim() == 3 else width
    d_x = torch.empty_like(gradient)
    if apart > width:
        d_x = x.new_empty(many, apart)[:, :width].view(x.shape)
    each = shape["ROWS"]
    if trained:
        each *= max(1, -(-many // (each * SHARES)))
    programs = -(-many // each)
    share = x.new_empty(programs, width, dtype=torch.float32) if trained else d_x
    scaled: dict[str, Any] = {"OFFSET": offset, "SCALED": weight is not None, "TRAINED": trained}
    tensors = x, x if weight is None else weight, gradient, d_x, share
    sizes = many, width, *rows[1:], apart, eps, each
    _kernels().norm_backward[(programs,)](*tensors, *sizes, **scaled, **shape)
    if not trained or weight is None:
        return d_x, None
    return d_x, share.sum(0).to(weight.dtype)


def _halves(kernel: Any, gate: "Tensor", *rest: "Tensor", apart: Sequence[int] = ()) -> None:
    """Launch a kernel of GEGLU on rows [N, D] of gate and up; gradients lie ``apart``."""
    rows, width = gate.shape
    parts = -(-width // ELEMENTS)
    grid, sizes = (rows * parts,), (width, gate.stride(0), *apart, parts)
    kernel[grid](gate, *rest, *sizes, BLOCK=ELEMENTS, num_warps=4)


def _rotate(
    cos: "Tensor", sin: "Tensor", tensors: "Sequence[Tensor]", *, backward: bool
) -> "tuple[Tensor, ...]":
    given = [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
    cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (cos, sin))
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    batch, _, time, width = given[0].shape
    made = [x.new_empty(batch, time, x.shape[1], width).transpose(1, 2) for x in given]
    pairs = [x for pair in zip(given, made, strict=True) for x in pair]
    pairs += pairs * (len(given) == 1)  # what is not read
    x, y = pairs[0], pairs[2]
    strides = [stride for each in pairs for stride in each.stride()[:3]]
    strides += [cos.stride(0) * (len(cos) > 1), cos.stride(1)]
    block, heads = 1 << (width // 2 - 1).bit_length(), (x.shape[1], y.shape[1])
    padded = [1 << (n - 1).bit_length() for n in heads]
    options = {"BACKWARD": backward, "BOTH": len(given) > 1, "BLOCK": block}
    options |= {"HEADS": padded[0], "HEADS_Y": padded[1], "num_warps": _warps(padded[0] * block)}
    _kernels().rotate[(time, batch)](*pairs, cos, sin, *strides, *heads, width // 2, **options)
    return tuple(made)
