"""Each layer of a Gemma as a tape of sizes, operation by operation as transformers writes it."""

import functools
from collections.abc import Sequence

from ft.plan import altup
from ft.plan.autograd import Matrix, Mode, Tape, Value
from ft.plan.block_parts import Shared, attention, experts, heads_of, mlp, per_layer_input
from ft.plan.known_shapes import RECURRENT, Shape


def trunk(
    shape: Shape, mode: Mode, seen: Sequence[int] = (1,), rows: int = 1
) -> tuple[list[Tape], Tape]:
    """A tape for each layer, and one for what stands before and behind them.

    ``seen`` are the lengths that attention sees at once: of examples where it goes by example, of
    rows elsewhere. The embedding tables are left out: a look-up keeps ids alone.
    """
    sizes = (sum(seen), rows, sum(n * n for n in seen), max(seen))
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
        x = altup.streams(around, shape, x)
    shared = Shared(rotations, per_layer, {})
    layers = []
    for index in range(shape.num_hidden_layers):
        t = Tape(mode, *sizes)
        x = _LAYERS[shape.family](t, shape, index, x, shared)
        layers.append(t)
    if shape.altup_num_inputs:
        x = altup.mean(around, shape, x)
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
    "gemma3n_text": altup.layer,
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
