"""RMSNorm and rotary embedding of training on a CPU in fp32, in fewer of PyTorch's operations each way.

Between products a CPU is bound by what it reads and writes. Both are written into one result, keep their input alone for
the gradient, and differ from transformers' own by rounding. Without a gradient a model answers to the bit as there.
"""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SCALE = "_scale"  # of a norm's weight: itself and what is added to it, and what they were made of


def usable(x: "Tensor", *frozen: "Tensor | None") -> bool:
    """Whether this is fp32 on a CPU with a gradient, which what is multiplied with it does not have."""
    import torch

    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    if not (torch.is_grad_enabled() and x.requires_grad):
        return False
    others = [each for each in frozen if each is not None]
    alike = all(each.dtype == x.dtype == torch.float32 for each in (x, *others))
    return alike and not any(each.requires_grad for each in others)


def rms_norm(x: "Tensor", weight: "Tensor | None", eps: float, offset: float = 0.0) -> "Tensor":
    """``x / sqrt(mean(x²) + eps) * (weight + offset)`` of x [..., D] and a frozen weight [D]."""
    return _functions().norm.apply(x, _scale(weight, offset), eps)


def rotary(cos: "Tensor", sin: "Tensor", x: "Tensor") -> "Tensor":
    """``x * cos + rotate_half(x) * sin`` of x [B, H, T, D] and cos and sin [B or 1, T, D], laid out as [B, T, H, D]."""
    return _functions().rotary.apply(cos, sin, x)


def _scale(weight: "Tensor | None", offset: float) -> "Tensor | None":
    """``weight + offset``, kept with the weight until that changes."""
    import torch

    if weight is None or not offset:
        return weight
    made, *of = getattr(weight, SCALE, (None,))
    now = [weight._version, weight.data_ptr(), offset]
    if of != now:
        with torch.inference_mode(False):  # a later pass may have gradients
            made = weight.detach() + offset
        setattr(weight, SCALE, (made, *now))
    return made


@functools.cache
def _epsilon(eps: float) -> "Tensor":
    import torch

    with torch.inference_mode(False):
        return torch.tensor(eps)


def _norm(x: "Tensor", scale: "Tensor | None", eps: float) -> "tuple[Tensor, Tensor]":
    """The result, and what x was multiplied with [..., 1]."""
    import torch

    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    root = torch.addcmul(_epsilon(eps), length, length, value=1 / x.shape[-1]).rsqrt_()
    out = x * root
    return (out if scale is None else out.mul_(scale)), root


def _turned(cos: "Tensor", sin: "Tensor", x: "Tensor", sign: int) -> "Tensor":
    import torch

    batch, heads, time, width = x.shape
    half = width // 2
    out = x.new_empty(batch, time, heads, width).transpose(1, 2)
    (low, high), (first, second) = (each.split([half, half], -1) for each in (out, x))
    (c1, c2), (s1, s2) = (each[:, None].split([half, half], -1) for each in (cos, sin))
    # the gradient of the other half goes with the sine that this half was multiplied with
    s1, s2 = (s1, s2) if sign > 0 else (s2, s1)
    torch.mul(first, c1, out=low).addcmul_(second, s1, value=-sign)
    torch.mul(second, c2, out=high).addcmul_(first, s2, value=sign)
    return out


@functools.cache
def _functions() -> Any:
    """The autograd functions, made at the first use: importing this module imports no PyTorch."""
    import types

    import torch
    from torch.autograd.function import once_differentiable

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale, eps):  # noqa: ANN001, ANN205
            out, root = _norm(x, scale, eps)
            ctx.save_for_backward(x, root, scale)
            return out

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            x, root, scale = ctx.saved_tensors
            through = grads[0].clone() if scale is None else grads[0] * scale
            along = torch.linalg.vecdot(through, x).unsqueeze(-1)
            along.mul_(root).mul_(root).div_(-x.shape[-1])
            return through.addcmul_(x, along).mul_(root), None, None

    class Rotary(torch.autograd.Function):
        @staticmethod
        def forward(ctx, cos, sin, x):  # noqa: ANN001, ANN205
            ctx.save_for_backward(cos, sin)
            return _turned(cos, sin, x, 1)

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            return None, None, _turned(*ctx.saved_tensors, grads[0], -1)  # pyright: ignore

    return types.SimpleNamespace(norm=Norm, rotary=Rotary)
