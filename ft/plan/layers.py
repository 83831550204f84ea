"""Each layer of a Gemma as a tape of sizes, operation by operation as transformers writes it."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from ft.plan.autograd import Matrix, Mode, Tape, Value
from ft.plan.shapes import FULL, RECURRENT, SLIDING, Shape


@dataclass
class Shared:
    """What layers hand on beside their output: rotations, per-layer inputs, keys and values."""

    rotations: dict[str, tuple[Value, Value]]
    per_layer: Value | None
    kept: dict[str, tuple[Value, Value]]


def heads_of(shape: Shape, kind: str) -> tuple[int, int]:
    """Key-value heads and head size of a kind of layer."""
    kv, head = shape.num_key_value_heads, shape.head_dim
    if kind == FULL and shape.global_head_dim:
        fewer = shape.num_global_key_value_heads if shape.attention_k_eq_v else 0
        return fewer or kv, shape.global_head_dim
    return kv, head


def rotate(t: Tape, x: Value, rotation: tuple[Value, Value]) -> Value:
    """Queries or keys turned by their position."""
    cos, sin = rotation
    turned = t.unary(x, "")  # the halves swapped
    return t.add(t.mul(x, cos), t.mul(turned, sin))


def mlp(t: Tape, x: Value, inner: int, *, bias: bool = False, sparse: bool = False) -> Value:
    """Gate, up and down; a sparse one cuts the gate's output off at a quantile first."""
    d = x.numbers // t.tokens
    gate = t.linear(x, inner, "mlp.gate_proj", bias=bias)
    if t.mode.fused and not sparse:
        up = t.linear(x, inner, "mlp.up_proj", bias=bias)
        made = t.record(gate, (gate, up), (gate, up))
        return t.linear(made, d, "mlp.down_proj", bias=bias)
    if sparse:
        # the standard deviation keeps its input and itself, relu its result
        spread = t.record(Value(t.tokens, gate.width, False), (gate,), (gate,))
        gate = t.unary(t.add(gate, spread), "output")
    act = t.unary(gate)
    up = t.linear(x, inner, "mlp.up_proj", bias=bias)
    return t.linear(t.mul(act, up), d, "mlp.down_proj", bias=bias)


def attention(
    t: Tape, shape: Shape, index: int, x: Value, shared: Shared, norms: str = ""
) -> Value:
    """q, k, v, their norms (``qk`` or ``qkv``), rotation, attention, output."""
    kind = shape.layer_types[index]
    heads, (kv, head) = shape.num_attention_heads, heads_of(shape, kind)
    scale = "1+w" if shape.family == "gemma3_text" else "w"
    q = t.linear(x, heads * head, "self_attn.q_proj")
    if norms:
        q = t.norm(q, head, scale)
    reuse = shape.kv_shared(index)
    if not reuse:
        k = t.linear(x, kv * head, "self_attn.k_proj")
        alone = shape.attention_k_eq_v and kind == FULL
        v = k if alone else t.linear(x, kv * head, "self_attn.v_proj")
        if norms:
            k = t.norm(k, head, scale)
        k = rotate(t, k, shared.rotations[kind])
        if norms == "qkv":
            v = t.norm(v, head, "")
        shared.kept[kind] = (k, v)
    q = rotate(t, q, shared.rotations[kind])
    k, v = shared.kept[kind]
    bias = shape.family == "recurrent_gemma"
    window = shape.window if kind == SLIDING else 0
    result = t.attend(q, k, v, heads, kv, window)
    return t.linear(result, shape.hidden_size, "self_attn.o_proj", bias=bias)


def experts(t: Tape, shape: Shape, x: Value) -> Value:
    """A mixture of experts: each token goes through ``top_k_experts`` of them."""
    d, inner, top = shape.hidden_size, shape.moe_intermediate_size, shape.top_k_experts
    routed = t.norm(x, d, "")
    routed = t.mul(routed, t.parameter(d))
    scores = t.unary(
        t.cast(t.linear(routed, shape.num_experts, "router.proj", plain=True), 4), "output"
    )
    chosen = t.record(Value(t.tokens * top, 4, False), (scores,), ())
    t.parameter(shape.num_experts)
    tokens = t.norm(x, d, "w")
    t.vectors += 3 * d * inner * shape.num_experts  # stacked tensors, never quantised nor adapted
    each = t.record(
        Value(t.tokens * top * d, tokens.width, False), (tokens,), (tokens,) * t.mode.full
    )
    both = t.record(
        Value(t.tokens * top * 2 * inner, t.mode.product, False), (each,), (each,) * t.mode.full
    )
    gate, up = t.view(both, both.numbers // 2), t.view(both, both.numbers // 2)
    made = t.mul(t.unary(gate), up)
    out = t.record(Value(t.tokens * top * d, t.mode.product, False), (made,), (made,) * t.mode.full)
    weighted = t.mul(out, chosen)
    return t.record(Value(t.tokens * d, tokens.width, False), (weighted,), ())


def per_layer_input(t: Tape, shape: Shape, x: Value, shared: Shared) -> Value:
    size = shape.hidden_size_per_layer_input
    assert shared.per_layer is not None
    part = Value(t.tokens * size, shared.per_layer.width, shared.per_layer.grad)
    gate = t.unary(t.linear(x, size, "per_layer_input_gate"))
    found = t.linear(t.mul(gate, part), shape.hidden_size, "per_layer_projection")
    return t.norm(found, shape.hidden_size, "w")


def trunk(
    shape: Shape, mode: Mode, seen: Sequence[int] = (1,), rows: int = 1, pairs: int | None = None
) -> tuple[list[Tape], Tape]:
    """A tape for each layer, and one for what stands before and behind them.

    ``seen`` are the lengths that attention sees at once: of examples where it goes by example, of
    rows elsewhere; ``pairs`` of a query and a key, where these are no squares. The embedding tables are left out: a look-up keeps ids alone.
    """
    squares = sum(n * n for n in seen) if pairs is None else pairs
    sizes = (sum(seen), rows, squares, max(seen))
    around = Tape(mode, *sizes)
    width, d = mode.width, shape.hidden_size
    x = around.value(d, each=width, grad=mode.full)
    if mode.full:
        x = around.unary(x, "")  # scaled by the root of the width
    per_layer = _per_layer(around, shape, x)
    rotations = {}
    for kind in dict.fromkeys(shape.layer_types):
        head = heads_of(shape, kind)[1]
        cos, sin = (around.value(head, each=width) for _ in range(2))
        rotations[kind] = (cos, sin)
    if shape.altup_num_inputs:
        x = _streams(around, shape, x)
    shared = Shared(rotations, per_layer, {})
    layers = []
    for index in range(shape.num_hidden_layers):
        t = Tape(mode, *sizes)
        x = _LAYERS[shape.family](t, shape, index, x, shared)
        layers.append(t)
    if shape.altup_num_inputs:
        x = _mean(around, shape, x)
    around.norm(x, d, "w" if shape.family in ("gemma3n_text", "gemma4_text") else "1+w")
    return layers, around


def _gemma(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
    d = shape.hidden_size
    x = t.add(x, attention(t, shape, index, t.norm(x, d), shared))
    return t.add(x, mlp(t, t.norm(x, d), shape.intermediate_size))


def _gemma2(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
    d, norms = shape.hidden_size, "qk" if shape.family == "gemma3_text" else ""
    x = t.add(x, t.norm(attention(t, shape, index, t.norm(x, d), shared, norms), d))
    return t.add(x, t.norm(mlp(t, t.norm(x, d), shape.intermediate_size), d))


def _gemma3n(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
    """One layer on all streams: predict them, run the layer on the first, correct them all."""
    d, n = shape.hidden_size, shape.altup_num_inputs
    active = t.view(x, t.tokens * d)
    modes = _modalities(t, shape, active)
    coefs = t.linear(modes, n * n, "altup.prediction_coefs", plain=True)
    mixed = t.record(
        Value(x.numbers, t.mode.product, False), (x, coefs), (x,) * coefs.grad + (coefs,)
    )
    predicted = t.cast(t.unary(t.add(mixed, x), ""), x.width)
    first = t.view(predicted, t.tokens * d)
    normed = t.norm(first, d, "w")
    low = t.linear(normed, shape.laurel_rank, "laurel.linear_left")
    low = t.norm(t.linear(low, d, "laurel.linear_right"), d, "w")
    laurel = t.add(normed, low)
    found = t.norm(attention(t, shape, index, normed, shared, "qkv"), d, "w")
    gated = t.unary(t.add(t.add(first, found), laurel), "")
    found = mlp(
        t, t.norm(gated, d, "w"), shape.intermediate_size, sparse=index < shape.sparse_layers
    )
    activated = t.add(gated, t.norm(found, d, "w"))
    modes = _modalities(t, shape, activated)
    t.matrices.pop()  # the same router and norm again
    t.vectors -= d
    innovation = t.unary(t.add(activated, first), "")
    innovation = t.record(Value(x.numbers, innovation.width, False), (innovation,), ())
    coefs = t.unary(t.linear(modes, n, "altup.correction_coefs", plain=True), "")
    corrected = t.add(t.mul(innovation, coefs), predicted)
    scaled = t.mul(t.unary(t.view(corrected, t.tokens * d), ""), t.parameter(d))
    change = per_layer_input(t, shape, scaled, shared)
    return t.add(corrected, change)


def _modalities(t: Tape, shape: Shape, x: Value) -> Value:
    given = t.unary(t.norm(x, shape.hidden_size, "w"), "")
    routed = t.linear(given, shape.altup_num_inputs, "altup.modality_router", plain=True)
    return t.cast(t.unary(t.cast(routed, 4), "output"), x.width)


def _streams(t: Tape, shape: Shape, x: Value) -> Value:
    """The embedding and its projections, each brought to its magnitude."""
    streams = []
    for i in range(shape.altup_num_inputs - 1):
        made = t.linear(x, shape.hidden_size, f"altup_projections.{i}")
        streams.append(_rescale(t, made))
    grad = any(s.grad for s in streams)
    return Value(x.numbers * shape.altup_num_inputs, max(x.width, streams[0].width), grad)


def _rescale(t: Tape, x: Value) -> Value:
    """Brought to the magnitude of the first stream: a square, a product and a quotient."""
    t.unary(x)
    one = Value(t.tokens, x.width, x.grad)
    scaled = t.mul(x, one)
    return t.mul(scaled, one)


def _mean(t: Tape, shape: Shape, x: Value) -> Value:
    """The mean of the streams, projected back."""
    first = t.view(x, t.tokens * shape.hidden_size)
    t.unary(first)
    for i in range(shape.altup_num_inputs - 1):
        part = t.view(x, t.tokens * shape.hidden_size)
        made = t.linear(part, shape.hidden_size, f"altup_unembed_projections.{i}")
        _rescale(t, made)
    return t.unary(first, "")


def _gemma4(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
    d = shape.hidden_size
    inner = shape.intermediate_size
    if shape.use_double_wide_mlp and shape.kv_shared(index):
        inner *= 2
    x = t.add(x, t.norm(attention(t, shape, index, t.norm(x, d, "w"), shared, "qkv"), d, "w"))
    found = mlp(t, t.norm(x, d, "w"), inner)
    if shape.num_experts:
        found = t.add(t.norm(found, d, "w"), t.norm(experts(t, shape, x), d, "w"))
    x = t.add(x, t.norm(found, d, "w"))
    if shape.hidden_size_per_layer_input:
        x = t.add(x, per_layer_input(t, shape, x, shared))
    return t.unary(x, "")  # times the layer's scalar


def _per_layer(t: Tape, shape: Shape, x: Value) -> Value | None:
    """The inputs of all layers that come from their own embedding table."""
    width = shape.hidden_size_per_layer_input * shape.num_hidden_layers
    if not width:
        return None
    found = t.unary(t.linear(x, width, "per_layer_model_projection"), "")
    found = t.norm(found, shape.hidden_size_per_layer_input, "w")
    looked_up = Value(found.numbers, t.mode.width, t.mode.full)
    return t.unary(t.add(found, looked_up), "")


def _recurrent(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
    d = shape.hidden_size
    normed = t.norm(x, d)
    if shape.layer_types[index] == RECURRENT:
        found = _rg_lru(t, shape, normed)
    else:
        cos, sin = (t.value(shape.head_dim // 2, each=t.mode.width) for _ in range(2))
        own = Shared({shape.layer_types[index]: (cos, sin)}, None, {})
        found = attention(t, shape, index, normed, own)
    x = t.add(found, x)
    return t.add(mlp(t, t.norm(x, d), shape.intermediate_size, bias=True), x)


def _rg_lru(t: Tape, shape: Shape, x: Value) -> Value:
    width, block = shape.lru_width, shape.lru_width // shape.num_attention_heads
    y = t.unary(t.linear(x, width, "linear_y", bias=True))
    x = t.linear(x, width, "linear_x", bias=True)
    t.vectors += width * (shape.conv1d_width + 1)
    padded = t.record(x, (x,), ())
    mixed = t.record(padded, (padded,), (padded,) * t.mode.full)
    for _ in range(shape.conv1d_width - 1):  # one product for each token that it looks back
        part = t.record(padded, (padded,), (padded,) * t.mode.full)
        mixed = t.record(part, (part, mixed), (part,) * 0)
    t.vectors += width + 2 * (width * block + width)
    gates = [t.record(mixed, (mixed,), (mixed,) * t.mode.full) for _ in range(2)]
    gates = [t.unary(g, "") for g in gates]
    states = Value((t.tokens + t.rows) * width, 4, False)
    result = t.record(mixed, (mixed, *gates), (mixed, *gates, states))
    if result.width == states.width:
        result.memory = states  # it is a view of them
    return t.linear(t.mul(result, y), shape.hidden_size, "linear_out", bias=True)


_LAYERS = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma2,
    "gemma3n_text": _gemma3n,
    "gemma4_text": _gemma4,
    "recurrent_gemma": _recurrent,
}


@functools.cache
def matrices(shape: Shape) -> tuple[Matrix, ...]:
    """Every linear layer of the trunk, the head left out."""
    layers, around = trunk(shape, Mode())
    return tuple(m for t in (*layers, around) for m in t.matrices)


@functools.cache
def count(shape: Shape) -> tuple[int, int, int]:
    """Parameters: of linear layers, of embedding tables, of all else; towers left out."""
    layers, around = trunk(shape, Mode())
    linear = sum(m.numbers for t in (*layers, around) for m in t.matrices)
    tables = shape.vocab_size * shape.hidden_size
    tables += (
        shape.vocab_size_per_layer_input
        * shape.hidden_size_per_layer_input
        * shape.num_hidden_layers
    )
    return linear, tables, sum(t.vectors for t in (*layers, around))
