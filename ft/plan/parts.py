"""Bytes of each thing that training keeps in memory: weights, states, activations, the head's loss."""

from collections.abc import Sequence

from ft.models.parameters import NF4_BYTES
from ft.plan import layers as blocks
from ft.plan.autograd import Attention, Matrix, Mode, kept
from ft.plan.shapes import Shape
from ft.text.batches import PIECE, QUERIES, ROW, gpu_tiles, tiles
from ft.train.optim import STATE_BYTES

# What lies between blocks, free and yet taken, as a share of all results of the layers, without checkpointing and
# with: measured by benchmarks/memory.py, by the passes of a step, as one's results do not fit another's holes. A
# GPU's were assumed, and bring plans to within 9% of benchmarks/gpu_memory.py
SCATTERED = {
    "one": (0.2, 0.4),
    "several": (0.95, 0.4),
    "together": (0.1, 0.25),
    "gpu": (0.1, 0.02),
}
BASE = (  # parts of the base model
    "base, linear layers",
    "base, embeddings and head",
    "base, norms and the like",
    "image and audio towers",
)


def attention(shape: Shape, device: str, *, packing: bool, half: bool = False) -> Attention:
    """How scores of a batch are formed, as ``Mode.attention`` has it; ``half``: in bf16, for which a GPU has kernels."""
    if packing and half and device == "cuda":
        return "flash" if shape.family == "gemma2" else "varlen"
    if shape.family == "gemma2" and (device == "cpu" or not packing):
        return "eager"
    if shape.family == "gemma2":
        return "tiled"
    return "by_example" if packing else "sdpa"


def weights(shape: Shape, mode: Mode, *, towers: bool) -> dict[str, int]:
    """The base model. Embeddings, the head that is tied to them, norms and experts are never 4-bit."""
    _, tables, vectors = blocks.count(shape)
    inner = blocks.matrices(shape)
    stay = sum(m.numbers for m in inner if not (mode.quantized and m.quantizable))
    packed = sum(m.numbers for m in inner if mode.quantized and m.quantizable)
    sizes = (
        int(packed * NF4_BYTES) + stay * mode.width,
        tables * mode.width,
        vectors * mode.width,
        shape.towers * mode.width,
    )
    return dict(list(zip(BASE, sizes, strict=True))[: 4 if towers else 3])


def constants(shape: Shape, mode: Mode) -> int:
    """Bytes of the 4-bit weights' scales: no parameters, so processes that share weights each have all of them."""
    packed = sum(m.numbers for m in blocks.matrices(shape) if mode.quantized and m.quantizable)
    return int(packed * NF4_BYTES) - packed // 2


def adapter(shape: Shape, mode: Mode) -> int:
    """Number of an adapter's parameters."""
    adapted = (m for m in blocks.matrices(shape) if mode.adapts(m))
    return sum(mode.rank * (m.inputs + m.outputs) for m in adapted)


def trained(shape: Shape, mode: Mode) -> int:
    """Number of parameters that train."""
    return sum(blocks.count(shape)) if mode.full else adapter(shape, mode)


def states(shape: Shape, mode: Mode, optim: str) -> int:
    """Of the optimizer: AdamW's have the parameters' dtype, 8-bit ones take a byte each."""
    width = mode.width if mode.full else 4
    return int(trained(shape, mode) * STATE_BYTES[optim] * (width / 4 if optim == "adamw" else 1))


def activations(
    shape: Shape,
    mode: Mode,
    seen: Sequence[int],
    rows: int,
    *,
    checkpointing: bool,
    offloading: bool = False,
) -> tuple[int, int, int]:
    """What the layers keep for the backward, what the backward of one takes on top, and all their results.

    With checkpointing they keep their inputs, and one at a time is run again; else the first is the third. With
    ``offloading`` there are the input of this layer and of the next.
    """
    layers, around = blocks.trunk(shape, mode, seen, rows)
    whole = kept([*layers, around])
    if not checkpointing:
        return whole, max(tape.backward() for tape in layers), whole
    kept_inputs = inputs(shape, mode, seen)
    if offloading:
        kept_inputs = min(kept_inputs, 2 * kept_inputs // len(layers))
    passing = max(kept([tape]) + tape.backward() for tape in layers)
    return kept_inputs + kept([around]), passing, whole


def on_their_way(shape: Shape, mode: Mode, seen: Sequence[int]) -> int:
    """The most that a row takes in a layer where nothing is kept for a backward."""
    layers, _ = blocks.trunk(shape, mode, seen, 1)
    return max(tape.forward() for tape in layers) + largest(shape, mode)


def inputs(shape: Shape, mode: Mode, seen: Sequence[int]) -> int:
    """What all layers begin with."""
    each = sum(seen) * shape.hidden_size * max(1, shape.altup_num_inputs) * mode.width
    return shape.num_hidden_layers * each


def masks(shape: Shape, mode: Mode, seen: Sequence[int]) -> int:
    """The masks that keep the examples of a packed row apart, one for each kind of attention."""
    if mode.attention not in ("masked", "eager"):
        return 0
    kinds = len(set(shape.layer_types) - {"recurrent"})
    return kinds * sum(n * n for n in seen) * (mode.product if mode.attention == "eager" else 1)


def scores(shape: Shape, mode: Mode, seen: Sequence[int]) -> int:
    """Scores that attention forms a piece at a time, and what is made of them, in float32."""
    if mode.attention != "tiled":
        return 0
    longest = max(sum(seen) if sum(seen) <= ROW else 0, *seen)
    return 4 * 4 * shape.num_attention_heads * min(QUERIES, longest) * longest


def head(shape: Shape, mode: Mode, supervised: int, device: str) -> int:
    """The logits that are held at once and what is made of them, and the hidden states that they are made from.

    On a GPU a tile's logits become their gradient in place. On a CPU a frozen head holds a piece of
    the vocabulary, the one before it and a third in the making; one that trains, a tile.
    """
    vocabulary = shape.vocab_size
    copy = vocabulary * shape.hidden_size * 2 if mode.width > mode.product else 0
    states = 3 * supervised * shape.hidden_size * mode.width
    if device == "cuda":
        parts = gpu_tiles(supervised, vocabulary, mode.product)
        most = max((tile.stop - tile.start for tile in parts), default=0)
        return most * vocabulary * mode.product + copy + states
    width = min(PIECE, vocabulary) if device == "cpu" else vocabulary
    held = vocabulary if mode.full else width
    rows = max(tile.stop - tile.start for tile in tiles(supervised, held))
    passing = width * (2 if shape.softcap else 1) + (0 if mode.full else width)
    return 4 * rows * (held + passing + 2 * shape.hidden_size) + copy + states


def largest(shape: Shape, mode: Mode, *, joined: bool = False) -> int:
    """The largest 4-bit layer, dequantised: on its way through a product it is whole.

    ``joined``: a gate and what it is for are one product, as they are in training with an adapter on a GPU.
    """
    if not mode.quantized:
        return 0
    found = [m for m in blocks.matrices(shape) if m.quantizable]
    joined = joined and not mode.dropout
    gates = [m.numbers for m in found if m.name.endswith("gate_proj") and mode.adapts(m)]
    return max(2 * max(gates, default=0) * joined, *(m.numbers for m in found)) * mode.product


def layer_weights(shape: Shape, mode: Mode) -> int:
    """Bytes of the largest layer's weights, as they are gathered where they are sharded."""
    layers, _ = blocks.trunk(shape, mode)
    return max(sum(_bytes(m, mode) for m in t.matrices) + t.vectors * mode.width for t in layers)


def _bytes(matrix: Matrix, mode: Mode) -> int:
    packed = mode.quantized and matrix.quantizable
    return int(matrix.numbers * (NF4_BYTES if packed else mode.width))


def flops(shape: Shape, mode: Mode) -> tuple[float, float]:
    """FLOPs of a training step per token of the trunk and per supervised token, as ``ft.models.parameters`` counts.

    A mixture counts the experts that a token goes through.
    """
    each = 6 if mode.full else 4
    trunk = sum(m.numbers for m in blocks.matrices(shape))
    expert = 3 * shape.hidden_size * shape.moe_intermediate_size
    trunk += expert * shape.top_k_experts * shape.num_hidden_layers
    extra = 0 if mode.full else 6 * adapter(shape, mode)
    return float(each * trunk + extra), float(each * shape.vocab_size * shape.hidden_size)
