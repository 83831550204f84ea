"""Triton kernels: attention of one new token of each text to all before it, whose keys are shared among programs.

Flash-decoding (pytorch.org/blog/flash-decoding): a text's keys are cut into spans, which programs of their
own read, and a second kernel puts their sums together. Nothing in a launch depends on how many tokens
there are so far. Names in capitals are compiled in: GROUP queries and N keys of a tile.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false

import triton
import triton.language as tl

from ft.kernels.triton_attention import scores

CHANGING = ["length", "window", "span"]  # values that no kernel is compiled anew for


@triton.jit
def put(
    keys,  # [B, K, L, D] out, one after the other, as are ``values``
    values,
    k,  # [B, K, 1, D] by its strides, as is v
    v,
    at,  # [1] int64: the place among L
    length,
    k_batch,
    k_head,
    v_batch,
    v_head,
    heads,  # K
    D: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, head, column = row // heads, row % heads, tl.arange(0, D)
    place = (row * length + tl.load(at)) * D + column
    tl.store(keys + place, tl.load(k + batch * k_batch + head * k_head + column))
    tl.store(values + place, tl.load(v + batch * v_batch + head * v_head + column))


@triton.jit(do_not_specialize=CHANGING)
def spans(
    q,  # [B, H, 1, D] by its strides
    keys,  # [B, K, L, D], one after the other, as are ``values``
    values,
    seen,  # [B, L] bytes, 0 at padding
    at,  # [1] int64: the place of the new token, the last that is seen
    sums,  # [B, H, S, D] fp32 out: of each span, weighted values
    totals,  # [B, H, S] out: of their weights
    tops,  # [B, H, S] out: the score that weights are relative to, in units of log 2
    q_batch,
    q_head,
    length,  # L
    window,  # keys that a query sees, itself among them
    span,  # keys of a program
    heads,  # K
    group,  # H / K
    scale,
    softcap,
    CAP: tl.constexpr,
    D: tl.constexpr,
    GROUP: tl.constexpr,  # at least ``group``, as a product's rows
    N: tl.constexpr,
):
    row = tl.program_id(1).to(tl.int64)
    batch, head = row // heads, row % heads
    last = tl.load(at).to(tl.int32)
    each, column = tl.arange(0, GROUP), tl.arange(0, D)
    mine = each < group
    start = q + batch * q_batch + (head * group + each)[:, None] * q_head + column[None, :]
    query = tl.load(start, mask=mine[:, None], other=0.0)
    keys += row * length * D
    values += row * length * D
    top = tl.full([GROUP], float("-inf"), tl.float32)
    total = tl.zeros([GROUP], tl.float32)
    mixed = tl.zeros([GROUP, D], tl.float32)
    begin = tl.program_id(0) * span
    for tile in range(0, tl.cdiv(span, N)):
        place = begin + tile * N + tl.arange(0, N)
        visible = (place <= last) & (place > last - window) & (place < length)
        real = tl.load(seen + batch * length + place, mask=visible, other=0)
        visible = visible & (real != 0)
        where = place[:, None].to(tl.int64) * D + column[None, :]
        key = tl.load(keys + where, mask=visible[:, None], other=0.0)
        value = tl.load(values + where, mask=visible[:, None], other=0.0)
        s, _ = scores(tl.dot(query, tl.trans(key)), scale, softcap, CAP)
        s = tl.where(visible[None, :], s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # nothing is seen so far
        weight = tl.exp2(s - base[:, None])
        factor = tl.exp2(top - base)
        total = total * factor + tl.sum(weight, 1)
        mixed = tl.dot(weight.to(value.dtype), value, mixed * factor[:, None])
        top = higher
    count = tl.num_programs(0)
    result = (row * group + each) * count + tl.program_id(0)
    tl.store(totals + result, total, mask=mine)
    tl.store(tops + result, top, mask=mine)
    tl.store(sums + result[:, None] * D + column[None, :], mixed, mask=mine[:, None])


@triton.jit
def together(sums, totals, tops, out, count, D: tl.constexpr, SPANS: tl.constexpr):
    """``out`` [B, H, D] of what ``spans`` found in ``count`` spans, at most SPANS."""
    row = tl.program_id(0).to(tl.int64)
    each, column = tl.arange(0, SPANS), tl.arange(0, D)
    inside = each < count
    top = tl.load(tops + row * count + each, mask=inside, other=float("-inf"))
    highest = tl.max(top, 0)
    weight = tl.exp2(top - tl.where(highest == float("-inf"), 0.0, highest))
    total = tl.sum(weight * tl.load(totals + row * count + each, mask=inside, other=0.0), 0)
    place = (row * count + each)[:, None] * D + column[None, :]
    mixed = tl.sum(weight[:, None] * tl.load(sums + place, mask=inside[:, None], other=0.0), 0)
    found = mixed / tl.where(total > 0.0, total, 1.0)  # of padding alone: zeros
    tl.store(out + row * D + column, found.to(out.dtype.element_ty))
