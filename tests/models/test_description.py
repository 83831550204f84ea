"""What a model is made of: as many parameters as loading gives, 4-bit where loading has them, no weight read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny

from ft import models
from ft.models import description, parameters

GEMMA_2B = {
    "model_type": "gemma",
    "architectures": ["GemmaForCausalLM"],
    "vocab_size": 256_000,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "hidden_act": "gelu_pytorch_tanh",
    "rope_theta": 10_000.0,
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_parts_are_the_models_parameters(kind: str, folder: Callable[[str], str]) -> None:
    model, towers = description.skeleton(folder(kind))
    assert all(p.device.type == "meta" for p in model.parameters())
    parts = description.parameters_of(model, "fp32")
    loaded = models.load(folder(kind), precision="fp32").model
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in loaded.parameters())
    assert sum(part.bytes for part in parts) == sum(p.nbytes for p in loaded.parameters())
    assert {part.dtype for part in parts} == {"float32"}
    assert bool(towers) == (kind in tiny.MULTIMODAL)
    told = description.facts(model)
    assert {"positions", "activation", "norms", "soft caps", "context"} <= {
        name for name, _ in told
    }
    layers = list(range(loaded.config.get_text_config().num_hidden_layers))
    assert sorted({layer for part in parts for layer in part.layers}) == layers
    found = []
    for text in (text for name, text in told if name == "attention"):
        for span in text.rpartition("layers ")[2].split(", "):
            first, _, last = span.partition("-")
            found += range(int(first), int(last or first) + 1)
    assert sorted(found) == layers


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma3n", "gemma4_moe", "recurrent_gemma"])
def test_nf4_is_where_loading_puts_it(kind: str, folder: Callable[[str], str]) -> None:
    import bitsandbytes

    loaded = models.load(folder(kind), precision="nf4").model
    quantised = {
        f"{name}.weight"
        for name, module in loaded.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }
    parts = description.parameters_of(description.skeleton(folder(kind))[0], "nf4")
    found = {
        part.name.replace("*", str(layer))
        for part in parts
        if part.dtype == "nf4"
        for layer in part.layers or [0]
    }
    assert found == quantised
    assert found
    assert not any(part.trained for part in parts)


def test_a_published_name_tells_the_licence() -> None:
    model = tiny.build("gemma3_text")
    assert "Gemma Terms of Use" in description.licence("google/gemma-3-1b-it", model)
    assert "Apache License 2.0" in description.licence("google/gemma-4-E2B", model)


def test_spans() -> None:
    assert description.spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert description.spans([]) == ""


def test_no_weight_is_needed(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA_2B))
    model, _ = description.skeleton(str(tmp_path))
    assert parameters.count(model) == (2_506_172_416, 2_506_172_416)
    assert all(parameter.is_meta for parameter in model.parameters())
