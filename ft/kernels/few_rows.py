"""Decoding on a CPU in fp32: products of few rows with a weight, and norms of them, faster than PyTorch's usual calls."""

import contextlib
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

PARTS = 8  # of a weight that one row is multiplied with side by side
ROWS = 8  # beyond them PyTorch's own call is as fast
PLUS_ONE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")  # norms that scale by 1 + weight


@contextlib.contextmanager
def fast(model: Any) -> Iterator[None]:
    """While this lasts, linear layers and norms of a model in fp32 on a CPU compute as here.

    Only plain ``nn.Linear`` and the norms of Gemma 1 to 3 change, inside adapters too; results
    differ from PyTorch's by rounding.
    """
    import torch

    changed = []
    for module in model.modules():
        linear = type(module) is torch.nn.Linear
        if not linear and type(module).__name__ not in PLUS_ONE or "forward" in module.__dict__:
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
        changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            module.__dict__.pop("forward", None)


def product(x: "Tensor", weight: "Tensor") -> "Tensor":
    """``x @ weight.T`` for x [..., I] and a contiguous weight [O, I].

    For one row MKL's matrix-vector product reads a weight at half of the memory's speed, and a
    batch of 8 products with an eighth of the weight each at all of it, if the row's one column has
    the stride of a whole row; with stride 1 it takes seven times as long. For 2 to 8 rows and a tall
    weight, the weight times the rows is two to four times as fast as the rows times the weight.
    """
    import torch

    (height, width), rows = weight.shape, x.numel() // x.shape[-1]
    if rows == 1 and height % PARTS == 0:
        column = x.reshape(1, width).T.expand(PARTS, width, 1)  # the stride of its one column: I
        return torch.bmm(weight.view(PARTS, -1, width), column).view(*x.shape[:-1], height)
    if 1 < rows <= ROWS and height >= width:
        return (weight @ x.reshape(rows, width).T).T.reshape(*x.shape[:-1], height)
    return torch.nn.functional.linear(x, weight)


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
