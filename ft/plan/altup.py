"""Gemma 3n's layers as operations on sizes: alternating updates of several streams, and a learned residual."""

from ft.plan.autograd import Tape, Value
from ft.plan.block_parts import Shared, attention, mlp, per_layer_input
from ft.plan.known_shapes import Shape


def layer(t: Tape, shape: Shape, index: int, x: Value, shared: Shared) -> Value:
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


def streams(t: Tape, shape: Shape, x: Value) -> Value:
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


def mean(t: Tape, shape: Shape, x: Value) -> Value:
    """The mean of the streams, projected back."""
    first = t.view(x, t.tokens * shape.hidden_size)
    t.unary(first)
    for i in range(shape.altup_num_inputs - 1):
        part = t.view(x, t.tokens * shape.hidden_size)
        made = t.linear(part, shape.hidden_size, f"altup_unembed_projections.{i}")
        _rescale(t, made)
    return t.unary(first, "")
