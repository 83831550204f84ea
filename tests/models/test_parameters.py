"""Which layers an adapter goes on, for every generation, and how that is written down; what trains and costs."""

import re

import pytest
from support import tiny

from ft import models
from ft.errors import UserError
from ft.models import lora, parameters

DENSE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
PER_LAYER = {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
EXPECTED = {
    "gemma3n": DENSE
    | PER_LAYER
    | {"linear_left", "linear_right", "altup_projections.0", "altup_unembed_projections.0"},
    "gemma4": DENSE | PER_LAYER,
    "gemma4_text": DENSE | PER_LAYER,
    "recurrent_gemma": DENSE | {"linear_x", "linear_y", "linear_out"},
}


def leaves(names: list[str]) -> set[str]:
    return {re.sub(r".*\.(?=[^.\d])", "", name) for name in names}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_auto_is_every_linear_layer_of_the_language_model(kind: str) -> None:
    model = tiny.build(kind)
    chosen = parameters.select(model, "auto")
    assert chosen == parameters.select(model, "all-linear")
    assert leaves(chosen) == EXPECTED.get(kind, DENSE)
    assert len(chosen) == len(set(chosen))
    for name in chosen:
        model.get_submodule(name)
        assert not re.search("vision|audio|embed_tokens|lm_head|router|altup\\.|multi_modal", name)
        assert "language_model" in name or kind not in tiny.MULTIMODAL
    layers = model.config.get_text_config().num_hidden_layers
    assert sum("down_proj" in name for name in chosen) == layers


@pytest.mark.parametrize("untie", [False, True])
def test_the_head_is_never_adapted(untie: bool) -> None:
    model = tiny.build("gemma3_text", tie_word_embeddings=not untie)
    assert not any("head" in name or "embed" in name for name in parameters.select(model))
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(UserError, match=f"target '{name}' matches no linear layer"):
            parameters.select(model, name)


def test_explicit_targets() -> None:
    model = tiny.build("gemma3")
    assert leaves(parameters.select(model, "q_proj, v_proj")) == {"q_proj", "v_proj"}
    assert parameters.select(model, ["q_proj", "v_proj"]) == parameters.select(
        model, "v_proj,q_proj"
    )
    one = parameters.select(model, "layers.1.mlp.down_proj")
    assert one == ["model.language_model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("q_poj", "'q_poj' matches no linear layer.*Nearest: q_proj.*all: down_proj, gate_proj"),
        ("q_proj,linear_x", "'linear_x' matches no"),
        ("proj", "'proj' matches no"),  # not a whole name, though names end so
        ("fc1", "'fc1' matches no"),  # only the vision tower has it
        (" , ", "no LoRA targets"),
        ([], "no LoRA targets"),
    ],
)
def test_targets_that_match_nothing(asked: str | list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parameters.select(tiny.build("gemma3"), asked)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("asked", ["auto", "q_proj,down_proj", "one layer"])
def test_what_is_written_down_means_the_same_layers(kind: str, asked: str) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    model = tiny.build(kind)  # towers and all, as others will load it
    one = parameters.select(model)[0]
    chosen = parameters.select(model, one if asked == "one layer" else asked)
    written = parameters.portable(model, chosen)
    assert isinstance(written, str) == (kind in tiny.MULTIMODAL or asked == "one layer")
    assert len(str(written)) < 1000
    inject_adapter_in_model(LoraConfig(target_modules=written), model)
    adapted = {name for name, module in model.named_modules() if hasattr(module, "lora_A")}
    assert adapted == set(chosen)


def base(kind: str, precision: str = "fp32") -> models.Base:
    model = tiny.build(kind)
    return models.Base(model, None, kind, None, precision, "transformers", "sdpa", ())  # pyright: ignore


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_language_model_trains_and_towers_do_not(kind):
    model = parameters.train_all(base(kind))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    towers = ("vision_tower", "audio_tower", "multi_modal_projector", "embed_vision", "embed_audio")
    assert frozen == {n for n, _ in model.named_parameters() if any(t in n for t in towers)}
    assert bool(frozen) == (kind in tiny.MULTIMODAL)
    total = sum(p.numel() for p in model.parameters())
    assert parameters.summary(model).endswith(f"of {total:,} parameters trained")


def test_four_bit_weights_cannot_be_trained():
    with pytest.raises(UserError, match="nf4 keeps the weights in 4 bits.*--lora-r 16"):
        parameters.train_all(base("gemma", "nf4"))


def test_flops_follow_from_the_shapes():
    model = tiny.build("gemma")
    config = model.config
    d, f, h = config.hidden_size, config.intermediate_size, config.head_dim
    q, kv = config.num_attention_heads * h, config.num_key_value_heads * h
    layer = d * q + 2 * d * kv + q * d + 3 * d * f
    trunk = config.num_hidden_layers * layer
    head = d * config.vocab_size
    assert parameters.training_flops(model) == (6 * trunk, 6 * head)
    adapted = lora.attach(model, r=2, alpha=2)
    adapter = parameters.count(adapted)[0]
    assert parameters.training_flops(adapted) == (4 * trunk + 6 * adapter, 4 * head)
