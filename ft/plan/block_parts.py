"""What the layers of all Gemmas are made of, as operations on sizes: attention, MLP, experts, per-layer inputs."""

from dataclasses import dataclass

from ft.plan.autograd import Tape, Value
from ft.plan.known_shapes import FULL, SLIDING, Shape


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
