"""Decoding on a CPU in fp32: products of few rows with a weight, and norms of them, faster than PyTorch's usual calls."""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft.kernels import fused_layers

if TYPE_CHECKING:
    from torch import Tensor

HEIGHTS = (512, 256, 128, 64)  # rows of a part of a weight: what a core's own cache holds
PARTS = 8  # of a weight at least, so that the cores share them evenly
ROWS = 16  # beyond them PyTorch's own call is as fast
PLUS_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")  # norms that scale by 1 + weight


@contextlib.contextmanager
def fast(model: Any) -> Iterator[None]:
    """While this lasts, linear layers and norms of a model in fp32 on a CPU compute as here.

    Only plain ``nn.Linear`` and the norms of Gemma 1 to 3 change, inside adapters too; results
    differ from PyTorch's by rounding.
    """
    import torch

    changed, ours = [], fused_layers.norm
    for module in model.modules():
        linear, before = type(module) is torch.nn.Linear, vars(module).get("forward")
        if not linear and type(module).__name__ not in PLUS_ONE:
            continue
        if before is not None and getattr(before, "__func__", None) is not ours:
            continue
        weight: Any = module.weight
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            continue
        if hasattr(weight, "full_tensor"):  # a share of it, where processes share the parameters
            continue
        if not linear:
            module.forward = _norm(1 + weight.detach(), module.eps)
        elif weight.is_contiguous():
            module.forward = types.MethodType(_linear, module)
        changed.append((module, before))
    try:
        yield
    finally:
        for module, before in changed:
            vars(module).pop("forward", None)
            if before is not None:
                module.forward = before


def product(x: "Tensor", weight: "Tensor") -> "Tensor":
    """``x @ weight.T`` for x [..., I] and a contiguous weight [O, I].

    MKL reads a weight for one row at half of the memory's speed on some processors, and for 2 to 16 rows first copies it
    into another layout. As a batch of products with a part of the weight each, these copies stay in a core's cache.
    """
    import torch

    (height, width), rows = weight.shape, x.numel() // x.shape[-1]
    part = next((h for h in HEIGHTS if height % h == 0 and height >= PARTS * h), 0)
    if not part or not 0 < rows <= ROWS:
        return torch.nn.functional.linear(x, weight)
    parts = weight.view(-1, part, width).transpose(1, 2)  # [P, I, O / P]
    found = torch.bmm(x.reshape(1, rows, width).expand(len(parts), -1, -1), parts)
    return found.transpose(0, 1).reshape(*x.shape[:-1], height)


def _linear(self: Any, x: "Tensor") -> "Tensor":
    found = product(x, self.weight)
    return found if self.bias is None else found + self.bias


def _norm(scale: "Tensor", eps: float) -> Callable[["Tensor"], "Tensor"]:
    """RMSNorm in five operations; PyTorch's own are eleven."""
    import torch

    epsilon, size = torch.tensor(eps, dtype=scale.dtype), len(scale)

    def norm(x: "Tensor") -> "Tensor":
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x.mul(torch.addcmul(epsilon, length, length, value=1 / size).rsqrt_()).mul_(scale)

    return norm
