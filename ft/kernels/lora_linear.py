"""The forward and backward of a LoRA layer in the dtype of its base, added into the base's output in place."""

import functools
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def install(model: Any) -> None:
    """Let the LoRA layers of a PEFT model compute ``add_low_rank`` where it is what PEFT computes.

    PEFT brings the input of each layer to the adapter's float32 and multiplies there, or, under
    autocast, brings it back again first. With several adapters, DoRA, a bias or merged weights, a layer
    answers as PEFT wrote it.
    """
    from peft.tuners.lora.layer import Linear

    kinds: tuple[Any, ...] = (Linear,)
    try:
        from peft.tuners.lora.bnb import Linear4bit  # pyright: ignore[reportAttributeAccessIssue]

        kinds = (Linear, Linear4bit)
    except ImportError:
        pass  # no bitsandbytes, so no such layer
    for module in model.modules():
        if type(module) in kinds:
            module.forward = types.MethodType(_forward, module)


def add_low_rank(result: "Tensor", x: "Tensor", a: "Tensor", b: "Tensor", scale: float) -> "Tensor":
    """``result + scale * x @ a.T @ b.T``, written into ``result``.

    result [..., O], x [..., I], a [R, I], b [O, R]; computed in the dtype of ``result``, which
    matrix products accumulate in float32; the gradients of a and b come in their own dtype.
    """
    return _function().apply(result, x, a, b, scale)


def _forward(self: Any, x: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
    names = [name for name in self.active_adapters if name in self.lora_A]
    if (
        args
        or kwargs
        or self.disable_adapters
        or self.merged
        or len(names) != 1
        or names[0] in self.lora_variant
        or self.lora_B[names[0]].bias is not None
    ):
        return type(self).forward(self, x, *args, **kwargs)
    name, result = names[0], self.base_layer(x)
    if result._is_view():  # of bitsandbytes' own function, which forbids writing into it
        result = result.clone()
    return add_low_rank(
        result,
        self.lora_dropout[name](x),
        self.lora_A[name].weight,
        self.lora_B[name].weight,
        self.scaling[name],
    )


@functools.cache
def _function() -> Any:
    import torch

    class LowRank(torch.autograd.Function):
        @staticmethod
        def forward(ctx, result, x, a, b, scale):  # noqa: ANN001, ANN205
            x, low_a, low_b = x.to(result.dtype), a.to(result.dtype), b.to(result.dtype)
            flat = x.reshape(-1, x.shape[-1])
            low = flat @ low_a.T  # [N, R]
            result.view(-1, result.shape[-1]).addmm_(low, low_b.T, alpha=scale)
            ctx.mark_dirty(result)
            ctx.save_for_backward(flat, low, low_a, low_b)
            ctx.scale, ctx.dtypes, ctx.shape = scale, (a.dtype, b.dtype), x.shape
            return result

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            (grad,) = grads
            flat, low, a, b = ctx.saved_tensors
            rows = grad.reshape(-1, grad.shape[-1])  # [N, O]
            through_b = (rows @ b).mul_(ctx.scale)  # [N, R]
            d_x = (through_b @ a).view(ctx.shape) if ctx.needs_input_grad[1] else None
            d_a = d_b = None
            if ctx.needs_input_grad[2]:
                d_a = (through_b.T @ flat).to(ctx.dtypes[0])
            if ctx.needs_input_grad[3]:
                d_b = (rows.T @ low).to(ctx.dtypes[1]).mul_(ctx.scale)
            return grad, d_x, d_a, d_b, None

    return LowRank
