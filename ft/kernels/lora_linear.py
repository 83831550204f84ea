"""The forward and backward of LoRA layers in the dtype of their base; those that read the same input are one function."""

import functools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ft.kernels import fused_nf4, joined, lora_copies
from ft.kernels.lora_copies import cast

if TYPE_CHECKING:
    from torch import Tensor

EIGHT = 8  # numbers of 16 bits: rows of whole multiples lie as tensor cores like to read them
TOGETHER = "_together"  # of a layer: what computes it with those that read the same input


def install(model: Any) -> None:
    """Let the LoRA layers of a PEFT model compute ``add_low_rank`` where it is what PEFT computes.

    PEFT brings the input of each layer to the adapter's float32 and multiplies there, or, under
    autocast, brings it back again first. With several adapters, DoRA, a bias or merged weights, a layer
    answers as PEFT wrote it. Queries, keys and values, and a gated MLP's two first layers, are computed
    at the first one's call, as one layer: fewer and larger products, and one gradient of what they read. On a
    GPU frozen weights of 16 bits are moved for that, to lie one below the other; those without an adapter too, which
    answers would move later, under the CUDA graphs of a training.
    """
    import torch
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
    for module in model.modules():
        if getattr(module, "is_kv_shared_layer", False):
            continue  # its keys are another layer's
        for names in joined.SIBLINGS:
            found: list[Any] = [getattr(module, name, None) for name in names]
            layers = [layer for layer in found if type(layer) in kinds]
            if len(layers) > 1:
                # values wait for their gradient, and queries and keys only where they have norms
                apart = "v_proj" in names and not hasattr(module, "q_norm")
                compute = functools.partial(_alike, tuple(layers), apart)
                together = joined.Together(layers, compute)
                _lay(layers)
                for layer in layers:
                    setattr(layer, TOGETHER, together)
    for module in model.modules():
        if type(module) in kinds and not hasattr(module, TOGETHER):
            _lay([module])
    joined.lay_plain(model)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # weights lay there before


def _lay(layers: "Sequence[Any]") -> None:
    """Move frozen weights to lie one below the other, with room behind them for copies of the adapter's A."""
    names = [_name(layer) for layer in layers]
    if None in names:
        return
    factors = [layer.lora_A[name].weight for layer, name in zip(layers, names, strict=True)]
    ranks = [len(factor) for factor in factors]
    room = joined.lay([layer.base_layer for layer in layers], sum(ranks))
    if room is not None:
        for factor, part in zip(factors, room.split(ranks), strict=True):
            setattr(factor, lora_copies.ROOM, part)


def add_low_rank(result: "Tensor", x: "Tensor", a: "Tensor", b: "Tensor", scale: float) -> "Tensor":
    """``result + scale * x @ a.T @ b.T``, written into ``result``.

    result [..., O], x [..., I], a [R, I], b [O, R]; computed in the dtype of ``result``, which
    matrix products accumulate in float32; the gradients of a and b come in their own dtype.
    """
    return _function().apply(result, x, a, b, scale)


class Part(NamedTuple):
    """A layer where base and update can be one function."""

    scale: float
    a: "Tensor"  # [R, I]
    b: "Tensor"  # [O, R]
    base: Any  # the frozen layer: a weight [O, I] in the dtype of the input, or its 4-bit codes
    state: Any  # of the codes


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
    if name is None or x.device.type not in joined.DEVICES:
        return None
    dropout = layer.lora_dropout[name]
    # TRL sets p to 0 where it compares probabilities
    idle = type(dropout) is torch.nn.Identity or getattr(dropout, "p", None) == 0
    if dropout.training and not idle:
        return None
    if "forward" in vars(base) or base._forward_hooks or base._forward_pre_hooks:
        return None
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and (bias.requires_grad or bias.dtype != x.dtype)):
        return None
    if x.dtype == torch.float32 and torch.is_autocast_enabled(x.device.type):
        return None
    state: Any = None
    if type(base) is torch.nn.Linear:
        if weight.dtype != x.dtype:
            return None
    elif (state := _state(base, x.dtype)) is None:
        return None
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    return Part(layer.scaling[name], a, b, base, state)


def _state(base: Any, dtype: Any) -> Any:
    """The ``QuantState`` of a 4-bit layer whose weight is to be brought to ``dtype``."""
    import torch

    if not torch.is_grad_enabled():  # bitsandbytes multiplies the few rows of answers by 4 bits
        return None
    state = fused_nf4.state_of(base)
    if not fused_nf4.is_layer(base) or state is None or base.compute_dtype != dtype:
        return None
    return state if tuple(state.shape) == (base.out_features, base.in_features) else None


def _alike(layers: "Sequence[Any]", apart: bool, x: "Tensor") -> "Sequence[Tensor]":
    """What layers that read x make of it, where they are one."""
    parts = [part for layer in layers if (part := _part(layer, x))]
    whole = len(parts) == len(layers) and _are_one(parts)
    return _adapted(x, parts, apart) if whole else ()


def _are_one(parts: "Sequence[Part]") -> bool:
    """Whether layers that read the same are one: of one scale, their weights in 4 bits or one below the other."""
    alike = {(p.scale, p.state is None, p.base.bias is None) for p in parts}
    coded = parts[0].state is not None
    return len(alike) == 1 and (coded or joined.adjacent([p.base.weight for p in parts]))


def _values(parts: "Sequence[Part]", a: "Tensor | None", dtype: Any) -> "Tensor":
    """The frozen weights of layers that are one [ΣO, I]; with ``a`` [ΣR, I], as ``_below`` has it, and that below them."""
    weights = [part.base.weight.data for part in parts]
    more = 0 if a is None else len(a)
    if parts[0].state is None:
        whole = joined.stacked(weights)
        shape = len(whole) + more, whole.shape[1]
        return whole.as_strided(shape, (shape[1], 1)) if more else whole
    if len(parts) == 1 and not more:
        return fused_nf4.weight(weights[0], parts[0].state, dtype)
    heights = [part.state.shape[0] for part in parts]
    whole = weights[0].new_empty(sum(heights) + more, parts[0].state.shape[1], dtype=dtype)
    *places, below = whole.split([*heights, more])
    for weight, part, out in zip(weights, parts, places, strict=True):
        fused_nf4.weight(weight, part.state, dtype, out)
    if a is not None:
        below.copy_(a)
    return whole


def _below(parts: "Sequence[Part]", a: "Sequence[Tensor]") -> bool:
    """Whether A [R, I] of all can come out of the product with their weights: copies that lie, or are put, below these."""
    rows = sum(len(each) for each in a) + sum(len(part.b) for part in parts)
    if rows % EIGHT or any(part.base.bias is not None for part in parts):
        return False
    if parts[0].state is not None:
        return a[0].element_size() == 2 and joined.adjacent(a)
    return joined.adjacent([*(part.base.weight for part in parts), *a])


def _adapted(x: "Tensor", parts: "Sequence[Part]", apart: bool = False) -> "tuple[Tensor, ...]":
    """The results of layers that read x and are one; the last one's ``apart`` from the others in memory."""
    factors = [factor for part in parts for factor in (part.a, part.b)]
    return _whole_function().apply(x, tuple(parts), apart, *factors)


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
    except RuntimeError:  # not on this device
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
            low = (flat @ low_a.T).to(dtype)  # [N, R]; autocast would leave it in 16 bits
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
        def forward(ctx, x, parts, apart, *factors):  # noqa: ANN001, ANN002, ANN205
            flat, lows = x.reshape(-1, x.shape[-1]), [cast(f, x.dtype) for f in factors]
            factors_a, b = lows[::2], lows[1::2]
            a, scale, below = joined.stacked(factors_a), parts[0].scale, _below(parts, factors_a)
            ranks, heights = [len(part) for part in factors_a], [len(each) for each in b]
            biases = [bias for part in parts if (bias := part.base.bias) is not None]
            bias = (biases[0] if len(biases) == 1 else torch.cat(biases)) if biases else None
            weights = _values(parts, a if below else None, x.dtype)
            whole = torch.nn.functional.linear(x, weights, bias)
            whole, more = whole.split([sum(heights), len(a) * below], -1)
            # scaled, as the gradient of b takes it
            if below:
                low = more.reshape(-1, len(a)) * scale
            else:
                low = x.new_empty(len(flat), len(a)).addmm_(flat, a.T, beta=0, alpha=scale)
            added = whole.view(-1, sum(heights)).split(heights, 1)
            for rows, part, each in zip(added, low.split(ranks, 1), b, strict=True):
                rows.addmm_(part, each.T)
            ctx.save_for_backward(flat, low, a, *b)
            ctx.set_materialize_grads(False)
            ctx.parts, ctx.sizes, ctx.shape, ctx.below = parts, (ranks, heights), x.shape, below
            results: list[Any] = [*whole.split(heights, -1)] if len(heights) > 1 else [whole]
            if apart:
                results[-1] = results[-1].clone()
            # no views, which nothing may write into: Gemma 3n scales what projects its inputs of layers
            return tuple(each.new_empty(0).set_(each) for each in results)

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN002, ANN205
            flat, low, a, *b = ctx.saved_tensors
            (ranks, heights), parts, tall = ctx.sizes, ctx.parts, sum(ctx.sizes[1])
            found = joined.side_by_side(grads, heights, low, len(a) * ctx.below)
            rows = found[:, :tall]  # [N, ΣO]
            room = found[:, tall:] if found.shape[1] > tall else None
            through_b = torch.empty_like(low) if room is None else room  # [N, ΣR]
            pieces = rows.split(heights, 1), low.split(ranks, 1), through_b.split(ranks, 1)
            d_b = []
            for of_result, of_low, through, each, part in zip(*pieces, b, parts, strict=True):
                through.addmm_(of_result, each, beta=0, alpha=part.scale)
                d_b.append(_product(of_result.T, of_low, part.b.dtype))
            d_x = None
            if ctx.needs_input_grad[0]:
                d_x = found @ _values(parts, None if room is None else a, rows.dtype)
                d_x = d_x if room is not None else d_x.addmm_(through_b, a)
                d_x = d_x.view(ctx.shape)
            d_a = _product(through_b.T, flat, parts[0].a.dtype).split(ranks)
            return d_x, None, None, *(d for pair in zip(d_a, d_b, strict=True) for d in pair)

    return Adapted
