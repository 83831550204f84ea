"""Triton kernels: RMSNorm, GEGLU, rotary embedding. Imports Triton at its top.

All arithmetic is in fp32, rounded where PyTorch's own operations would round. Names in capitals are compiled in.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false

import triton
import triton.language as tl

from ft.kernels.triton_ops import tanh


@triton.jit
def _places(row, column, width, heads, apart):
    """Of rows [N, D]: ``heads`` of them lie one after the other, the next so many ``apart`` from their beginning."""
    first = (row // heads).to(tl.int64) * apart + (row % heads) * width
    return first[:, None] + column[None, :]


@triton.jit
def norm_forward(
    x,  # [N, D] by ``heads`` and ``apart``
    weight,  # [D] with SCALED
    out,  # [N, D], one after the other
    rows,
    width,
    heads,
    apart,
    eps,
    OFFSET: tl.constexpr,  # what is added to the weight: Gemma 1 to 3 keep it around zero
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < width)[None, :]
    place = row.to(tl.int64)[:, None] * width + column[None, :]
    source = x + _places(row, column, width, heads, apart)
    value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)
    value = value * scale[:, None]
    if SCALED:
        w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
        value = value * (w + OFFSET)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


@triton.jit
def norm_backward(
    x,  # as forward
    weight,
    d_out,  # [N, D], one after the other
    d_x,  # [N, D] out, rows ``d_apart``
    d_weight,  # [programs, D] out with TRAINED, in fp32: each program's share
    rows,
    width,
    heads,
    apart,
    d_apart,
    eps,
    each,  # rows of a program
    OFFSET: tl.constexpr,
    SCALED: tl.constexpr,
    TRAINED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    column = tl.arange(0, BLOCK)
    share = tl.zeros([BLOCK], tl.float32)
    if SCALED:
        w = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + OFFSET
    for at in range(0, each, ROWS):
        row = tl.program_id(0) * each + at + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        source = x + _places(row, column, width, heads, apart)
        value = tl.load(source, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(d_out + place, mask=inside, other=0.0).to(tl.float32)
        scale = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
        value = value * scale
        if TRAINED:
            share += tl.sum(gradient * value, 0)
        if SCALED:
            gradient = gradient * w[None, :]
        along = (tl.sum(gradient * value, 1) / width)[:, None]
        gradient = scale * (gradient - value * along)
        into = d_x + row.to(tl.int64)[:, None] * d_apart + column[None, :]
        tl.store(into, gradient.to(d_x.dtype.element_ty), mask=inside)
    if TRAINED:
        place = tl.program_id(0).to(tl.int64) * width + column
        tl.store(d_weight + place, share, mask=column < width)


@triton.jit
def _gelu(x):
    """GELU's tanh approximation without its factor x, and the hyperbolic tangent in it."""
    t = tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
    return 0.5 * (1.0 + t), t


@triton.jit
def geglu_forward(
    gate,  # [N, D], as ``up`` with rows ``apart``
    up,
    out,  # [N, D], one after the other
    width,
    apart,
    parts,  # of a row, BLOCK numbers each
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // parts).to(tl.int64)
    column = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * apart + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * apart + column, mask=inside, other=0.0).to(tl.float32)
    share, _ = _gelu(g)
    active = (g * share).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * width + column, (active * u).to(out.dtype.element_ty), mask=inside)


@triton.jit
def geglu_backward(
    gate,
    up,
    d_out,  # [N, D], one after the other
    d_gate,  # out, as ``d_up`` with rows ``d_apart``
    d_up,
    width,
    apart,
    d_apart,
    parts,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // parts).to(tl.int64)
    column = (tl.program_id(0) % parts) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    g = tl.load(gate + row * apart + column, mask=inside, other=0.0).to(tl.float32)
    u = tl.load(up + row * apart + column, mask=inside, other=0.0).to(tl.float32)
    d = tl.load(d_out + row * width + column, mask=inside, other=0.0).to(tl.float32)
    share, t = _gelu(g)
    active = (g * share).to(d_up.dtype.element_ty).to(tl.float32)
    place = row * d_apart + column
    tl.store(d_up + place, (d * active).to(d_up.dtype.element_ty), mask=inside)
    d = (d * u).to(d_gate.dtype.element_ty).to(tl.float32)
    inner = 0.7978845608028654 * (1.0 + 0.134145 * g * g)
    slope = share + 0.5 * g * (1.0 - t * t) * inner
    tl.store(d_gate + place, (d * slope).to(d_gate.dtype.element_ty), mask=inside)


@triton.jit
def _rounded(x, like):
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def _turn(x, x_head, out, out_head, c1, c2, s1, s2, heads, half, inside, BACKWARD, HEADS, BLOCK):
    """Turn the heads of a token, which begin at ``x``, by its angles [1, BLOCK]; half of ``inside`` is beside it."""
    head, pair = tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside = (head < heads) & inside
    first = tl.load(x + head * x_head + pair, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + head * x_head + pair + half, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        low = _rounded(first * c1, x) + _rounded(second * s2, x)
        high = _rounded(second * c2, x) - _rounded(first * s1, x)
    else:
        low = _rounded(first * c1, x) - _rounded(second * s1, x)
        high = _rounded(second * c2, x) + _rounded(first * s2, x)
    into = out + head * out_head + pair
    tl.store(into, low.to(out.dtype.element_ty), mask=inside)
    tl.store(into + half, high.to(out.dtype.element_ty), mask=inside)


@triton.jit
def rotate(
    x,  # [B, H, T, D] by its strides; the last is 1
    out,
    y,  # with BOTH: another, [B, K, T, D]
    out_y,
    cos,  # [B or 1, T, D] by its strides, as is sin
    sin,
    x_batch,
    x_head,
    x_time,
    out_batch,
    out_head,
    out_time,
    y_batch,
    y_head,
    y_time,
    out_y_batch,
    out_y_head,
    out_y_time,
    cos_batch,  # 0 where all rows stand at the same positions
    cos_time,
    heads,
    heads_y,
    half,  # D / 2
    BACKWARD: tl.constexpr,
    BOTH: tl.constexpr,
    HEADS: tl.constexpr,
    HEADS_Y: tl.constexpr,
    BLOCK: tl.constexpr,
):
    time = tl.program_id(0).to(tl.int64)
    batch = tl.program_id(1).to(tl.int64)
    pair = tl.arange(0, BLOCK)
    angle = batch * cos_batch + time * cos_time + pair
    near = pair < half
    c1 = tl.load(cos + angle, mask=near, other=0.0).to(tl.float32)[None, :]
    c2 = tl.load(cos + angle + half, mask=near, other=0.0).to(tl.float32)[None, :]
    s1 = tl.load(sin + angle, mask=near, other=0.0).to(tl.float32)[None, :]
    s2 = tl.load(sin + angle + half, mask=near, other=0.0).to(tl.float32)[None, :]
    near = near[None, :]
    x += batch * x_batch + time * x_time
    out += batch * out_batch + time * out_time
    _turn(x, x_head, out, out_head, c1, c2, s1, s2, heads, half, near, BACKWARD, HEADS, BLOCK)
    if BOTH:
        y += batch * y_batch + time * y_time
        out_y += batch * out_y_batch + time * out_y_time
        x, x_head, out, out_head, heads = y, y_head, out_y, out_y_head, heads_y
        _turn(x, x_head, out, out_head, c1, c2, s1, s2, heads, half, near, BACKWARD, HEADS_Y, BLOCK)
