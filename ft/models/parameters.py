"""What of a Gemma is language model, tower or projector, what of it trains, and what that counts and costs.

Everything that goes by the names of modules is told here. An adapter goes on linear layers, by full name;
full-parameter training takes all of the language model.
"""

import contextlib
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOWERS = ("vision_tower", "audio_tower")  # attributes of the model inside
PROJECTORS = ("multi_modal_projector", "embed_vision")  # what brings images into the language model
_OUTSIDE = re.compile(r"(^|\.)(embed_)?(vision|audio|multi_modal)")  # of the language model
_SEES = re.compile(r"(^|\.)(embed_)?(vision|multi_modal)")
# what an image tower looks with; a head that pools its results into one is no part of a Gemma
_LOOKS = re.compile(r"(^|\.)vision_tower\.(?!(.*\.)?head\.)")
# MoE routers, whose choices would jump, and Gemma 3n's AltUp coefficients, which its code reads around
# any adapter and clamps in place
_DELICATE = re.compile(r"(^|\.)(router|altup)\.")
_HEAD = re.compile(r"(^|\.)lm_head")
# never 4-bit, as transformers takes names: the head, what is delicate, and what is not the language model
UNQUANTIZED = [
    "lm_head",
    r".*\.router\.",
    r".*\.altup\.",
    r".*vision.*",
    r".*audio.*",
    r".*multi_modal.*",
]
# of a 4-bit weight: 64 of them have one scale, and 256 of these one of their own
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
NO_GRADIENT = (
    "precision nf4 keeps the weights in 4 bits, which cannot be trained: give --lora-r 16 for QLoRA, or "
    "--precision fp32 or bf16"
)
AUTO = ("auto", "all-linear")  # ours, and PEFT's name for it


def in_language_model(name: str) -> bool:
    """Whether a module or parameter of this path is not of a tower, nor of what projects its results."""
    return not _OUTSIDE.search(name)


def sees(name: str) -> bool:
    """Whether a module or parameter is of the image tower or of what projects its results."""
    return bool(_SEES.search(name))


def drop_towers(model: Any) -> dict[str, int]:
    """Take the towers out of a model. Returns the parameters of each, by its name in words."""
    dropped = {}
    for name in TOWERS:
        if (tower := getattr(model.base_model, name, None)) is not None:
            dropped[name.replace("_", " ")] = sum(p.numel() for p in tower.parameters())
            setattr(model.base_model, name, None)
    return dropped


def of_dropped(model: Any, name: str) -> bool:
    """Whether a tensor is of a tower that ``drop_towers`` took out of a model."""
    inner = model.base_model
    gone = [tower for tower in TOWERS if getattr(inner, tower, inner) is None]
    return any(tower in name.split(".") for tower in gone)


def linear_layers(model: Any) -> list[str]:
    """The full names of the linear layers that an adapter may go on, 4-bit ones included, in their order.

    A mixture of experts keeps its experts in stacked tensors, not in linear layers: they are not
    among them, and neither is the head.
    """
    return [n for n, _ in _linear(model) if _inner(n) and not _HEAD.search(n)]


def tower_layers(model: Any) -> list[str]:
    """The full names of the image tower's linear layers. Raises ``UserError`` where there are none."""
    if not (found := [name for name, _ in _linear(model) if _LOOKS.search(name)]):
        raise UserError(
            "this model's image tower has no linear layers to adapt: leave out --train-vision, or train all "
            "parameters with --lora-r 0"
        )
    return found


def int8_layers(model: Any) -> list[str]:
    """The full names of the linear layers that are as good in 8 bits: the language model's and its head."""
    import torch

    return [n for n, module in _linear(model) if type(module) is torch.nn.Linear and _inner(n)]


def projectors(model: Any) -> list[str]:
    """The names of the modules that bring images into the language model."""
    return [name for name in PROJECTORS if getattr(model.base_model, name, None) is not None]


def select(model: Any, targets: str | Sequence[str] = "auto") -> list[str]:
    """The full names of the linear layers that ``targets`` means.

    ``auto`` is all of them; otherwise ends of names (``q_proj``, ``mlp.down_proj``), as a sequence
    or separated by commas. Raises ``UserError`` for one that matches nothing.
    """
    layers = linear_layers(model)
    asked = targets.split(",") if isinstance(targets, str) else list(targets)
    asked = [target.strip() for target in asked if target.strip()]
    if not asked:
        raise UserError(
            "no LoRA targets: give `auto`, or names of linear layers such as q_proj,v_proj."
        )
    if len(asked) == 1 and asked[0] in AUTO:
        return layers
    chosen: set[str] = set()
    for target in asked:
        found = [name for name in layers if f".{name}".endswith(f".{target}")]
        if not found:
            leaves = sorted({_leaf(name) for name in layers})
            near = difflib.get_close_matches(target, leaves, n=3) or leaves
            raise UserError(
                f"LoRA target {target!r} matches no linear layer of the language model. "
                f"Nearest: {', '.join(near)}; all: {', '.join(leaves)}; or `auto`."
            )
        chosen.update(found)
    return [name for name in layers if name in chosen]


def portable(model: Any, chosen: Iterable[str]) -> list[str] | str:
    """``target_modules`` for exactly these layers, short and fit for the published model.

    Ends of names where these say it all, otherwise a regular expression. A multimodal model always
    gets the latter, because its towers, left out here, have layers of the same names.
    """
    chosen = set(chosen)
    leaves = sorted({_leaf(name) for name in chosen})
    meant = {n for n, _ in model.named_modules() if any(f".{n}".endswith(f".{e}") for e in leaves)}
    if meant == chosen and not hasattr(model.base_model, "language_model"):
        return leaves
    # what differs between layers is their number
    shapes = sorted({re.sub(r"\\\.\d+", r"\\.\\d+", re.escape(name)) for name in chosen})
    shape = "|".join(shapes)
    if {n for n, _ in model.named_modules() if re.fullmatch(shape, n)} != chosen:
        shape = "|".join(re.escape(name) for name in sorted(chosen))
    return shape


def train_all(base: Any, *, vision: bool = False) -> "PreTrainedModel":
    """The model of a ``models.Base`` with all parameters of the language model trainable, and no others.

    With ``vision`` also those of the image tower and of what projects its results. Raises ``UserError``
    for 4-bit weights, which have no gradient.
    """
    if base.precision == "nf4":
        raise UserError(NO_GRADIENT)
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(in_language_model(name) or vision and sees(name))
    return base.model


def count(model: Any) -> tuple[int, int]:
    """Trainable and all parameters; a 4-bit tensor counts its values, a tied one counts once."""

    def size(parameter: Any) -> int:
        state = getattr(parameter, "quant_state", None)  # before processes share the weights
        return math.prod(state.shape) if state is not None else parameter.numel()

    sizes = [(parameter.requires_grad, size(parameter)) for parameter in model.parameters()]
    return sum(n for trains, n in sizes if trains), sum(n for _, n in sizes)


def summary(model: Any) -> str:
    """One line on full-parameter training: how many parameters train, and how many there are."""
    trained, total = count(model)
    return f"full-parameter: {trained:,} of {total:,} parameters trained"


def training_flops(model: Any) -> tuple[float, float]:
    """FLOPs of forward and backward: (per token, per supervised token), attention left out.

    A frozen matrix of N parameters costs 4·N a token (output and input gradient), a trained one
    6·N; the head 4·V·H a supervised token when frozen, 6·V·H when trained. Embeddings are look-ups.
    The same accounting as in Unsloth's and PaLM's (appendix B) model FLOP utilisation.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    assert head is not None, "the model has no head"

    def cost(layer: Any) -> float:
        return (6 if layer.weight.requires_grad else 4) * layer.in_features * layer.out_features

    trunk = [layer for name, layer in _linear(model) if in_language_model(name)]
    return float(sum(cost(layer) for layer in trunk if layer is not head)), float(cost(head))


def _linear(model: Any) -> list[tuple[str, Any]]:
    import torch

    return [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]


def _inner(name: str) -> bool:
    return in_language_model(name) and not _DELICATE.search(name)


def _leaf(name: str) -> str:
    """The end of a layer's name that says its kind: ``q_proj``, ``altup_projections.0``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]


@contextlib.contextmanager
def listed(model: Any) -> Iterator[None]:
    """While this lasts, parameters come from a list, and a model that trains is not told to: each step does both.

    A Gemma with an adapter has thousands of modules, and to walk through them takes longer than to start
    a step that is a CUDA graph.
    """
    parameters, plain = tuple(model.parameters()), model.train
    model.parameters = lambda recurse=True: iter(parameters)
    model.train = lambda mode=True: model if model.training == mode else plain(mode)
    try:
        yield
    finally:
        del model.parameters, model.train
