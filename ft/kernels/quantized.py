"""Linear layers on a CPU whose weights are quantised: bitsandbytes' 4-bit ones, and int8 ones for inference.

A 4-bit weight is dequantised piece by piece and multiplied at once. An int8 weight has a scale for each
output, and its inputs come in bf16.
"""

import types
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ft.kernels.fused_nf4 import state_of

# values of a 4-bit weight at a time: 8 MiB in bfloat16, which processors cache, and malloc keeps for the next
NF4_PIECE = 2**22
LARGEST = 127
ROWS = 16  # beyond them a weight is read once into fp32, piece by piece, rather than for each row
WIDTH = 16  # the kernel for few rows reads a weight's rows by so many, and beyond their end
INT8_PIECE = 2**20  # weights at a time: they stay in the processor's cache


def install_nf4(model: Any) -> None:
    """Let every 4-bit layer of ``model``, which is on a CPU, compute in ``pieces``.

    bitsandbytes makes each weight whole, anew for the forward and for the backward: beyond 32 MiB the
    system clears that memory page by page, which takes several times as long as the dequantisation.
    Its forward would also, once in eval mode on a CPU with AVX512-BF16, repack the weight in place
    for a kernel without a backward, after which every gradient is wrong.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.forward = types.MethodType(_nf4_forward, module)


def pieces(weight: Any, dtype: torch.dtype, state: Any = None) -> Iterator[tuple[slice, Tensor]]:
    """The values of a 4-bit ``weight`` [O, I]: some of its rows, and what they hold [rows, I].

    ``state`` is its ``QuantState``, by default its own.

    A value is a product in float32, rounded to ``dtype`` once, as in bitsandbytes to the bit; only
    where the rows are no whole blocks, bitsandbytes 0.50.2 with AVX-512 takes scales of wrong
    blocks. It does not where there is one row, and so it is told there is.
    """
    from bitsandbytes.functional import dequantize_blockwise

    state = weight.quant_state if state is None else state
    size = state.blocksize
    codes, scales = weight.detach().view(-1).view(torch.uint8), state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    rows, width = state.shape
    some = max(NF4_PIECE // (width * size), 1) * size  # whole blocks, whatever the width
    for first in range(0, rows, some):
        last = min(first + some, rows)
        start, end = first * width, last * width
        values = torch.ops.bitsandbytes.dequantize_4bit(
            codes[start // 2 : (end + 1) // 2],
            scales[start // size : -(-end // size)],
            size,
            state.quant_type,
            [1, end - start] if width % size else [last - first, width],
            dtype,
        )
        yield slice(first, last), values.view(-1, width)


def _nf4_forward(self: Any, x: Tensor) -> Tensor:
    compute = self.compute_dtype or x.dtype
    bias = None if self.bias is None else self.bias.to(compute)
    return _Nf4Product.apply(x.to(compute), self.weight, bias, state_of(self)).to(x.dtype)


class _Nf4Product(torch.autograd.Function):
    """``x @ weight.T + bias``; nothing but the 4-bit weight is kept for the backward."""

    @staticmethod
    def forward(ctx, x, weight, bias, state):  # noqa: ANN001, ANN205
        ctx.weight, ctx.state = weight, state
        result = x.new_empty(*x.shape[:-1], state.shape[0])
        flat, out = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
        for rows, values in pieces(weight, x.dtype, state):
            if bias is None:
                torch.mm(flat, values.T, out=out[:, rows])
            else:
                torch.addmm(bias[rows], flat, values.T, out=out[:, rows])
        return result  # no view, so that an adapter may add into it

    @staticmethod
    def backward(ctx, *grads):  # noqa: ANN001, ANN205
        (grad,) = grads
        flat = grad.reshape(-1, grad.shape[-1])
        d_x = d_bias = None
        if ctx.needs_input_grad[0]:
            width = ctx.state.shape[1]
            total = torch.zeros(len(flat), width)  # bfloat16 would round every sum
            for rows, values in pieces(ctx.weight, grad.dtype, ctx.state):
                total += flat[:, rows] @ values
            d_x = total.to(grad.dtype).view(*grad.shape[:-1], width)
        if ctx.needs_input_grad[2]:
            d_bias = flat.sum(0)
        return d_x, None, d_bias, None


def install_int8(model: Any, names: Iterable[str]) -> None:
    """Replace the linear layers of these names by ``Int8Linear`` ones."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, Int8Linear(model.get_submodule(name)))


def product(x: Tensor, whole: Tensor, scale: Tensor) -> Tensor:
    """``x @ (whole * scale[:, None]).T`` for x [N, I], whole int8 [O, I] and scale bf16 [O], in x's dtype.

    Few rows are rounded to bf16 and read the weight as bytes: a batch of one takes as long as that.
    """
    if len(x) <= ROWS and x.shape[1] % WIDTH == 0:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), whole, scale).to(x.dtype)
    found = x.new_empty(len(x), len(whole))
    step = max(1, INT8_PIECE // whole.shape[1])
    for start in range(0, len(whole), step):
        piece = slice(start, start + step)
        torch.mm(x, whole[piece].to(x.dtype).T, out=found[:, piece])
    return found.mul_(scale)


class Int8Linear(torch.nn.Linear):
    """A linear layer whose weight is int8. PEFT's adapters go on it as on any."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        torch.nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach().float()
        self._scale = weight.abs().amax(1).div_(LARGEST).clamp_(min=1e-30).bfloat16()
        steps = (weight / self._scale.float()[:, None]).round_()  # `weight` may be the embedding's
        self._whole = steps.clamp_(-LARGEST, LARGEST).to(torch.int8)
        self.bias = None if linear.bias is None else linear.bias.detach()

    @property
    def weight(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The weight as it is used [O, I], made anew with each call."""
        return self._whole * self._scale.float()[:, None]

    def forward(self, input: Tensor) -> Tensor:
        found = product(input.reshape(-1, self.in_features), self._whole, self._scale)
        found = found.view(*input.shape[:-1], self.out_features)
        return found if self.bias is None else found.add_(self.bias)
