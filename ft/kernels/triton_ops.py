"""Triton kernels: losses of rows, and 4-bit weights. Imports Triton at its top.

All arithmetic is in fp32, rounded where PyTorch's own operations would round. Offsets of rows are
64-bit: 8,192 rows of 262,144 words are 2**31 numbers. Names in capitals are compiled in.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false

import triton
import triton.language as tl


@triton.jit
def tanh(x):
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
            z = softcap * tanh(z / softcap)
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
                wanted = softcap * tanh(wanted / softcap)
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
            bent = tanh(z / softcap)
            z = softcap * bent
            slope = kept * (1.0 - bent * bent)
        gradient = (tl.exp(z - lse) - tl.where(words == target, 1.0, 0.0)) * slope
        tl.store(start + words, gradient.to(logits.dtype.element_ty), mask=inside)


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
