"""The 4-bit layers of bitsandbytes on a CPU, each weight dequantised piece by piece and multiplied at once."""

import functools
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PIECE = 2**22  # values; 8 MiB in bfloat16: processors cache that, and malloc keeps it for the next


def install(model: Any) -> None:
    """Let every 4-bit layer of ``model``, which is on a CPU, compute in ``pieces``.

    bitsandbytes makes each weight whole, anew for the forward and for the backward: beyond 32 MiB the
    system clears that memory page by page, which takes several times as long as the dequantisation.
    Its forward would also, once in eval mode on a CPU with AVX512-BF16, repack the weight in place
    for a kernel without a backward, after which every gradient is wrong.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.forward = types.MethodType(_forward, module)


def pieces(weight: Any, dtype: "torch.dtype") -> Iterator[tuple[slice, "torch.Tensor"]]:
    """The values of a 4-bit ``weight`` [O, I]: some of its rows, and what they hold [rows, I].

    A value is a product in float32, rounded to ``dtype`` once, as in bitsandbytes to the bit; only
    where the rows are no whole blocks, bitsandbytes 0.50.2 with AVX-512 takes scales of wrong
    blocks. It does not where there is one row, and so it is told there is.
    """
    import torch
    from bitsandbytes.functional import dequantize_blockwise

    state, size = weight.quant_state, weight.quant_state.blocksize
    codes, scales = weight.detach().view(-1).view(torch.uint8), state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    rows, width = state.shape
    some = max(PIECE // (width * size), 1) * size  # whole blocks, whatever the width
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


def _forward(self: Any, x: "torch.Tensor") -> "torch.Tensor":
    compute = self.compute_dtype or x.dtype
    bias = None if self.bias is None else self.bias.to(compute)
    return _function().apply(x.to(compute), self.weight, bias).to(x.dtype)


@functools.cache
def _function() -> Any:
    import torch

    class Linear(torch.autograd.Function):
        """``x @ weight.T + bias``; nothing but the 4-bit weight is kept for the backward."""

        @staticmethod
        def forward(ctx, x, weight, bias):  # noqa: ANN001, ANN205
            ctx.weight = weight
            result = x.new_empty(*x.shape[:-1], weight.quant_state.shape[0])
            flat, out = x.reshape(-1, x.shape[-1]), result.view(-1, result.shape[-1])
            for rows, values in pieces(weight, x.dtype):
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
                width = ctx.weight.quant_state.shape[1]
                total = torch.zeros(len(flat), width)  # bfloat16 would round every sum
                for rows, values in pieces(ctx.weight, grad.dtype):
                    total += flat[:, rows] @ values
                d_x = total.to(grad.dtype).view(*grad.shape[:-1], width)
            if ctx.needs_input_grad[2]:
                d_bias = flat.sum(0)
            return d_x, None, d_bias

    return Linear
