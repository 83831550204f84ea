"""Adapters as others save them: what means the same is read, what does not fit is named with its reason."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import tiny
from transformers import AutoModelForCausalLM

from ft import models
from ft.errors import UserError
from ft.models import lora
from ft.models.load import _tokenizer
from ft.runs import merge

PLAIN = "base_model.model.model."
# PEFT warns of what these tests are about: tied weights that an adapter is on, and are saved with it
pytestmark = [
    pytest.mark.filterwarnings("ignore:Model (has|with) `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.folder("gemma3_text", tmp_path_factory.mktemp("base") / "model")


def adapter(
    base: Path, to: Path, rename=lambda name: name, grow: int = 0, **options
) -> torch.Tensor:
    """A plain PEFT adapter that changes the model; returns the logits of both."""
    inner = AutoModelForCausalLM.from_pretrained(base)
    if grow:
        inner.resize_token_embeddings(inner.config.vocab_size + grow)
    model = get_peft_model(
        inner, LoraConfig(r=4, task_type="CAUSAL_LM", **{"target_modules": ["q_proj"], **options})
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(to), save_embedding_layers=bool(grow) or "auto")
    file = to / "adapter_model.safetensors"
    save_file({rename(k): v for k, v in load_file(file).items()}, file, metadata={"format": "pt"})
    return merge.logits(model, [torch.arange(5, 25)[None]])[0]


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: "_orig_mod." + name,
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda name: name.replace(PLAIN, PLAIN + "language_model."),
        lambda name: name.replace(PLAIN, "base_model.model.language_model.model."),
    ],
    ids=["today's", "compiled", "compiled inside", "text of a newer", "text of an older"],
)
def test_other_names_of_the_same_tensors(rename, base: Path, tmp_path: Path) -> None:
    wanted = adapter(base, tmp_path / "a", rename)
    model = lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")
    found = merge.logits(model, [torch.arange(5, 25)[None]])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_gemma_3_with_a_tower_from_before_its_names_changed(tmp_path: Path) -> None:
    base = tiny.folder("gemma3", tmp_path / "base")
    new, old = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    targets = r".*language_model.*\.q_proj"
    wanted = adapter(base, tmp_path / "a", lambda n: n.replace(new, old), target_modules=targets)
    assert any(key.startswith(old) for key in load_file(tmp_path / "a/adapter_model.safetensors"))
    loaded = models.load(str(base), precision="fp32", text_only=False)
    found = merge.logits(lora.load(loaded, tmp_path / "a"), [torch.arange(5, 25)[None]])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", tiny.MULTIMODAL)
def test_layers_on_towers_are_left_out_where_the_towers_are(kind: str, tmp_path: Path) -> None:
    base = tiny.folder(kind, tmp_path / "base")
    wanted = adapter(base, tmp_path / "a", target_modules="all-linear")
    assert any("vision_tower" in key for key in load_file(tmp_path / "a/adapter_model.safetensors"))
    model = lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")
    found = merge.logits(model, [torch.arange(5, 25)[None]])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(
        UserError, match=r"fit nothing, such as .*_tower"
    ):  # it would be saved without
        lora.load(models.load(str(base), precision="fp32"), tmp_path / "a", trainable=True)


def test_layers_on_a_tower_from_before_its_names_changed_are_merged(tmp_path: Path) -> None:
    base = tiny.folder("gemma3", tmp_path / "base")
    new, old = "model.model.vision_tower.", "model.model.vision_tower.vision_model."
    adapter(base, tmp_path / "a", lambda n: n.replace(new, old), target_modules="all-linear")
    merge.merge(tmp_path / "a", tmp_path / "out", prompts=["Hello"], base=str(base))
    weights = [load_file(folder / "model.safetensors") for folder in (base, tmp_path / "out")]
    name = next(n for n in weights[0] if "vision_tower" in n and n.endswith("q_proj.weight"))
    assert not torch.equal(weights[0][name], weights[1][name])


def test_what_does_not_fit_is_named(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "a", lambda name: name.replace("layers.1.", "layers.91."))
    with pytest.raises(
        UserError,
        match=r"a does not fit .*model: 2 of its tensors are missing and 2 fit nothing, such as .*layers\.1\.",
    ):
        lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("lora_alpha", None),
        ("r", 0),
        ("r", "four"),
        ("r", 4.0),
        ("target_modules", 5),
        ("target_modules", "(q_proj"),
        ("rank_pattern", None),
        ("lora_dropout", "x"),
        ("megatron_config", {"a": 1}),
        ("arrow_config", {"a": 1}),
    ],
)
def test_configurations_that_are_no_lora(
    key: str, value: object, base: Path, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    said = str(value) if key in ("peft_type", "lora_alpha", "r") else "PEFT makes no adapter"
    with pytest.raises(UserError, match=rf"adapter_config\.json.*{said}"):
        lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")


def test_a_resized_vocabulary_is_the_reason(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "a", grow=4)
    with pytest.raises(
        UserError,
        match=r"does not fit .*(embed_tokens|lm_head).* has 404 rows and the base's 400: the vocabulary was resized",
    ):
        lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")


def test_lora_on_the_embedding_is_used_and_not_merged_where_the_head_shares_it(
    base: Path, tmp_path: Path
) -> None:
    wanted = adapter(base, tmp_path / "a", target_modules=["q_proj", "embed_tokens"])
    model = lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")
    found = merge.logits(model, [torch.arange(5, 25)[None]])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    with pytest.raises(
        UserError, match=r"a has LoRA on .*embed_tokens, whose weight is the head's"
    ):
        merge.merge(tmp_path / "a", tmp_path / "out", prompts=["Hello"], base=str(base))
    assert not (tmp_path / "out").exists()


def test_lora_on_the_head_is_refused(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"a has LoRA on the head \(.*lm_head\.lora_A\.weight\)"):
        lora.load(models.load(str(base), precision="fp32"), tmp_path / "a")


def test_an_adapter_of_a_4_bit_copy_goes_on_the_16_bit_model(base: Path, tmp_path: Path) -> None:
    adapter(base, tmp_path / "a")
    file = tmp_path / "a" / "adapter_config.json"
    named = {"base_model_name_or_path": "unsloth/gemma-3-1b-it-unsloth-bnb-4bit"}
    file.write_text(json.dumps(json.loads(file.read_text()) | named))
    loaded = models.load(str(base), precision="fp32")
    loaded.model.name_or_path = "unsloth/gemma-3-1b-it"
    lora.load(loaded, tmp_path / "a")
    loaded.model.name_or_path = "unsloth/gemma-3-4b-it"
    with pytest.raises(UserError, match="trained on unsloth/gemma-3-1b-it, not on"):
        lora.load(loaded, tmp_path / "a")


def test_a_sentencepiece_model_alone_needs_protobuf(
    base: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "tokenizer.model").touch()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="a tokenizer.model alone, .* pip install protobuf"):
        _tokenizer(tmp_path, "model")
