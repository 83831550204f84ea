"""A 4-bit weight of bitsandbytes brought to 16 bits by one Triton kernel in place of three of bitsandbytes' own.

QLoRA (arXiv:2305.14314) keeps the scales of its blocks in 8 bits; bitsandbytes brings those to
float32 and adds their mean before a third kernel reads them. The values are the same to the bit.
"""

import functools
from typing import TYPE_CHECKING, Any

from ft.kernels import fused

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 32  # blocks of a program: each of its threads reads 4 bytes and writes 16 at once


def weight(codes: "Tensor", state: Any, dtype: Any, out: "Tensor | None" = None) -> "Tensor":
    """The values of ``codes``, stored as whatever dtype, and their ``QuantState`` in ``dtype``, [O, I].

    ``out``: where they are to be written.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit

    codes = codes.view(torch.uint8)

    if usable(codes, state, dtype) and works(codes.device, dtype):
        return decode(codes, state, dtype, out)
    direct = out is not None and out.is_cuda and out.dtype == state.dtype and out.is_contiguous()
    values = dequantize_4bit(codes, state, out=out if direct else None)
    return values.to(dtype) if out is None or direct else out.copy_(values)


def is_layer(module: Any) -> bool:
    """Whether this is bitsandbytes' linear layer of 4-bit weights; PEFT calls its layer around it the same."""
    kind = type(module)
    return kind.__name__ == "Linear4bit" and kind.__module__.startswith("bitsandbytes")


def state_of(layer: Any) -> Any:
    """The ``QuantState`` of a 4-bit layer; none of a layer that is not in 4 bits.

    Where processes share the weights, the parameter that stands for them has none, and its module keeps it.
    """
    state = getattr(layer.weight, "quant_state", None)
    return getattr(layer, "quant_state", None) if state is None else state


def usable(codes: "Tensor", state: Any, dtype: Any) -> bool:
    """Whether the kernel can take these: NF4 with scales of 8 bits, in whole blocks, rounded once."""
    import torch

    return (
        state.quant_type == "nf4"
        and state.nested
        and state.dtype in (dtype, torch.float32)
        and codes.dtype == torch.uint8
        and codes.is_contiguous()
        and 2 * codes.numel() % state.blocksize == 0
        and fused.usable(state.code, state.offset, state.state2.code, state.state2.absmax)
    )


def decode(codes: "Tensor", state: Any, dtype: Any, out: "Tensor | None" = None) -> "Tensor":
    """``weight`` by the kernel."""
    from ft.kernels import triton_ops

    out = codes.new_empty(state.shape, dtype=dtype) if out is None else out
    blocks = 2 * codes.numel() // state.blocksize
    nested = state.state2
    tensors = codes, state.absmax, state.code, nested.code, nested.absmax, state.offset, out
    shape = {"HALF": state.blocksize // 2, "NESTED": nested.blocksize, "GROUPS": GROUPS}
    # a product and a sum in one step would round scales otherwise than bitsandbytes does
    options = {"num_warps": 8, "enable_fp_fusion": False}
    triton_ops.nf4_decode[(-(-blocks // GROUPS),)](*tensors, blocks, **shape, **options)
    return out


@functools.cache
def works(device: Any, dtype: Any) -> bool:
    """Whether the kernel answers here as bitsandbytes does; tried once, on a weight that is drawn here."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    generator = torch.Generator(device).manual_seed(0)
    values = torch.randn(75, 256, device=device, generator=generator).to(dtype)  # 300 blocks
    codes, state = quantize_4bit(values, compress_statistics=True, quant_type="nf4")
    try:
        return torch.equal(decode(codes, state, dtype), dequantize_4bit(codes, state))
    except Exception:  # whatever Triton lacks here: bitsandbytes does not need it
        return False
