"""The image tower of a plan: its sizes, and what it takes beside the language model."""

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.models import tiny_vision
from ft.plan.peak import Plan
from ft.plan.shapes import Shape
from ft.train.optim import STATE_BYTES


@dataclass(frozen=True)
class Tower:
    """The sizes of a SigLIP tower without a pooling head, and of Gemma 3's projector behind it."""

    layers: int
    hidden: int
    inner: int
    patches: int  # of an image
    patch: int  # pixels of a patch's side
    text: int  # width of the language model

    @property
    def parameters(self) -> int:
        """Of tower and projector."""
        h = self.hidden
        layer = 4 * (h * h + h) + 2 * h * self.inner + self.inner + h + 4 * h
        around = 3 * self.patch**2 * h + h + self.patches * h + 2 * h
        return self.layers * layer + around + self.projector

    @property
    def projector(self) -> int:
        """Parameters of the projector."""
        return self.hidden * (self.text + 1)

    def adapter(self, r: int) -> int:
        """Parameters of an adapter on the tower's linear layers."""
        h = self.hidden
        return self.layers * r * (4 * 2 * h + 2 * (h + self.inner))

    def kept(self, images: int, width: int, *, checkpointing: bool) -> int:
        """Bytes that its layers keep of a batch's images for the backward."""
        layer = images * self.patches * (8 * self.hidden + 2 * self.inner) * width
        if not checkpointing:
            return self.layers * layer
        return self.layers * images * self.patches * self.hidden * width + layer

    def passing(self, images: int, width: int) -> int:
        """Bytes that a layer takes where nothing is kept: input, and attention or MLP, whichever is more."""
        most = max(4 * self.hidden, 2 * self.inner)
        return images * self.patches * (2 * self.hidden + most) * width


def tower_of(name: str, shape: Shape) -> Tower | None:
    """The tower of a Gemma 3 by Hub id or local folder; none where its sizes are not known (Gemma 3n and 4)."""
    if re.fullmatch(r"google/gemma-3-(4b|12b|27b)-(it|pt)(@.*)?", name):
        return Tower(27, 1152, 4304, 64 * 64, 14, shape.hidden_size)
    file = Path(name).expanduser() / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config = tiny_vision.CONFIG if name == "tiny-vision" else config
    if config.get("model_type") != "gemma3":
        return None
    v = config["vision_config"]
    patches = (v["image_size"] // v["patch_size"]) ** 2
    sizes = (v["num_hidden_layers"], v["hidden_size"], v["intermediate_size"])
    return Tower(*sizes, patches, v["patch_size"], shape.hidden_size)


def with_tower(
    plan: Plan, shape: Shape, settings: Mapping[str, Any], *, width: int, images: int
) -> Plan:
    """The plan of a recipe's settings for the language model, and the tower that sees ``images`` at once.

    ``width`` is the bytes of a weight of the tower, which is never in 4 bits. What passes through a
    frozen tower is gone before the language model's peak.
    """
    tower = tower_of(settings["model_name_or_path"], shape)
    rank, optim = settings["lora_r"], settings["optim"]
    counted = (
        not rank and shape.towers
    )  # a table's towers are in the plan of a model that trains whole
    size = 0 if counted else tower.parameters if tower else shape.towers
    always = {"image tower and projector": size * width} if size else {}
    most: dict[str, int] = {}
    trained = 0
    if tower and settings["train_vision"]:
        trained = tower.adapter(rank) + tower.projector if rank else tower.parameters
        each = 4 if rank else width
        states = STATE_BYTES[optim] * (each / 4 if optim == "adamw" else 1)
        always["training of the tower"] = int(trained * (each + states + (4 if rank else 0)))
        always["activations of the tower"] = tower.kept(
            images, width, checkpointing=settings["gradient_checkpointing"]
        )
    elif tower:
        most["images, passing the tower"] = tower.passing(images, width)
    return dataclasses.replace(
        plan,
        parts=(*plan.parts, *always.items()),
        most=(*plan.most, *always.items(), *most.items()),
        parameters=plan.parameters + size,
        trained=plan.trained + trained,
    )
