"""The forward and backward of a LoRA layer in the dtype of its base, added into the base's output in place."""

import functools
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ft.kernels import fused_nf4

if TYPE_CHECKING:
    from torch import Tensor

LOW = "_low_precision"  # of a parameter: its copy, and the version and address it was made from
ALIGNED = 64  # numbers; a copy begins where a matrix product likes a matrix to begin
WHOLE = ("cuda",)  # where base and update are one function, whose sums have another order


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


def trained(model: Any) -> "list[Tensor]":
    """The A and B that train in the layers of ``install``; the search goes through all modules."""
    return [p for m in model.modules() if "forward" in vars(m) for p in _trained(m)]


def refresh(model: Any, found: "list[Tensor] | None" = None) -> int:
    """Copy the trained A and B into the base's dtype, once for all forward passes until they change.

    Without it each layer and call casts them, two operations of some ten. To be called after every
    optimizer step; the copies stay where they are in memory, so that a captured CUDA graph reads the
    new values. A parameter that PyTorch knows to have changed since is cast as before, but its fused
    optimizers do not tell. ``found`` are the model's ``trained``, where the caller knows them. Returns the
    number of copies: none in fp32, and none where processes share the parameters.
    """
    import torch

    dtype = model.get_input_embeddings().weight.dtype
    found = trained(model) if found is None else found
    shared = any(p.dim() != 2 or hasattr(p, "full_tensor") for p in found)
    if shared or not found or dtype == found[0].dtype:
        return 0
    if any(p.device != found[0].device for p in found):
        return 0
    held: list[Any] = [getattr(p, LOW, (None,))[0] for p in found]
    if any(
        low is None or (low.shape, low.dtype, low.device) != (p.shape, dtype, p.device)
        for low, p in zip(held, found, strict=True)
    ):
        sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in found]
        parts = torch.empty(sum(sizes), dtype=dtype, device=found[0].device).split(sizes)
        held = [x[: p.numel()].view(p.shape) for x, p in zip(parts, found, strict=True)]
    with torch.no_grad():
        copy_all: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
        copy_all(held, found)
    for low, parameter in zip(held, found, strict=True):
        setattr(parameter, LOW, (low, parameter._version, parameter.data_ptr()))
    return len(found)


def release(model: Any) -> None:
    """Forget the copies of ``refresh``: from now on each forward pass casts."""
    for parameter in model.parameters():
        vars(parameter).pop(LOW, None)


def _trained(module: Any) -> "list[Tensor]":
    """The A and B of a LoRA layer that train."""
    parts = [getattr(module, name, None) for name in ("lora_A", "lora_B")]
    layers = [layer for part in parts if part is not None for layer in part.values()]
    return [layer.weight for layer in layers if layer.weight.requires_grad]


def _cast(parameter: "Tensor", dtype: Any) -> "Tensor":
    """The parameter in ``dtype``: its copy, where that is of what it is now."""
    low, *made = getattr(parameter, LOW, (None,))
    if low is None or low.dtype != dtype or made != [parameter._version, parameter.data_ptr()]:
        return parameter.to(dtype)
    return low


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
    name = names[0]
    dropout, a, b = self.lora_dropout[name], self.lora_A[name].weight, self.lora_B[name].weight
    if weight := _whole(self.base_layer, x, dropout):
        bias = self.base_layer.bias
        return _whole_function().apply(x, a, b, self.scaling[name], weight, bias)
    result = self.base_layer(x)
    if result._is_view():  # of bitsandbytes' own function, which forbids writing into it
        result = result.clone()
    return add_low_rank(result, dropout(x), a, b, self.scaling[name])


def _whole(base: Any, x: "Tensor", dropout: Any) -> "Callable[[], Tensor] | None":
    """Where base and update can be one function, what gives the frozen weight in the dtype of x, [O, I]."""
    import torch

    if x.device.type not in WHOLE or not torch.is_grad_enabled():
        return None
    if dropout.training and type(dropout) is not torch.nn.Identity:
        return None
    if "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks:
        return None
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and (bias.requires_grad or bias.dtype != x.dtype)):
        return None
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return None
    if type(base) is torch.nn.Linear:
        return (lambda: weight) if weight.dtype == x.dtype else None
    state = fused_nf4.state_of(base)
    if not fused_nf4.is_layer(base) or state is None or base.compute_dtype != x.dtype:
        return None
    if tuple(state.shape) != (base.out_features, base.in_features):
        return None
    return lambda: fused_nf4.weight(weight.data, state, x.dtype)


def _product(x: "Tensor", y: "Tensor", dtype: Any) -> "Tensor":
    """``x @ y`` in ``dtype``: of 16 bits to float32 in one operation, where PyTorch has that."""
    import torch

    if x.is_cuda and dtype == torch.float32 != x.dtype and _widens(x.device, x.dtype):
        return torch.mm(x, y, out_dtype=dtype)
    return (x @ y).to(dtype)


@functools.cache
def _widens(device: Any, dtype: Any) -> bool:
    """Whether a product of ``dtype`` here can come as the float32 that it is summed in; tried once."""
    import torch

    x = torch.ones(16, 16, dtype=dtype, device=device)
    try:
        found = torch.mm(x, x, out_dtype=torch.float32)
    except (TypeError, RuntimeError):  # before PyTorch 2.8; not on this device
        return False
    return found.dtype == torch.float32 and bool((found == 16).all())


@functools.cache
def _function() -> Any:
    import torch

    class LowRank(torch.autograd.Function):
        @staticmethod
        def forward(ctx, result, x, a, b, scale):  # noqa: ANN001, ANN205
            x, dtype = x.to(result.dtype), result.dtype
            low_a, low_b = _cast(a, dtype), _cast(b, dtype)
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


@functools.cache
def _whole_function() -> Any:
    """Base and update at once: one gradient of x, and nothing of bitsandbytes' own bookkeeping."""
    import torch

    class Adapted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, a, b, scale, weight, bias):  # noqa: ANN001, ANN205
            flat, low_a, low_b = x.reshape(-1, x.shape[-1]), _cast(a, x.dtype), _cast(b, x.dtype)
            result = torch.nn.functional.linear(x, weight(), bias)
            low = x.new_empty(len(flat), len(a))  # scaled, as the gradient of b takes it
            low.addmm_(flat, low_a.T, beta=0, alpha=scale)
            result.view(-1, result.shape[-1]).addmm_(low, low_b.T)
            ctx.save_for_backward(flat, low, low_a, low_b)
            ctx.scale, ctx.weight = scale, weight
            ctx.dtypes, ctx.shape = (a.dtype, b.dtype), x.shape
            return result

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            flat, low, a, b = ctx.saved_tensors
            rows = grads[0].reshape(-1, grads[0].shape[-1])  # [N, O]
            through_b = torch.empty_like(low).addmm_(rows, b, beta=0, alpha=ctx.scale)  # [N, R]
            d_x = d_a = d_b = None
            if ctx.needs_input_grad[0]:
                d_x = (rows @ ctx.weight()).addmm_(through_b, a).view(ctx.shape)
            if ctx.needs_input_grad[1]:
                d_a = _product(through_b.T, flat, ctx.dtypes[0])
            if ctx.needs_input_grad[2]:
                d_b = _product(rows.T, low, ctx.dtypes[1])
            return d_x, d_a, d_b, None, None, None

    return Adapted
