"""Full-parameter training: every parameter of the language model, and none of an image or audio tower."""

import re
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOWERS = re.compile(r"(^|\.)(vision_|audio_|embed_vision|embed_audio|multi_modal)")
VISION = re.compile(r"(^|\.)(vision_|embed_vision|multi_modal)")


def trains(name: str, *, vision: bool = False) -> bool:
    """Whether the parameter of this path belongs to the language model, or to the image tower's side."""
    return not TOWERS.search(name) or (vision and bool(VISION.search(name)))


def attach(base: Any, *, vision: bool = False) -> "PreTrainedModel":
    """The model of a ``models.Base`` with all parameters of the language model trainable.

    With ``vision`` also those of the image tower and of what projects its results.

    Raises ``UserError`` for 4-bit weights, which have no gradient.
    """
    if base.precision == "nf4":
        raise UserError(
            "precision nf4 keeps the weights in 4 bits, which cannot be trained: give --lora-r 16 "
            "for QLoRA, or --precision fp32 or bf16"
        )
    for name, parameter in base.model.named_parameters():
        parameter.requires_grad_(trains(name, vision=vision))
    return base.model


def summary(model: Any) -> str:
    """One line: how many parameters train, and how many there are."""
    sizes = [(p.requires_grad, p.numel()) for p in model.parameters()]
    trained, total = sum(n for trains, n in sizes if trains), sum(n for _, n in sizes)
    return f"full-parameter: {trained:,} of {total:,} parameters trained"
