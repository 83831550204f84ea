"""Products in float16 between float32 activations, for GPUs that multiply fast in that and have no bfloat16."""

import functools
import types
from typing import TYPE_CHECKING, Any

from ft.kernels import fused_nf4

if TYPE_CHECKING:
    from torch import Tensor


def install(model: Any) -> int:
    """Let every 4-bit layer of ``model`` multiply in float16; what lies between the layers stays in float32.

    Gemma's activations exceed float16's 65,504, and its gradients its 6e-8. So each row of a product, of
    activations as of gradients, is brought to at most 1 by a power of two, which is exact, and the result
    back in float32: no value overflows, what vanishes is smaller than the row's largest by float32's own
    rounding, and no loss is scaled. The residual stream, norms, attention, adapters, head and loss are
    float32. Returns the number of layers.
    """
    layers = [m for m in model.modules() if fused_nf4.is_layer(m)]
    for layer in layers:
        layer.forward = types.MethodType(_forward, layer)
    return len(layers)


def product(x: "Tensor", weight: "Tensor") -> "Tensor":
    """``x @ weight.T`` of x [N, I] in float32 and weight [O, I] in float16, to float32 [N, O]."""
    import torch

    _, exponents = torch.frexp(x.abs().amax(1, keepdim=True))
    # two steps, as 2^-exponent of the smallest numbers is no float32
    small = torch.ldexp(torch.ldexp(x, -exponents // 2), -exponents - (-exponents // 2)).half()
    return torch.ldexp((small @ weight.T).float(), exponents)


def _forward(self: Any, x: "Tensor") -> "Tensor":
    state = fused_nf4.state_of(self)
    found = _function().apply(x.float(), self.weight, state).to(x.dtype)
    return found if self.bias is None else found + self.bias.to(x.dtype)


@functools.cache
def _function() -> Any:
    import torch

    def values(weight, state):  # noqa: ANN001, ANN202
        return fused_nf4.weight(weight.data, state, torch.float16)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, weight, state):  # noqa: ANN001, ANN205
            ctx.weight, ctx.state, ctx.shape = weight, state, x.shape
            found = product(x.reshape(-1, x.shape[-1]), values(weight, state))
            return found.view(*x.shape[:-1], found.shape[-1])

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            rows = grads[0].reshape(-1, grads[0].shape[-1])
            return product(rows, values(ctx.weight, ctx.state).T).view(ctx.shape), None, None

    return Product
