"""What vLLM loads: its names for each Gemma generation, an adapter's modules that it would leave out, a merged folder."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from ft import models
from ft.models import lora
from ft.runs import merge, vllm

# vLLM 0.33.0's own names of one layer's module, by the kind of the tiny model
PINNED = {
    "gemma": "model.layers.1.self_attn.q_proj",
    "gemma2": "model.layers.1.self_attn.q_proj",
    "gemma3_text": "model.layers.1.self_attn.q_proj",
    "gemma3": "language_model.model.layers.1.self_attn.q_proj",
    "gemma4_text": "model.layers.1.self_attn.q_proj",
    "gemma4": "language_model.model.layers.1.self_attn.q_proj",
}


def made(kind: str, folder: Path, **options) -> tuple[Path, Path]:
    """The folders of a base and of an adapter that ``ft`` trains on it."""
    base = tiny.folder(kind, folder / "base")
    torch.manual_seed(1)
    model = lora.attach(models.load(str(base), precision="fp32"), r=4, alpha=8, **options)
    model.save_pretrained(folder / "adapter")
    return base, folder / "adapter"


def config_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", PINNED)
def test_all_modules_of_our_adapters_have_the_names_that_it_loads(
    kind: str, tmp_path: Path
) -> None:
    base, adapter = made(kind, tmp_path)
    found = vllm.adapter(adapter, config_of(base))
    layers = {
        re.sub(r"\.lora_[AB].*", "", key)
        for key in load_file(adapter / "adapter_model.safetensors")
    }
    assert (found.modules, found.ignored, found.halved, found.refused) == (len(layers), (), (), "")
    assert "--max-lora-rank 8" in str(found)
    names = {
        vllm._named(vllm.NAMES[config_of(base)["model_type"]], x.removeprefix("base_model.model."))
        for x in layers
    }
    assert PINNED[kind] in names


@pytest.mark.parametrize("kind", [*PINNED, "gemma3n", "gemma4_moe"])
def test_a_merged_folder_has_the_names_that_it_loads(kind: str, tmp_path: Path) -> None:
    base = tiny.folder(kind, tmp_path / "base")
    assert vllm.merged(base) == ""
    file = base / "model.safetensors"
    tensors = load_file(file)
    strange = {name.replace("layers.", "blocks."): tensor for name, tensor in tensors.items()}
    save_file(
        {
            f"odd.{name}": tensor
            for name, tensor in strange.items()
            if "vision" not in name and "audio" not in name
        },
        file,
        metadata={"format": "pt"},
    )
    assert vllm.merged(base).startswith("vLLM 0.33.0 has no place for odd.")


CONFIG = {"model_type": "gemma3_text"}
KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
INSIDE = KEY.replace("model.layers", "model.language_model.layers")
LORA = {"r": 32, "lora_alpha": 8}


def test_names_of_another_class_are_left_out_silently() -> None:
    """An adapter of the multimodal class on the text model, and the other way round."""
    assert vllm.taken([KEY], LORA, CONFIG).ignored == ()
    lost = vllm.taken([KEY, INSIDE], LORA, CONFIG)
    assert lost.ignored == ("model.language_model.layers.0.self_attn.q_proj",)
    assert "1 of 2 modules are left out" in str(lost)
    both = {"model_type": "gemma3", "text_config": {}}
    assert vllm.taken([INSIDE], LORA, both).ignored == ()
    assert vllm.taken([KEY], LORA, both).ignored == ("model.layers.0.self_attn.q_proj",)
    for key in (KEY, INSIDE):  # Gemma 4's classes know both
        for kind in ("gemma4", "gemma4_text"):
            assert vllm.taken([key], LORA, {"model_type": kind}).ignored == ()
    tower = KEY.replace("model.layers", "model.vision_tower.encoder.layers")
    assert vllm.taken([tower], LORA, both).ignored


def test_keys_that_are_values_too() -> None:
    """Gemma 4 of 26B and 31B: the matrix of the keys makes the values; there its LoRA reaches the keys alone."""
    kinds = ["sliding_attention", "full_attention"]
    large = {
        "model_type": "gemma4",
        "text_config": {"attention_k_eq_v": True, "layer_types": kinds},
    }
    keys = [
        INSIDE.replace("layers.0", f"layers.{i}").replace("q_proj", n)
        for i in (0, 1)
        for n in ("q_proj", "k_proj")
    ]
    assert vllm.taken(keys, LORA, large).halved == (
        "model.language_model.layers.1.self_attn.k_proj",
    )


@pytest.mark.parametrize(
    ("values", "tensors", "config", "said"),
    [
        ({"use_dora": True}, [KEY], CONFIG, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, [KEY], CONFIG, "modules_to_save"),
        ({"bias": "all"}, [KEY], CONFIG, "bias"),
        (
            {},
            [KEY.replace("model.layers.0.self_attn.q_proj", "lm_head")],
            CONFIG,
            "LoRA on lm_head",
        ),
        ({}, [KEY], {"model_type": "gemma3n_text"}, "its class of gemma3n_text takes none"),
        ({}, [KEY], {"model_type": "recurrent_gemma"}, "its class of recurrent_gemma takes none"),
    ],
)
def test_what_it_refuses(values, tensors, config, said) -> None:
    found = vllm.taken(tensors, LORA | values, config)
    assert found.refused == said
    assert "is refused there" in str(found)


def test_a_start_within_the_base_is_no_adapter_of_it() -> None:
    found = vllm.taken([KEY], {"r": 4, "init_lora_weights": "pissa"}, {"model_type": "gemma3_text"})
    assert "began as a part of its base (pissa), and answers otherwise" in str(found)


def test_ranks_are_those_that_it_takes() -> None:
    assert "--max-lora-rank 32" in str(vllm.taken([KEY], LORA, CONFIG))
    assert "--max-lora-rank 64" in str(
        vllm.taken([KEY], LORA | {"rank_pattern": {"q_proj": 40}}, CONFIG)
    )


def test_a_head_of_its_own(tmp_path: Path) -> None:
    for kind, refused in (("gemma2", True), ("gemma3_text", False)):
        base = tiny.folder(kind, tmp_path / kind, tie_word_embeddings=False)
        assert ("one matrix for both" in vllm.merged(base)) == refused
    assert "no class for recurrent_gemma" in vllm.merged(
        tiny.folder("recurrent_gemma", tmp_path / "r")
    )


def test_the_line_beside_a_merged_folder(tmp_path: Path) -> None:
    _, adapter = made("gemma3_text", tmp_path, variant="dora")
    merge.merge(adapter, tmp_path / "out", prompts=["Hello"])
    said = vllm.line(adapter, tmp_path / "out")
    assert said == (
        f"vLLM 0.33.0 loads this folder (vllm serve {tmp_path / 'out'}); the adapter alone is refused there: DoRA"
    )
