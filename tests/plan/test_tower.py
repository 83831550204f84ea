"""The image tower in a memory plan: counted as it is built, and by what trains of it."""

import contextlib

import pytest
import torch
from support import allocations, seeing

from ft import models
from ft.models import lora, parameters, tiny_vision
from ft.plan import settings, shapes, tower
from ft.plan.shapes import TABLE

SETTINGS = {
    "model_name_or_path": "google/gemma-3-4b-it",
    "precision": "nf4",
    "lora_r": 16,
    "train_vision": False,
    "optim": "adamw",
    "max_length": 512,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
}


def plan(images=None, **changed):
    return settings.of(SETTINGS | changed, device="cuda", images=images)


def test_parameters_are_those_of_the_published_model_and_of_a_built_one(tmp_path):
    shape = shapes.of("google/gemma-3-4b-it")
    found = tower.tower_of("google/gemma-3-4b-it", shape)
    assert found.parameters == TABLE["gemma-3-4b"].towers
    base = models.load(str(seeing.folder(tmp_path)), precision="fp32", text_only=False)
    built = tower.tower_of(str(tmp_path), shapes.of(str(tmp_path)))
    assert built == tower.tower_of("tiny-vision", shapes.of("tiny-vision"))
    of_images = [p.numel() for n, p in base.model.named_parameters() if parameters.sees(n)]
    assert built.parameters == sum(of_images)
    model = lora.attach(base, r=4, alpha=8, vision=True)
    trained = [p.numel() for n, p in model.named_parameters() if p.requires_grad]
    of_text = [
        p.numel() for n, p in model.named_parameters() if p.requires_grad and "language" in n
    ]
    assert built.adapter(4) + built.projector == sum(trained) - sum(of_text)


def test_a_plan_counts_the_tower_where_images_are_shown():
    shown, text = plan(), settings.of({k: v for k, v in SETTINGS.items() if k != "train_vision"})
    assert dict(shown.parts)["image tower and projector"] == 2 * TABLE["gemma-3-4b"].towers
    assert "image tower and projector" not in dict(text.parts)
    assert dict(plan(images=8).most)["images, passing the tower"] == pytest.approx(
        2 * dict(plan(images=4).most)["images, passing the tower"]
    )


def test_training_the_tower_keeps_its_activations_or_recomputes_them():
    frozen, trained = plan(), plan(train_vision=True)
    again = plan(train_vision=True, gradient_checkpointing=True)
    assert trained.trained > frozen.trained
    kept, less = (dict(p.parts)["activations of the tower"] for p in (trained, again))
    assert kept > 5 * less
    assert trained.peak > frozen.peak + kept
    more = plan(images=8, train_vision=True)
    assert dict(more.parts)["activations of the tower"] == 2 * kept


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_tower_keeps_is_what_was_counted(precision, tmp_path):
    """Of an adapter on it, within a tenth: what normalisation and low ranks keep is not counted."""
    place = seeing.folder(tmp_path)
    base = models.load(str(place), precision=precision, text_only=False)
    model = lora.attach(base, r=4, alpha=8, vision=True).train()
    seer = model.get_base_model().model.vision_tower
    size = seer.config.image_size
    inputs = torch.randn(3, 3, size, size)
    half = precision == "bf16"
    under = torch.autocast("cpu", torch.bfloat16) if half else contextlib.nullcontext()

    def forward() -> None:
        with under:
            seer(pixel_values=inputs)

    counted = tower.tower_of(str(place), shapes.of(str(place)))
    planned = counted.kept(3, 2 if half else 4, checkpointing=False)
    assert planned == pytest.approx(allocations.kept(model, forward), rel=0.1)


def test_of_other_towers_the_weights_alone():
    found = plan(model_name_or_path="google/gemma-3n-E2B-it", train_vision=True)
    assert dict(found.parts)["image tower and projector"] == 2 * TABLE["gemma-3n-E2B"].towers
    assert "activations of the tower" not in dict(found.parts)


def test_a_whole_model_counts_its_tower_once():
    name = "google/gemma-3-4b-it"
    found = plan(model_name_or_path=name, lora_r=0, precision="bf16", train_vision=True)
    towers = [part for part, _ in found.parts if part.startswith("image") and "tower" in part]
    assert towers == ["image and audio towers"]
    assert found.trained == found.parameters
    assert tiny_vision.CONFIG["vision_config"] == tiny_vision.TOWER
