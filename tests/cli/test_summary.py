"""What the summary says of every Gemma: the published numbers, without a weight being read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import finished_run, tiny

from ft.cli import summary
from ft.errors import UserError

# config.json of published models: what their reports count, and how they attend
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
GEMMA_2_2B = GEMMA_2B | {
    "model_type": "gemma2",
    "architectures": ["Gemma2ForCausalLM"],
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
GEMMA_3_270M = GEMMA_2B | {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262_144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_attention_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "query_pre_attn_scalar": 256,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "max_position_embeddings": 32_768,
}


def write(folder: Path, config: dict[str, Any]) -> str:
    """A folder with a configuration and no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def said(name: str, capsys: Any, precision: str | None = None) -> str:
    summary.command(name, precision)
    lines = capsys.readouterr().out.splitlines()
    return "\n".join(" ".join(line.split()) for line in lines)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            GEMMA_2B,
            [
                "parameters 2,506,172,416, 524,288,000 of them embed tokens; 4.67 GiB",
                "model.layers.*.self_attn.q_proj.weight 0-17 2048 × 2048 75,497,472 bfloat16 yes",
                "attention 8 heads of 256, multi-query, 1 key-value head, all tokens before: layers 0-17",
                "positions RoPE, theta 10,000",
                "activation gelu_pytorch_tanh, gated",
                "norms RMSNorm, epsilon 1e-06: input_layernorm, post_attention_layernorm",
                "soft caps none",
                "context 8,192 tokens",
                "vocabulary 256,000 tokens, the head is the embedding",
            ],
        ),
        (
            GEMMA_2_2B,
            [
                "parameters 2,614,341,888,",
                "grouped, 4 key-value heads, sliding window of 4,096 tokens: layers 0, 2, 4,",
                "grouped, 4 key-value heads, all tokens before: layers 1, 3, 5,",
                "soft caps 50 on attention, 30 on logits",
                "pre_feedforward_layernorm, post_feedforward_layernorm",
            ],
        ),
        (
            GEMMA_3_270M,
            [
                "parameters 268,098,176, 167,772,160 of them embed tokens;",
                "sliding window of 512 tokens: layers 0-4, 6-10, 12-16",
                "all tokens before: layers 5, 11, 17",
                "sliding layers theta 10,000",
                "full layers theta 1,000,000",
                "norms RMSNorm, epsilon 1e-06: q_norm, k_norm, input_layernorm,",
                "context 32,768 tokens",
            ],
        ),
    ],
    ids=["gemma-2b", "gemma-2-2b", "gemma-3-270m"],
)
def test_a_published_model(
    config: dict[str, Any], expected: list[str], tmp_path: Path, capsys: Any
) -> None:
    out = said(write(tmp_path / "model", config), capsys)
    for text in expected:
        assert text in out
    assert "\x1b" not in out
    assert "(100.00%)" in out


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("gemma3n", ["keys and values of an earlier layer, sliding window of 8 tokens: layers 2"]),
        ("gemma4_text", ["2 heads of 32, ", "earlier layer, all tokens before: layers 3"]),
        ("recurrent_gemma", ["RG-LRU, 32 wide, convolution of 4 tokens: layers 0-1"]),
        ("recurrent_gemma", ["sliding window of 9 tokens: layers 2"]),
        ("recurrent_gemma", ["RoPE, theta 10,000 of 50% of each head", "30 on logits"]),
        ("gemma3", ["vision tower", "parameters, left out: the data is text"]),
        ("gemma", ["licence not stated; Google's own weights come under"]),
        ("gemma4_moe", ["experts 2 of 4 in each layer for a token"]),
    ],
)
def test_what_is_special(
    kind: str, expected: list[str], folder: Callable[[str], str], capsys: Any
) -> None:
    out = said(folder(kind), capsys)
    for text in expected:
        assert text in out


def test_a_run_shows_its_adapter_and_what_trains(tmp_path: Path, capsys: Any) -> None:
    run = finished_run.write_real(tmp_path / "run")
    (run / "config.yaml").write_text(f"model_name_or_path: {tmp_path / 'base'}\n")
    out = said(str(run), capsys)
    model = tiny.build("gemma3_text")
    trained = sum(
        2 * (m.in_features + m.out_features)
        for n, m in model.named_modules()
        if n.endswith("q_proj")
    )
    total = trained + sum(p.numel() for p in model.parameters())
    assert f"trainable {trained:,} ({trained / total:.2%})" in out
    assert f"adapter LoRA r 2, alpha 8 on 4 linear layers: {trained:,} of {total:,}" in out
    assert "model.layers.*.self_attn.q_proj.lora_A.default.weight 0-3 2 × 32 256 float32 yes" in out
    (line,) = [line for line in out.splitlines() if "self_attn.q_proj.weight" in line]
    assert not line.endswith("yes")
    assert "float32" in line


def test_names_are_whole_in_a_narrow_terminal() -> None:
    import io

    from rich.console import Console

    from ft.cli import console

    rows = [("model.layers.*.self_attn.q_proj.weight", "0-17", "1,024"), ("norm", "", "9")]
    for width in (30, 80):
        out = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        console.show_rows(out, ("module", "layers", "parameters"), rows, right=("parameters",))
        lines = out.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
        assert max(map(len, lines)) <= max(width, len(rows[0][0]))
        (line,) = [number for number, text in enumerate(lines) if rows[0][0] in text]
        assert ("1,024" in lines[line]) == (width == 80)
        assert "1,024" in lines[line] + lines[line + 1]


def test_the_readme_of_a_model_states_its_licence(tmp_path: Path, capsys: Any) -> None:
    name = write(tmp_path / "model", GEMMA_3_270M)
    (tmp_path / "model" / "README.md").write_text("---\nlanguage: fr\nlicense: mit\n---\n# M\n")
    assert "licence mit" in said(name, capsys)


def test_int8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--precision int8"):
        summary.command(write(tmp_path / "model", GEMMA_2B), "int8")


@pytest.mark.parametrize(
    ("config", "words"),
    [({"model_type": "llama"}, "'llama' model; supported"), (None, "no config.json")],
)
def test_a_model_that_is_none(config: dict[str, Any] | None, words: str, tmp_path: Path) -> None:
    if config is None:
        (tmp_path / "model").mkdir()
    else:
        write(tmp_path / "model", config)
    with pytest.raises(UserError, match=words):
        summary.command(str(tmp_path / "model"), None)
