"""Triton kernels: losses of rows, RMSNorm, GEGLU, rotary embedding, 4-bit weights. Imports Triton at its top.

All arithmetic is in fp32, rounded where PyTorch's own operations would round. Offsets of rows are
64-bit: 8,192 rows of 262,144 words are 2**31 numbers. Names in capitals are compiled in.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false

import triton
import triton.language as tl


@triton.jit
def _tanh(x):
    """Within 1e-7 of the true value: near zero by its series, where 1 - exp(-2x) would cancel."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x * (1.0 + s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835)))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0.0, -far, far))


@triton.jit
def head_statistics(
    logits,  # [N, V], rows one after the other
    targets,  # [N] int64, negative where nothing is supervised
    tops,  # [N, P] out: the highest capped logit of each part of a row
    totals,  # [N, P] out: the sum of exponentials, relative to it
    chosen,  # [N] out: the target's capped logit
    ties,  # [N, P] out with COUNT: how many logits are the highest
    vocabulary,
    softcap,
    CAP: tl.constexpr,
    COUNT: tl.constexpr,
    SPAN: tl.constexpr,  # words of a part
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    start = logits + row * vocabulary
    top = float("-inf")
    total = tl.zeros([BLOCK], tl.float32)
    tied = tl.zeros([BLOCK], tl.float32)
    found = tl.zeros([BLOCK], tl.float32)
    target = tl.maximum(tl.load(targets + row), 0).to(tl.int32)
    for at in range(0, SPAN, BLOCK):
        words = part * SPAN + at + tl.arange(0, BLOCK)
        inside = words < vocabulary
        z = tl.load(start + words, mask=inside, other=0.0).to(tl.float32)
        if CAP:
            z = softcap * _tanh(z / softcap)
        z = tl.where(inside, z, float("-inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        if COUNT:
            tied = tl.where(higher > top, 0.0, tied) + tl.where(z == higher, 1.0, 0.0)
            found += tl.where(words == target, z, 0.0)
        top = higher
    place = row * tl.num_programs(1) + part
    tl.store(tops + place, top)
    tl.store(totals + place, tl.sum(total, 0))
    if COUNT:
        tl.store(ties + place, tl.sum(tied, 0))
    if (target >= part * SPAN) & (target < (part + 1) * SPAN):
        if COUNT:  # from the same instructions as the highest, which it is compared with
            wanted = tl.sum(found, 0)
        else:
            wanted = tl.load(start + target).to(tl.float32)
            if CAP:
                wanted = softcap * _tanh(wanted / softcap)
        tl.store(chosen + row, wanted)


@triton.jit
def head_gradient(
    logits,  # [N, V] in; out: the gradient of each row's loss by them
    targets,
    tops,
    totals,
    chosen,
    losses,  # [N] out
    vocabulary,
    softcap,
    CAP: tl.constexpr,
    PARTS: tl.constexpr,  # a power of two, at least as many as there are parts
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    count = tl.num_programs(1)
    each = tl.arange(0, PARTS)
    top = tl.load(tops + row * count + each, mask=each < count, other=float("-inf"))
    total = tl.load(totals + row * count + each, mask=each < count, other=0.0)
    highest = tl.max(top, 0)
    lse = highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))
    target = tl.load(targets + row).to(tl.int32)
    kept = tl.where(target >= 0, 1.0, 0.0)
    if part == 0:
        tl.store(losses + row, tl.where(target >= 0, lse - tl.load(chosen + row), 0.0))
    start = logits + row * vocabulary
    for at in range(0, SPAN, BLOCK):
        words = part * SPAN + at + tl.arange(0, BLOCK)
        inside = words < vocabulary
        z = tl.load(start + words, mask=inside, other=0.0).to(tl.float32)
        slope = kept
        if CAP:
            bent = _tanh(z / softcap)
            z = softcap * bent
            slope = kept * (1.0 - bent * bent)
        gradient = (tl.exp(z - lse) - tl.where(words == target, 1.0, 0.0)) * slope
        tl.store(start + words, gradient.to(logits.dtype.element_ty), mask=inside)


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
    d_out,  # [N, D], as the next, one after the other
    d_x,  # out
    d_weight,  # [programs, D] out with TRAINED, in fp32: each program's share
    rows,
    width,
    heads,
    apart,
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
        tl.store(d_x + place, gradient.to(d_x.dtype.element_ty), mask=inside)
    if TRAINED:
        place = tl.program_id(0).to(tl.int64) * width + column
        tl.store(d_weight + place, share, mask=column < width)


@triton.jit
def _gelu(x):
    """GELU's tanh approximation without its factor x, and the hyperbolic tangent in it."""
    t = _tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))
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
    d_gate,  # out, as ``d_up`` with rows 2 D apart
    d_up,
    width,
    apart,
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
    place = row * 2 * width + column
    tl.store(d_up + place, (d * active).to(d_up.dtype.element_ty), mask=inside)
    d = (d * u).to(d_gate.dtype.element_ty).to(tl.float32)
    inner = 0.7978845608028654 * (1.0 + 0.134145 * g * g)
    slope = share + 0.5 * g * (1.0 - t * t) * inner
    tl.store(d_gate + place, (d * slope).to(d_gate.dtype.element_ty), mask=inside)


@triton.jit
def _rounded(x, like):
    return x.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
def rotate(
    x,  # [B, H, T, D] by its strides; the last is 1
    out,
    cos,  # [B or 1, T, D] by its strides, as is sin
    sin,
    x_batch,
    x_head,
    x_time,
    out_batch,
    out_head,
    out_time,
    cos_batch,  # 0 where all rows stand at the same positions
    cos_time,
    heads,
    half,  # D / 2
    BACKWARD: tl.constexpr,
    HEADS: tl.constexpr,
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
    head = tl.arange(0, HEADS)
    inside = (head < heads)[:, None] & near[None, :]
    source = x + batch * x_batch + time * x_time + head[:, None] * x_head + pair[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    if BACKWARD:
        low = _rounded(first * c1, x) + _rounded(second * s2, x)
        high = _rounded(second * c2, x) - _rounded(first * s1, x)
    else:
        low = _rounded(first * c1, x) - _rounded(second * s1, x)
        high = _rounded(second * c2, x) + _rounded(first * s2, x)
    into = out + batch * out_batch + time * out_time + head[:, None] * out_head + pair[None, :]
    tl.store(into, low.to(out.dtype.element_ty), mask=inside)
    tl.store(into + half, high.to(out.dtype.element_ty), mask=inside)


@triton.jit
def nf4_decode(
    codes,  # [blocks, HALF] bytes, the first of each two values in the high bits
    scales,  # [blocks] bytes
    levels,  # [16] what four bits stand for
    steps,  # [256] what a byte of ``scales`` stands for, of the top of NESTED of them
    tops,
    offset,  # one number, added to each scale
    out,  # [blocks, 2 HALF]
    blocks,
    HALF: tl.constexpr,
    NESTED: tl.constexpr,
    GROUPS: tl.constexpr,  # blocks of a program
):
    block = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    inside = block < blocks
    step = tl.load(scales + block, mask=inside, other=0).to(tl.int32)
    top = tl.load(tops + block // NESTED, mask=inside, other=0.0)
    scale = (tl.load(steps + step) * top + tl.load(offset))[:, None]
    start, inside = block.to(tl.int64)[:, None], inside[:, None]
    byte = tl.load(codes + start * HALF + tl.arange(0, HALF)[None, :], mask=inside, other=0)
    high, low = byte.to(tl.int32) >> 4, byte.to(tl.int32) & 15
    pair = tl.join(tl.load(levels + high) * scale, tl.load(levels + low) * scale)
    values = tl.reshape(pair, [GROUPS, 2 * HALF]).to(out.dtype.element_ty)
    tl.store(out + start * (2 * HALF) + tl.arange(0, 2 * HALF)[None, :], values, mask=inside)
