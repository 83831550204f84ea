"""The forward and backward of LoRA layers in the dtype of their base; those that read the same input are one function."""

import functools
import types
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ft.kernels import fused_nf4
from ft.kernels.lora_copies import cast

if TYPE_CHECKING:
    from torch import Tensor

WHOLE = ("cuda",)  # where base and update are one function; on a CPU it is no faster
TOGETHER = "_together"  # of a layer: what computes it with those that read the same input
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def install(model: Any) -> None:
    """Let the LoRA layers of a PEFT model compute ``add_low_rank`` where it is what PEFT computes.

    PEFT brings the input of each layer to the adapter's float32 and multiplies there, or, under
    autocast, brings it back again first. With several adapters, DoRA, a bias or merged weights, a layer
    answers as PEFT wrote it. Queries, keys and values, and a gated MLP's two first layers, are computed
    at the first one's call: fewer operations, and one gradient of what they read.
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
        if getattr(module, "is_kv_shared_layer", False):
            continue  # its keys are another layer's
        for names in SIBLINGS:
            layers = [x for n in names if type(x := getattr(module, n, None)) in kinds]
            if len(layers) > 1:
                together = Together(layers)
                for layer in layers:
                    setattr(layer, TOGETHER, together)


def add_low_rank(result: "Tensor", x: "Tensor", a: "Tensor", b: "Tensor", scale: float) -> "Tensor":
    """``result + scale * x @ a.T @ b.T``, written into ``result``.

    result [..., O], x [..., I], a [R, I], b [O, R]; computed in the dtype of ``result``, which
    matrix products accumulate in float32; the gradients of a and b come in their own dtype.
    """
    return _function().apply(result, x, a, b, scale)


class Together:
    """Layers that read the same input: computed at the first one's call, found by the others.

    What they computed is kept until each has been asked for its part with that very input.
    """

    def __init__(self, layers: "Sequence[Any]") -> None:
        self.layers = tuple(layers)
        self.x: Any = None
        self.results: dict[Any, Tensor] = {}

    def __call__(self, layer: Any, x: "Tensor") -> "Tensor | None":
        """``layer``'s result; none where they cannot be computed together."""
        if layer is self.layers[0]:
            parts = [part for each in self.layers if (part := _part(each, x))]
            same = len(parts) == len(self.layers) and len({part.scale for part in parts}) == 1
            found = _adapted(x, parts) if same else ()
            self.x, self.results = x, dict(zip(self.layers, found, strict=False))
        result = self.results.pop(layer, None) if x is self.x else None
        if not self.results:
            self.x = None
        return result


class Part(NamedTuple):
    """A layer where base and update can be one function."""

    scale: float
    a: "Tensor"  # [R, I]
    b: "Tensor"  # [O, R]
    weight: "Callable[[], Tensor]"  # gives the frozen weight in the dtype of the input, [O, I]
    bias: "Tensor | None"


def _name(layer: Any) -> str | None:
    """The adapter of a layer that is plain LoRA with one adapter."""
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    plain = not layer.disable_adapters and not layer.merged and len(names) == 1
    if not plain or names[0] in layer.lora_variant or layer.lora_B[names[0]].bias is not None:
        return None
    return names[0]


def _forward(self: Any, x: "Tensor", *args: Any, **kwargs: Any) -> "Tensor":
    name = None if args or kwargs else _name(self)
    if name is None:
        return type(self).forward(self, x, *args, **kwargs)
    together = getattr(self, TOGETHER, None)
    if together and (result := together(self, x)) is not None:
        return result
    if part := _part(self, x):
        return _adapted(x, [part])[0]
    dropout, a, b = self.lora_dropout[name], self.lora_A[name].weight, self.lora_B[name].weight
    result = self.base_layer(x)
    if result._is_view():  # of bitsandbytes' own function, which forbids writing into it
        result = result.clone()
    return add_low_rank(result, dropout(x), a, b, self.scaling[name])


def _part(layer: Any, x: "Tensor") -> Part | None:
    """A layer as one function of x; none where it cannot be one."""
    import torch

    name, base = _name(layer), layer.base_layer
    if name is None or x.device.type not in WHOLE:
        return None
    dropout = layer.lora_dropout[name]
    if dropout.training and type(dropout) is not torch.nn.Identity:
        return None
    if "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks:
        return None
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and (bias.requires_grad or bias.dtype != x.dtype)):
        return None
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return None
    values: Callable[[], Tensor] | None = None
    if type(base) is torch.nn.Linear:
        values = (lambda: weight) if weight.dtype == x.dtype else None
    elif torch.is_grad_enabled():  # bitsandbytes multiplies the few rows of answers by 4 bits
        values = _quantized(base, x.dtype)
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Part(layer.scaling[name], a, b, values, bias) if values else None


def _quantized(base: Any, dtype: Any) -> "Callable[[], Tensor] | None":
    """What gives the values of a 4-bit layer's weight."""
    state = fused_nf4.state_of(base)
    if not fused_nf4.is_layer(base) or state is None or base.compute_dtype != dtype:
        return None
    if tuple(state.shape) != (base.out_features, base.in_features):
        return None
    return lambda: fused_nf4.weight(base.weight.data, state, dtype)


def _adapted(x: "Tensor", parts: "Sequence[Part]") -> "tuple[Tensor, ...]":
    """The results of layers that read x and have one scale."""
    factors = [factor for part in parts for factor in (part.a, part.b)]
    frozen = tuple((part.weight, part.bias) for part in parts)
    return _whole_function().apply(x, parts[0].scale, frozen, *factors)


def _stacked(matrices: "Sequence[Tensor]") -> "Tensor":
    """Matrices [R, I] one below the other: a view where they lie so, as ``refresh`` places its copies."""
    import torch

    first, end = matrices[0], matrices[0].data_ptr()
    for matrix in matrices:
        alike = matrix.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not alike or matrix.data_ptr() != end or not matrix.is_contiguous():
            return torch.cat([*matrices])
        end += matrix.numel() * matrix.element_size()
    return first.as_strided((sum(map(len, matrices)), first.shape[1]), (first.shape[1], 1))


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
            low_a, low_b = cast(a, dtype), cast(b, dtype)
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
    """Base and update of layers at once: one gradient of x, and nothing of bitsandbytes' own bookkeeping."""
    import torch

    class Adapted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, scale, frozen, *factors):  # noqa: ANN001, ANN002, ANN205
            flat, lows = x.reshape(-1, x.shape[-1]), [cast(f, x.dtype) for f in factors]
            a, *b = _stacked(lows[::2]), *lows[1::2]
            low = x.new_empty(len(flat), len(a))  # scaled, as the gradient of b takes it
            low.addmm_(flat, a.T, beta=0, alpha=scale)
            sizes, results = [len(part) for part in lows[::2]], []
            for (weight, bias), part, each in zip(frozen, low.split(sizes, 1), b, strict=True):
                results.append(torch.nn.functional.linear(x, weight(), bias))
                results[-1].view(-1, len(each)).addmm_(part, each.T)
            ctx.save_for_backward(flat, low, a, *b)
            ctx.set_materialize_grads(False)
            ctx.scale, ctx.frozen, ctx.sizes = scale, frozen, sizes
            ctx.dtypes, ctx.shape = [f.dtype for f in factors], x.shape
            return tuple(results)

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN002, ANN205
            flat, low, a, *b = ctx.saved_tensors
            through_b = torch.empty_like(low)  # [N, R]
            parts = [x.split(ctx.sizes, 1) for x in (low, through_b)]
            d_x, d_b = None, []
            for grad, each, of_low, through, (weight, _), dtype in zip(
                grads, b, *parts, ctx.frozen, ctx.dtypes[1::2], strict=True
            ):
                if grad is None:  # nothing reads this layer's result
                    d_b.append(None)
                    through.zero_()
                    continue
                rows = grad.reshape(-1, grad.shape[-1])  # [N, O]
                through.addmm_(rows, each, beta=0, alpha=ctx.scale)
                d_b.append(_product(rows.T, of_low, dtype))
                if ctx.needs_input_grad[0]:
                    d_x = rows @ weight() if d_x is None else d_x.addmm_(rows, weight())
            if d_x is not None:
                d_x = d_x.addmm_(through_b, a).view(ctx.shape)
            d_a = _product(through_b.T, flat, ctx.dtypes[0]).split(ctx.sizes)
            return d_x, None, None, *(d for pair in zip(d_a, d_b, strict=True) for d in pair)

    return Adapted
