"""Our loading path against Google's own numbers, and what each usual mistake of a port would do to them.

Every test of a wrong variant shows that the right one passes by a margin: the tolerances are not so
wide that a mistake fits in.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import make_gemma as google
from goldens import make_recurrent as griffin
from safetensors.torch import save_file
from support import tiny

from ft import models
from ft.kernels import cross_entropy

GOLDENS = Path(google.__file__).parent
GOLDEN = json.loads((GOLDENS / "gemma.json").read_text())
RECURRENT = json.loads((GOLDENS / "recurrent.json").read_text())
KINDS = tuple(google.CONFIGS)
# The largest difference of the logits, whose standard deviation is 3.7. Google's own bfloat16 logits
# are up to 0.16 from its float32 ones.
TOLERANCE = {"fp32": 2e-5, "bf16": 0.3}
DTYPE = {"fp32": "float32", "bf16": "bfloat16"}

Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write the weights that the goldens were made from, with other settings if given; load them."""

    def of(kind: str, precision: str = "fp32", **settings: Any) -> Any:
        path = tmp_path / f"{kind}_{precision}_{len(list(tmp_path.iterdir()))}"
        path.mkdir()
        tensors = {name: torch.from_numpy(x) for name, x in google.weights(kind).items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(google.CONFIGS[kind] | settings))
        tiny.tokenizer().save_pretrained(path)
        return models.load(str(path), precision=precision).model

    return of


def off(model: Any, golden: list[list[float]], first: int = 0) -> float:
    """The largest difference between the model's logits and Google's."""
    positions = torch.arange(google.LENGTH)[None] + first
    with torch.no_grad():
        ids = torch.from_numpy(google.ids())
        logits = model(ids, position_ids=positions, use_cache=False).logits[0].float()
    return (logits[google.ROWS, google.COLUMNS] - torch.tensor(golden)).abs().max().item()


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_logits_near_the_start_and_far_from_it(kind: str, precision: str, load: Load) -> None:
    model, golden = load(kind, precision), GOLDEN[kind][DTYPE[precision]]
    assert off(model, golden["logits"]) < TOLERANCE[precision]
    assert off(model, golden["far"], first=google.FAR) < TOLERANCE[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_loss_with_its_soft_cap(kind: str, load: Load) -> None:
    model, ids = load(kind), torch.from_numpy(google.ids())
    cross_entropy.install(model)
    mean = model(input_ids=ids, labels=ids)["loss"].item() / (google.LENGTH - 1)
    assert mean == pytest.approx(GOLDEN[kind]["float32"]["loss"], abs=1e-5)


def layers(kind: str, *types: str) -> dict[str, list[str]]:
    """A pattern of sliding and full attention, repeated over the layers."""
    count = google.CONFIGS[kind]["num_hidden_layers"]
    return {"layer_types": [f"{types[i % len(types)]}_attention" for i in range(count)]}


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        *((kind, {"query_pre_attn_scalar": 16}) for kind in KINDS[1:]),  # the head dimension
        *((kind, {"sliding_window": google.WINDOW - 1}) for kind in KINDS[1:]),
        *((kind, {"sliding_window": google.WINDOW + 1}) for kind in KINDS[1:]),
        ("gemma2", layers("gemma2", "full", "sliding")),
        ("gemma3_text", layers("gemma3_text", "full", *["sliding"] * 5)),
        ("gemma3_text", layers("gemma3_text", *["sliding"] * 4, "full")),
        ("gemma3_text", {"rope_theta": 10_000.0}),
        ("gemma3_text", {"rope_local_base_freq": 1_000_000.0}),
        ("gemma3_text", {"rope_scaling": None}),
    ],
    ids=str,
)
def test_a_wrong_setting_shows(kind: str, wrong: dict[str, Any], load: Load) -> None:
    assert off(load(kind, **wrong), GOLDEN[kind]["float32"]["logits"]) > 25 * TOLERANCE["fp32"]


@pytest.mark.parametrize("kind", KINDS)
def test_gelu_by_the_error_function_shows(kind: str, load: Load) -> None:
    model = load(kind)
    for layer in model.model.layers:
        layer.mlp.act_fn = torch.nn.GELU()
    assert off(model, GOLDEN[kind]["float32"]["logits"]) > 25 * TOLERANCE["fp32"]


def test_gelu_in_the_first_published_settings_of_gemma_means_tanh(load: Load) -> None:
    model = load("gemma", hidden_act="gelu", hidden_activation=None)
    assert off(model, GOLDEN["gemma"]["float32"]["logits"]) < TOLERANCE["fp32"]


def norms(model: Any) -> list[Any]:
    """Every RMSNorm of a model."""
    return [module for module in model.modules() if type(module).__name__.endswith("RMSNorm")]


@pytest.mark.parametrize("kind", KINDS)
def test_a_norm_without_its_one_shows(kind: str, load: Load) -> None:
    model = load(kind)
    for norm in norms(model):
        norm.weight.data -= 1
    assert off(model, GOLDEN[kind]["float32"]["logits"]) > 25 * TOLERANCE["fp32"]


@pytest.mark.parametrize("which", ["q_norm", "k_norm"])
def test_gemma3_without_a_norm_of_queries_or_keys_shows(which: str, load: Load) -> None:
    model = load("gemma3_text")
    setattr(model.model.layers[0].self_attn, which, torch.nn.Identity())
    assert off(model, GOLDEN["gemma3_text"]["float32"]["logits"]) > 25 * TOLERANCE["fp32"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_sees_the_keys_of_its_window(kind: str, load: Load) -> None:
    """Key j is seen by query i where the layer's output at i depends on its input at j."""
    model = load(kind)
    states = model(
        torch.from_numpy(google.ids()), output_hidden_states=True, use_cache=False
    ).hidden_states[:-1]  # the last one comes after the final norm, through the last layer
    for layer, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        for i, first in enumerate(GOLDEN[kind]["float32"]["first_seen"][layer]):
            (slope,) = torch.autograd.grad(after[0, i, 0], before, retain_graph=True)
            seen = slope[0].abs().sum(-1).nonzero().flatten().tolist()
            assert seen == list(range(first, i + 1)), (layer, i)


def embedded(model: Any) -> torch.Tensor:
    """What goes into the first layer for the first three tokens, [3, D]."""
    with torch.no_grad():
        ids = torch.from_numpy(google.ids()[:, :3])
        return model(ids, output_hidden_states=True, use_cache=False).hidden_states[0][0]


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_scaled_by_a_rounded_root(kind: str, load: Load) -> None:
    table = torch.from_numpy(google.weights(kind)["model.embed_tokens.weight"])
    plain = table[torch.from_numpy(google.ids()[0, :3])]
    root = torch.tensor(40.0).sqrt()  # 6.3246; the nearest bfloat16 is 6.3125

    golden = torch.tensor(GOLDEN[kind]["bfloat16"]["embedding"]).bfloat16()
    assert torch.equal(embedded(load(kind, "bf16")), golden)
    unrounded = (plain.bfloat16().float() * root).bfloat16()
    assert (unrounded != golden).float().mean() > 0.25

    golden = torch.tensor(GOLDEN[kind]["float32"]["embedding"])
    torch.testing.assert_close(embedded(load(kind)), golden, rtol=1e-6, atol=1e-6)
    rounded = plain * root.bfloat16().float()
    assert (rounded / golden - 1).abs().max() > 1e-3


def variants(x: torch.Tensor, weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """Wrong norms of bfloat16 models: x [N, D], weight [D], both in bfloat16."""
    scale = x.float().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt()
    normed = x.float() * scale
    return {
        "1 + w rounded": (normed * (1 + weight).float()).bfloat16(),
        "normed rounded": normed.bfloat16() * (1 + weight),
        "all rounded": x * x.pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt() * (1 + weight),
    }


@pytest.mark.parametrize("kind", [*KINDS, "recurrent_gemma"])
def test_norms_compute_in_float32(kind: str, load: Load, folder: Callable[[str], str]) -> None:
    golden = torch.tensor(GOLDEN["norm"]).bfloat16()
    weight, x = (torch.from_numpy(array).bfloat16() for array in google.norm())
    if kind in KINDS:
        model = load(kind, "bf16")
    else:
        model = models.load(folder(kind), precision="bf16").model
    found = norms(model)
    assert found
    for norm in found:
        norm.weight = torch.nn.Parameter(weight)
        assert (norm(x) != golden).float().mean() < 0.01
    for wrong in variants(x, weight).values():
        assert (wrong != golden).float().mean() > 0.1


def angles(model: Any, positions: torch.Tensor, *layer_type: str) -> torch.Tensor:
    """Cosines and sines [P, H] that the model rotates by, in float32."""
    hidden = torch.zeros(1, len(positions), 40, dtype=model.dtype)
    cos, sin = model.model.rotary_emb(hidden, positions[None], *layer_type)
    return torch.cat([cos[0, :, :8], sin[0, :, :8]], dim=-1).float()


@pytest.mark.parametrize(
    ("kind", "layer_type", "index"),
    [
        ("gemma", (), 0),
        ("gemma2", (), 0),
        ("gemma3_text", ("sliding_attention",), 0),
        ("gemma3_text", ("full_attention",), 1),
    ],
)
def test_long_positions_in_a_bf16_model(
    kind: str, layer_type: tuple[str, ...], index: int, load: Load
) -> None:
    golden = GOLDEN["rope"][index]
    expected = torch.tensor(golden["cos_sin"])
    positions = torch.tensor(golden["positions"])
    for precision, tolerance in (("fp32", 4e-3), ("bf16", 2**-8 + 4e-3)):
        model = load(kind, precision)
        assert (angles(model, positions, *layer_type) - expected).abs().max() < tolerance
        rounded = positions.bfloat16().long()
        assert (angles(model, rounded, *layer_type) - expected).abs().max() > 0.3
        rotary = model.model.rotary_emb
        for name, buffer in list(rotary.named_buffers()):
            setattr(rotary, name, buffer.bfloat16())
        assert (angles(model, positions, *layer_type) - expected).abs().max() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_positions_rounded_to_bf16_show_in_the_logits(kind: str, load: Load) -> None:
    model = load(kind, "bf16")
    right = model.model.rotary_emb.forward

    def wrong(x: torch.Tensor, position_ids: torch.Tensor, *layer_type: str, **named: str) -> Any:
        return right(x, position_ids.bfloat16().long(), *layer_type, **named)

    model.model.rotary_emb.forward = wrong
    golden = GOLDEN[kind]["bfloat16"]
    assert off(model, golden["far"], first=google.FAR) > 4 * TOLERANCE["bf16"]


@pytest.fixture
def recurrent(tmp_path: Path) -> Load:
    """RecurrentGemma with the weights of its golden, with other settings if given."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import (
        PreTrainedTokenizerFast,
        RecurrentGemmaConfig,
        RecurrentGemmaForCausalLM,
    )

    def of(**settings: Any) -> Any:
        path = tmp_path / f"recurrent_{len(list(tmp_path.iterdir()))}"
        model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**griffin.CONFIG))
        griffin.fill(model)
        model.save_pretrained(path)
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(config | settings))
        small = Tokenizer(WordLevel({"<pad>": 0, "<eos>": 1, "<bos>": 2}, unk_token="<pad>"))
        PreTrainedTokenizerFast(tokenizer_object=small, pad_token="<pad>").save_pretrained(path)
        return models.load(str(path), precision="fp32").model

    return of


def recurrent_off(model: Any) -> float:
    """The largest difference from Google's logits within the first window."""
    ids = torch.from_numpy(griffin.ids(sum(griffin.DOCUMENTS)))
    ids = ids[:, : griffin.CONFIG["attention_window_size"]]
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    golden = torch.tensor(RECURRENT["one_document"])[: ids.shape[1]]
    return (logits[:, griffin.COLUMNS] - golden).abs().max().item()


def test_recurrent_gemma(recurrent: Load) -> None:
    assert recurrent_off(recurrent()) < TOLERANCE["fp32"]


@pytest.mark.parametrize(
    "wrong", [{"logits_soft_cap": 1e9}, {"hidden_activation": "gelu"}], ids=str
)
def test_a_wrong_setting_of_recurrent_gemma_shows(wrong: dict[str, Any], recurrent: Load) -> None:
    assert recurrent_off(recurrent(**wrong)) > 5 * TOLERANCE["fp32"]


def test_recurrent_gemma_scales_by_a_bf16_root_in_every_precision(recurrent: Load) -> None:
    model = recurrent()
    assert model.model.normalizer.item() == 5.65625  # and not sqrt(32) = 5.65685
    model.model.normalizer = torch.tensor(32.0).sqrt()
    assert recurrent_off(model) > 5 * TOLERANCE["fp32"]


def test_recurrent_gemma_without_the_one_of_its_norms_shows(recurrent: Load) -> None:
    model = recurrent()
    for norm in norms(model):
        norm.weight.data -= 1
    assert recurrent_off(model) > 25 * TOLERANCE["fp32"]
