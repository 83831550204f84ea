"""Which linear layers of a Gemma an adapter goes on, by full name, and how to write that down."""

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from ft.errors import UserError

# Never adapted: the towers and their projectors, the head, MoE routers (whose choices would jump),
# and Gemma 3n's AltUp coefficients, which its training code reads around any adapter.
EXCLUDED = re.compile(r"(^|\.)(vision|audio|embed_|multi_modal|lm_head|router\.|altup\.)")
# What an image tower looks with; a head that pools its results into one is no part of a Gemma.
TOWER = re.compile(r"(^|\.)vision_tower\.(?!(.*\.)?head\.)")
PROJECTORS = ("multi_modal_projector", "embed_vision")
AUTO = ("auto", "all-linear")  # ours, and PEFT's name for it


def linear_layers(model: Any) -> list[str]:
    """The full names of the language model's linear layers, 4-bit ones included, in their order.

    A mixture of experts keeps its experts in stacked tensors, not in linear layers: they are not
    among them.
    """
    import torch

    names = [n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    return [name for name in names if not EXCLUDED.search(name)]


def tower_layers(model: Any) -> list[str]:
    """The full names of the image tower's linear layers. Raises ``UserError`` where there are none."""
    import torch

    linear = [n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if not (found := [name for name in linear if TOWER.search(name)]):
        raise UserError(
            "this model's image tower has no linear layers to adapt: leave out --train-vision, or train all "
            "parameters with --lora-r 0"
        )
    return found


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


def _leaf(name: str) -> str:
    """The end of a layer's name that says its kind: ``q_proj``, ``altup_projections.0``."""
    parts = name.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() else parts[-1]
