"""What answers take in memory: keys and values of a batch, its prompts on their way through a layer, its logits."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ft.generate.decoding import PREFILL
from ft.generate.room import CACHE_BYTES
from ft.plan import layers as blocks
from ft.plan import parts
from ft.plan.autograd import Attention, Mode
from ft.plan.shapes import RECURRENT, SLIDING, Shape
from ft.score.decoding import BEAM, WAYS
from ft.score.translation import RATIO

READING, ANSWERING = "while it reads the evaluation's prompts", "while it answers in the evaluation"
MOST = 256  # tokens of an answer, where a recipe has no setting for them
HELD_OUT = 300  # rows that are answered at most, where a recipe holds out a tenth
# what a layer's code has names for stays until it returns: measured on a CPU, with tiny models
NAMED = {"gemma2": 1.3, "gemma3n_text": 1.7}


@dataclass(frozen=True)
class Evaluation:
    """How many prompts of which length are answered, with how many tokens, and how many answers each has."""

    prompt: int
    new: int
    prompts: int | None = None  # none: more than there is room for
    each: int = 1  # beams, or chains of thought

    @property
    def longest(self) -> int:
        """Tokens of a prompt and its answer."""
        return self.prompt + self.new

    def batch(self, room: int) -> tuple[int, int]:
        """Prompts and answers that share a batch which holds ``room`` tokens."""
        most = max(1, room // self.longest)
        answers = most if self.prompts is None else min(most, self.prompts * self.each)
        return -(-answers // self.each), answers


def of(settings: Mapping[str, Any], longest: int) -> Evaluation | None:
    """The evaluation at the end of a recipe, whose examples have up to ``longest`` tokens; none: it has none."""
    ways = WAYS.get(settings.get("decoding", ""))
    if not ways and "max_new_tokens" not in settings:
        return None
    new = settings.get("max_new_tokens", MOST)
    each = settings.get("chains", 1)
    if ways:  # a translation
        new = min(new, int(RATIO * longest) + 16)
        each = BEAM.width if BEAM in ways else 1
    rows = settings.get("eval_limit") or settings.get("test_rows")
    rows = rows or (HELD_OUT if "test_rows" in settings else None)
    return Evaluation(longest, new, rows, each)


def moments(
    shape: Shape, mode: Mode, evaluation: Evaluation, device: str, attention: Attention, free: int
) -> dict[str, dict[str, int]]:
    """Named bytes of both moments, beside the model; ``free`` bytes are left for all of them.

    A batch is as large as ``generate.decoding`` makes it: by all keys and values, as if no layer had a
    window, for there the last piece of the prompts keeps them all until the next token comes.
    """
    every = range(shape.num_hidden_layers)
    whole = cache(shape, mode, evaluation.longest, windows=False)
    budget = CACHE_BYTES[device] if device == "cpu" else min(CACHE_BYTES[device], free // 3)
    prompts, answers = evaluation.batch(max(budget, 0) * evaluation.longest // max(whole, 1))
    width = evaluation.prompt
    piece = min(width, max(1, int(PREFILL[device] / (prompts * max(1, width / 1024)))))
    if shape.family == "recurrent_gemma" or (device == "cpu" and mode.width == 2):
        piece = width  # such prompts are read at once
    held = prompts * cache(shape, mode, width, windows=False)
    # on a GPU a token's place is fixed
    kept = answers * cache(shape, mode, evaluation.longest, windows=device == "cpu")
    half = answers * max(_layer(shape, mode, i, evaluation.longest) for i in every) // 2
    one, more = logits(shape, mode)
    named = "keys and values", "logits of answers"
    grows = (kept + half, answers * one)  # a layer's keys, or its values, lie there twice
    chosen = (kept, answers * (one + more))
    all_of_them = evaluation.prompts is not None and evaluation.prompts <= prompts
    # of the batch before, whose place is the next one's
    before = 0 if all_of_them or device == "cpu" else kept
    reading = (held + before, prompts * one)
    layer = {"prompts in a layer": passing(shape, mode, prompts, piece, width, attention)}
    always = {"dequantised layer in flight": parts.largest(shape, mode)}
    return {
        READING: dict(zip(named, reading, strict=True)) | layer | always,
        ANSWERING: dict(zip(named, max(grows, chosen, key=sum), strict=True)) | always,
    }


def cache(shape: Shape, mode: Mode, tokens: int, *, windows: bool) -> int:
    """Keys, values and states of one text; with ``windows`` a sliding layer has no more than its own."""
    return sum(_layer(shape, mode, i, tokens, windows) for i in range(shape.num_hidden_layers))


def _layer(shape: Shape, mode: Mode, index: int, tokens: int, windows: bool = False) -> int:
    kind = shape.layer_types[index]
    if kind == RECURRENT:
        return shape.lru_width * (4 + (shape.conv1d_width - 1) * mode.width)
    if shape.kv_shared(index):
        return 0
    kv, head = blocks.heads_of(shape, kind)
    seen = min(tokens, shape.window) if windows and kind == SLIDING else tokens
    return 2 * kv * head * mode.width * seen


def passing(
    shape: Shape, mode: Mode, rows: int, piece: int, width: int, attention: Attention
) -> int:
    """The most that ``piece`` tokens of each row take on their way, where nothing is kept; all see ``width``."""
    plain = replace(mode, full=True, rank=0, product=mode.width, attention=attention, lean=False)
    pairs = rows * piece * width
    tapes, _ = blocks.trunk(shape, plain, [piece] * rows, rows, pairs)
    kinds = len(set(shape.layer_types) - {RECURRENT})
    masks = pairs * (kinds + mode.width)  # truth values, and the layer's own that is added
    most = max(tape.forward() for tape in tapes)
    return int(most * NAMED.get(shape.family, 1.0)) + masks


def logits(shape: Shape, mode: Mode) -> tuple[int, int]:
    """Of one answer's next token, and what is there besides: the last one's, a soft cap's, or fp32 to choose by."""
    own = shape.vocab_size * mode.width
    # RecurrentGemma's logits have their name until they are capped
    copies = 1 + shape.softcap + (shape.family == "recurrent_gemma")
    return own, max(own * copies, shape.vocab_size * (8 if mode.width == 2 else 4))
