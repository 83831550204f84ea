"""Triton kernels: attention inside the examples of a packed row, forward and backward (arXiv:2307.08691).

A token's example is found among the offsets by the programs themselves, so that neither a launch's
grid nor its arguments depend on the data. Scores are in fp32, in units of log 2. q [H, T, D] and
k and v [K, T, D] come by their strides, the last of which is 1; out and all gradients lie as
[T, heads, D]. Names in capitals are compiled in: M queries and N keys of a tile.
"""

# pyright: reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false
# pyright: reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# pyright: reportCallIssue=false, reportOptionalOperand=false

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
SOME = tl.constexpr(16)  # offsets looked at together
CHANGING = ["length", "count", "window"]  # values that no kernel is compiled anew for


@triton.jit
def _first_keys(offsets, count, window, row, length, ROWS: tl.constexpr):
    """The first key that each query [ROWS] sees; for rows past the end, ``length``."""
    start = tl.zeros([ROWS], tl.int32)
    for at in range(0, count, SOME):
        each = at + tl.arange(0, SOME)
        offset = tl.load(offsets + each, mask=each < count, other=0)[None, :]
        start = tl.maximum(start, tl.max(tl.where(offset <= row[:, None], offset, 0), 1))
    return tl.where(row < length, tl.maximum(start, row - window + 1), length)


@triton.jit
def _query_ends(offsets, count, window, row, length, ROWS: tl.constexpr):
    """One past the last query that sees each key [ROWS]; for rows past the end, 0."""
    end = tl.zeros([ROWS], tl.int32) + length
    for at in range(0, count, SOME):
        each = at + tl.arange(0, SOME)
        offset = tl.load(offsets + each, mask=each < count, other=length)[None, :]
        end = tl.minimum(end, tl.min(tl.where(offset > row[:, None], offset, length), 1))
    return tl.where(row < length, tl.minimum(end, row + window), 0)


@triton.jit
def _tile(start, row, time, length, D: tl.constexpr):
    """[ROWS, D] of a head that begins at ``start``; zeros past the end."""
    place = start + row[:, None].to(tl.int64) * time + tl.arange(0, D)[None, :]
    return tl.load(place, mask=(row < length)[:, None], other=0.0)


@triton.jit
def _put(start, row, time, length, value, D: tl.constexpr):
    place = start + row[:, None].to(tl.int64) * time + tl.arange(0, D)[None, :]
    tl.store(place, value.to(start.dtype.element_ty), mask=(row < length)[:, None])


@triton.jit
def scores(product, scale, softcap, CAP: tl.constexpr):
    """Scores of q k, in units of log 2, and their slope by q k.

    The tangent is within 2e-7 of the true one, which scores of 16-bit products do not notice.
    """
    if CAP:
        bent = 1.0 - 2.0 / (1.0 + tl.exp2(product * (2.0 * LOG2E * scale / softcap)))
        return bent * (softcap * LOG2E), scale * (1.0 - bent * bent)
    else:
        return product * (scale * LOG2E), scale


@triton.jit(do_not_specialize=CHANGING)
def forward(
    q,
    k,
    v,
    offsets,  # [E + 1] int32: where examples begin; the last is T and may repeat
    out,
    lse,  # [H, T] fp32 out: log2 of each query's sum of exponentials
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    length,  # T
    count,  # E + 1
    window,  # keys that a query sees, itself among them
    group,  # H / K
    scale,
    softcap,
    CAP: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * M + tl.arange(0, M)
    first = _first_keys(offsets, count, window, row, length, M)
    query = _tile(q + head * q_head, row, q_time, length, D)
    k += head // group * k_head
    v += head // group * v_head
    top = tl.full([M], float("-inf"), tl.float32)
    total = tl.zeros([M], tl.float32)
    mixed = tl.zeros([M, D], tl.float32)
    begin, end = tl.min(first, 0), tl.minimum(tl.program_id(0) * M + M, length)
    for tile in range(0, tl.cdiv(end - begin, N)):  # from 0, or loads of tiles are not vectorised
        column = begin + tile * N + tl.arange(0, N)
        key = _tile(k, column, k_time, length, D)
        s, _ = scores(tl.dot(query, tl.trans(key)), scale, softcap, CAP)
        seen = (column[None, :] <= row[:, None]) & (column[None, :] >= first[:, None])
        s = tl.where(seen, s, float("-inf"))
        higher = tl.maximum(top, tl.max(s, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # no key of its own so far
        p = tl.exp2(s - base[:, None])
        fade = tl.exp2(top - base)
        total = total * fade + tl.sum(p, 1)
        value = _tile(v, column, v_time, length, D)
        mixed = tl.dot(p.to(value.dtype), value, mixed * fade[:, None])
        top = higher
    inside = row < length
    total = tl.where(inside, total, 1.0)
    heads = tl.num_programs(1)
    _put(out + head * D, row, heads * D, length, mixed / total[:, None], D)
    tl.store(lse + head * length + row, top + tl.log2(total), mask=inside)


@triton.jit(do_not_specialize=CHANGING)
def backward_queries(
    q,
    k,
    v,
    offsets,
    out,
    lse,
    d_out,  # [T, H, D] by its strides
    d_q,  # out
    delta,  # [H, T] fp32 out: each query's sum of d_out * out
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    d_head,
    d_time,
    length,
    count,
    window,
    group,
    scale,
    softcap,
    CAP: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    head = tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    row = tl.program_id(0) * M + tl.arange(0, M)
    inside = row < length
    first = _first_keys(offsets, count, window, row, length, M)
    slope_out = _tile(d_out + head * d_head, row, d_time, length, D)
    found = _tile(out + head * D, row, heads * D, length, D)
    along = tl.sum(slope_out.to(tl.float32) * found.to(tl.float32), 1)
    tl.store(delta + head * length + row, along, mask=inside)
    norm = tl.load(lse + head * length + row, mask=inside, other=0.0)
    query = _tile(q + head * q_head, row, q_time, length, D)
    k += head // group * k_head
    v += head // group * v_head
    gradient = tl.zeros([M, D], tl.float32)
    begin, end = tl.min(first, 0), tl.minimum(tl.program_id(0) * M + M, length)
    for tile in range(0, tl.cdiv(end - begin, N)):  # from 0, or loads of tiles are not vectorised
        column = begin + tile * N + tl.arange(0, N)
        key = _tile(k, column, k_time, length, D)
        value = _tile(v, column, v_time, length, D)
        s, slope = scores(tl.dot(query, tl.trans(key)), scale, softcap, CAP)
        seen = (column[None, :] <= row[:, None]) & (column[None, :] >= first[:, None])
        p = tl.where(seen, tl.exp2(s - norm[:, None]), 0.0)
        d_s = p * (tl.dot(slope_out, tl.trans(value)) - along[:, None]) * slope
        gradient = tl.dot(d_s.to(key.dtype), key, gradient)
    _put(d_q + head * D, row, heads * D, length, gradient, D)


@triton.jit(do_not_specialize=CHANGING)
def backward_keys(
    q,
    k,
    v,
    offsets,
    lse,
    delta,
    d_out,
    d_k,  # out, as is d_v
    d_v,
    q_head,
    q_time,
    k_head,
    k_time,
    v_head,
    v_time,
    d_head,
    d_time,
    length,
    count,
    window,
    group,
    scale,
    softcap,
    CAP: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    shared = tl.program_id(1).to(tl.int64)  # the head of keys, which `group` heads of queries read
    column = tl.program_id(0) * N + tl.arange(0, N)
    last = _query_ends(offsets, count, window, column, length, N)
    end = tl.max(last, 0)
    key = _tile(k + shared * k_head, column, k_time, length, D)
    value = _tile(v + shared * v_head, column, v_time, length, D)
    by_key = tl.zeros([N, D], tl.float32)
    by_value = tl.zeros([N, D], tl.float32)
    for head in range(shared * group, shared * group + group):
        for at in range(tl.program_id(0) * N, end, M):
            row = at + tl.arange(0, M)
            inside = row < length
            query = _tile(q + head * q_head, row, q_time, length, D)
            slope_out = _tile(d_out + head * d_head, row, d_time, length, D)
            norm = tl.load(lse + head * length + row, mask=inside, other=0.0)
            along = tl.load(delta + head * length + row, mask=inside, other=0.0)
            s, slope = scores(tl.dot(key, tl.trans(query)), scale, softcap, CAP)
            seen = (row[None, :] >= column[:, None]) & (row[None, :] < last[:, None])
            p = tl.where(seen, tl.exp2(s - norm[None, :]), 0.0)
            by_value = tl.dot(p.to(value.dtype), slope_out, by_value)
            d_s = p * (tl.dot(value, tl.trans(slope_out)) - along[None, :]) * slope
            by_key = tl.dot(d_s.to(key.dtype), query, by_key)
    time = tl.num_programs(1) * D
    _put(d_k + shared * D, column, time, length, by_key, D)
    _put(d_v + shared * D, column, time, length, by_value, D)
