"""Gemma 3n and 4 as GGUF: the tensors, sizes and keys that llama.cpp's loader asks for (`src/models/gemma3n.cpp`, `gemma4.cpp`)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_gguf import LAYERS, NEWER, OVERRIDES, TOKENS, model_folder, read
from transformers import AutoModelForCausalLM

from ft.errors import UserError
from ft.models import gguf as gguf_tokenizer
from ft.runs import export, gguf_tensors

gguf = pytest.importorskip("gguf")
FAMILY = {"gemma3n": "gemma3n"} | dict.fromkeys(("gemma4_text", "gemma4_moe", "gemma4"), "gemma4")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A kind's folder, metadata and tensors, in f32; each is written once."""
    made: dict[str, Any] = {}

    def of(kind: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
        if kind not in made:
            place = tmp_path_factory.mktemp(kind)
            folder = model_folder(place / "model", kind)
            export.write(folder, place / "tiny.gguf", outtype="f32", name="tiny")
            made[kind] = (folder, *read(place / "tiny.gguf"))
        return made[kind]

    return of


def of_gemma3n() -> dict[str, tuple[int, ...]]:
    """Sizes that the loader asks for, the fastest dimension last: hidden 32, 2 heads of 16, 1 of keys, inner 1024."""
    block = {
        **{f"{n}_norm": (32,) for n in ("attn", "ffn", "post_attention", "post_ffw", "post")},
        **{"attn_q_norm": (16,), "attn_k_norm": (16,), "attn_output": (32, 32)},
        **{"attn_q": (32, 32), "attn_k": (16, 32), "attn_v": (16, 32)},
        **{"ffn_gate": (1024, 32), "ffn_up": (1024, 32), "ffn_down": (32, 1024)},
        **{"inp_gate": (256, 32), "proj": (32, 256)},
        **{"altup_correct_coef": (4, 4), "altup_predict_coef": (16, 4), "altup_router": (4, 32)},
        **{"altup_correct_scale": (32,), "altup_router_norm": (32,)},
        **{"laurel_l": (64, 32), "laurel_r": (32, 64), "laurel_post_norm": (32,)},
    }
    whole = {
        **{"token_embd": (300, 32), "output_norm": (32,), "altup_proj": (3, 32, 32)},
        **{"altup_unembd_proj": (3, 32, 32), "per_layer_token_embd": (300, 256 * LAYERS)},
        **{"per_layer_model_proj": (256 * LAYERS, 32), "per_layer_proj_norm": (256,)},
    }
    return whole | {f"blk.{n}.{key}": size for n in range(LAYERS) for key, size in block.items()}


def of_gemma4(kind: str) -> dict[str, tuple[int, ...]]:
    """The same; the second and fourth of four layers see everything, with heads of 32, and the last two share keys."""
    moe = kind == "gemma4_moe"
    whole = {"token_embd": (300, 32), "output_norm": (32,), "rope_freqs": (16,)}
    if not moe:
        whole |= {"per_layer_token_embd": (300, 32), "per_layer_model_proj": (32, 32)}
        whole |= {"per_layer_proj_norm": (8,)}
    for n in range(4):
        full, shares = n % 2 == 1, n > 1 and not moe
        head, inner = 32 if full else 16, 128 if shares and kind == "gemma4_text" else 64
        block = {f"{key}_norm": (32,) for key in ("attn", "ffn", "post_attention", "post_ffw")}
        block |= {"attn_q": (2 * head, 32), "attn_q_norm": (head,), "attn_output": (32, 2 * head)}
        block |= {"ffn_gate": (inner, 32), "ffn_up": (inner, 32), "ffn_down": (32, inner)}
        block |= {"layer_output_scale": (1,)}
        if not shares:
            block |= {"attn_k": (head, 32), "attn_k_norm": (head,)}
            block |= {} if moe and full else {"attn_v": (head, 32)}  # the keys are the values there
        if moe:
            block |= {f"{key}_ffw_norm_{m}": (32,) for key, m in (("pre", 2), ("post", 1), ("post", 2))}  # fmt: skip
            block |= {"ffn_gate_inp": (4, 32), "ffn_gate_inp.scale": (32,)}
            block |= {"ffn_gate_up_exps": (4, 64, 32), "ffn_down_exps": (4, 32, 32)}
            block |= {"ffn_down_exps.scale": (4,)}
        else:
            block |= {"inp_gate": (8, 32), "proj": (32, 8), "post_norm": (32,)}
        whole |= {f"blk.{n}.{key}": size for key, size in block.items()}
    return whole


@pytest.mark.parametrize("kind", NEWER)
def test_names_and_sizes_are_those_that_llama_cpp_asks_for(kind: str, written: Any) -> None:
    _, _, tensors = written(kind)
    wanted = of_gemma3n() if kind == "gemma3n" else of_gemma4(kind)
    wanted = {k if k.endswith(".scale") else f"{k}.weight": size for k, size in wanted.items()}
    assert {key: value.shape for key, value in tensors.items()} == wanted


@pytest.mark.parametrize("kind", NEWER)
def test_values_are_the_models_own(kind: str, written: Any) -> None:
    folder, _, tensors = written(kind)
    model = AutoModelForCausalLM.from_pretrained(folder)
    state = {k.replace("language_model.", ""): v.numpy() for k, v in model.state_dict().items()}
    same = {"output_norm.weight": "model.norm.weight"}  # no 1 is added to a norm here
    same |= {"blk.1.attn_q_norm.weight": "model.layers.1.self_attn.q_norm.weight"}
    same |= {"blk.3.ffn_down.weight": "model.layers.3.mlp.down_proj.weight"}
    if FAMILY[kind] == "gemma4":
        same |= {"blk.2.layer_output_scale.weight": "model.layers.2.layer_scalar"}
    if kind == "gemma4_moe":
        same |= {"blk.0.ffn_gate_inp.scale": "model.layers.0.router.scale"}
        same |= {"blk.0.ffn_down_exps.scale": "model.layers.0.router.per_expert_scale"}
        same |= {"blk.0.ffn_gate_up_exps.weight": "model.layers.0.experts.gate_up_proj"}
    for ours, theirs in same.items():
        np.testing.assert_array_equal(tensors[ours], state[theirs], err_msg=ours)
    if kind == "gemma3n":
        for n in range(3):
            theirs = state[f"model.altup_unembed_projections.{n}.weight"]
            np.testing.assert_array_equal(tensors["altup_unembd_proj.weight"][n], theirs)
        table = tensors["per_layer_token_embd.weight"]
        np.testing.assert_array_equal(table[:290], state["model.embed_tokens_per_layer.weight"])
        assert not table[290:].any()  # of images and sounds
        assert not tensors[f"blk.{LAYERS - 1}.attn_k.weight"].any()  # shared, and never looked at
        assert tensors[f"blk.{LAYERS - 6}.attn_k.weight"].any()
    else:  # a quarter of each head of 32 turns
        assert tensors["rope_freqs.weight"].tolist() == [1.0] * 4 + [np.float32(1e30)] * 12


def test_a_large_tensor_is_converted_in_pieces(written: Any, tmp_path: Path, monkeypatch) -> None:
    folder, _, tensors = written("gemma3n")
    monkeypatch.setattr(gguf_tensors, "ROWS", 40)  # one matrix of a stack at a time
    export.write(folder, tmp_path / "pieces.gguf", outtype="f32", name="tiny")
    _, pieces = read(tmp_path / "pieces.gguf")
    for key, value in tensors.items():
        np.testing.assert_array_equal(pieces[key], value, err_msg=key)


@pytest.mark.parametrize("kind", NEWER)
def test_metadata_says_what_the_configuration_does(kind: str, written: Any) -> None:
    _, meta, _ = written(kind)
    arch = FAMILY[kind]
    found = {k.removeprefix(f"{arch}."): v for k, v in meta.items() if k.startswith(f"{arch}.")}
    sliding = [True, False] * 2 if arch == "gemma4" else ([True] * 4 + [False]) * 5
    shared = {"gemma3n": 5, "gemma4_moe": 0}.get(kind, 2)
    wanted = {
        "block_count": len(sliding),
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": shared,
        "attention.sliding_window": 8,
        "attention.key_length": 16 if kind == "gemma3n" else 32,
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "final_logit_softcapping": 30.0,
        "embedding_length_per_layer_input": {"gemma3n": 256, "gemma4_moe": 0}.get(kind, 8),
    }
    if kind == "gemma3n":
        wanted |= {"altup.num_inputs": 4, "altup.active_idx": 0}
        assert found["activation_sparsity_scale"][:10] == pytest.approx([1.6448536] * 10)
    else:
        wanted |= {"attention.key_length_swa": 16, "attention.value_length_swa": 16}
        wanted |= {"rope.dimension_count": 32, "rope.dimension_count_swa": 16}
    if kind == "gemma4_text":
        wanted["feed_forward_length"] = [64, 64, 128, 128]
    if kind == "gemma4_moe":
        wanted |= {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
    assert {key: found.get(key) for key in wanted} == wanted


def test_gemma4_brings_its_tokens_and_merges_without_scores(written: Any) -> None:
    folder, meta, _ = written("gemma4_text")
    assert meta["tokenizer.ggml.model"] == "gemma4"
    tokens, kinds = (meta[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    assert tokens[: len(TOKENS)] == TOKENS
    assert tokens[-1] == "[PAD299]"
    assert len(tokens) == len(kinds) == len(meta["tokenizer.ggml.scores"]) == 300
    assert kinds[TOKENS.index("<0x41>")] == gguf_tokenizer.BYTE
    assert kinds[TOKENS.index("<bos>")] == gguf_tokenizer.CONTROL
    merges = json.loads((folder / "tokenizer.json").read_text())["model"]["merges"]
    assert len(meta["tokenizer.ggml.merges"]) == len(merges) > 0
    assert meta["tokenizer.ggml.add_bos_token"]


def test_few_bits_leave_small_matrices_and_embeddings_more(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", "gemma3n")
    export.write(folder, tmp_path / "tiny.gguf", outtype="q4_0", name="tiny")
    _, places = gguf_tokenizer.read_header(bytearray((tmp_path / "tiny.gguf").read_bytes()))
    kinds = {name: gguf.GGMLQuantizationType(kind).name for name, (_, kind, _) in places.items()}
    assert kinds["blk.0.altup_predict_coef.weight"] == kinds["blk.0.attn_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == kinds["per_layer_token_embd.weight"] == "Q8_0"
    assert kinds["altup_proj.weight"] == kinds["blk.0.laurel_l.weight"] == "Q4_0"


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("gemma3n", {"laurel_rank": 4}, "laurel_rank 4; it takes 64"),
        ("gemma3n", {"num_kv_shared_layers": 4}, "num_kv_shared_layers 4; it takes all after 20"),
        ("gemma3n", {"activation_sparsity_pattern": [0.0] * LAYERS}, "other than 0.95 in 10"),
        (
            "gemma4_text",
            {"layer_types": ["full_attention", "sliding_attention"] * 2 + ["full_attention"]},
            "share keys of others than a sliding and a full one",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_otherwise(
    kind: str, overrides: dict[str, Any], said: str, tmp_path: Path
) -> None:
    layers = {"num_hidden_layers": 5, "num_kv_shared_layers": 3} if kind == "gemma4_text" else {}
    folder = model_folder(tmp_path / "model", kind, **OVERRIDES[kind] | layers | overrides)
    with pytest.raises(UserError, match=said):
        export.write(folder, tmp_path / "tiny.gguf", name="tiny")
    assert not (tmp_path / "tiny.gguf").exists()
