"""Norms and gated MLPs of a GPU without Triton, by PyTorch's operations, which run again for the gradient.

Left alone, PyTorch keeps what each operation in between makes: of a norm in bf16 twice its input in fp32. So a
training takes as much memory with Triton and without, and `ft plan` is right of both.
"""

import functools
from typing import TYPE_CHECKING, Any

from ft.kernels import fused

if TYPE_CHECKING:
    from torch import Tensor


def usable(x: "Tensor") -> bool:
    """Whether x is on a GPU and has a gradient."""
    import torch

    return x.is_cuda and torch.is_grad_enabled() and x.requires_grad


def rms_norm(x: "Tensor", weight: "Tensor | None", eps: float, offset: float = 0.0) -> "Tensor":
    """``fused.rms_norm`` by PyTorch's operations: x [..., D], weight [D]."""
    return _functions().norm.apply(x, weight, eps, offset)


def geglu(gate: "Tensor", up: "Tensor") -> "Tensor":
    """``fused.geglu`` by PyTorch's operations: gate and up of one shape."""
    return _functions().geglu.apply(gate, up)


def _norm(x: "Tensor", weight: "Tensor | None", eps: float, offset: float) -> "Tensor":
    wide = x.float()
    out = wide * (wide.pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return (out if weight is None else out * (weight.float() + offset)).to(x.dtype)


@functools.cache
def _functions() -> Any:
    """The autograd functions, made at the first use: importing this module imports no PyTorch."""
    import types

    import torch
    from torch.autograd.function import once_differentiable
    from torch.nn.functional import gelu

    class Norm(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, eps, offset):  # noqa: ANN001, ANN205
            ctx.save_for_backward(x, weight)
            ctx.options = eps, offset
            return _norm(x, weight, eps, offset)

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            needed = ctx.needs_input_grad[:2]
            given = [
                None if x is None else x.detach().requires_grad_(need)
                for x, need in zip(ctx.saved_tensors, needed, strict=True)
            ]
            with torch.enable_grad():
                out = _norm(given[0], given[1], *ctx.options)  # pyright: ignore
            wanted = [x for x in given if x is not None and x.requires_grad]
            found = iter(torch.autograd.grad(out, wanted, grads[0]))
            return *(next(found) if need else None for need in needed), None, None

    class Geglu(torch.autograd.Function):
        @staticmethod
        def forward(ctx, gate, up):  # noqa: ANN001, ANN205
            ctx.save_for_backward(gate, up)
            return gelu(gate, approximate="tanh").mul_(up)

        @staticmethod
        @once_differentiable
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            gate, up, slope = (x.reshape(-1, x.shape[-1]) for x in (*ctx.saved_tensors, grads[0]))
            d_gate, d_up = fused.room_beside(gate, up)
            through = gelu(gate, approximate="tanh")
            torch.mul(slope, through, out=d_up)
            torch.mul(slope, up, out=through)
            back: Any = torch.ops.aten.gelu_backward
            back.grad_input(through, gate, approximate="tanh", grad_input=d_gate)
            return d_gate.view_as(grads[0]), d_up.view_as(grads[0])

    return types.SimpleNamespace(norm=Norm, geglu=Geglu)
