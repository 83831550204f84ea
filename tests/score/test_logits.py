"""Scores against keras-hub's own numbers, and against the models' own logits for every Gemma generation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import make_gemma, make_score
from safetensors.torch import save_file
from support import tiny

from ft import models
from ft.errors import UserError
from ft.models import lora
from ft.score import logits as score
from ft.text import batches
from ft.text.tokens import IGNORE

GOLDEN = json.loads((Path(make_score.__file__).parent / "score.json").read_text())
IDS, MASK, TARGETS = (
    torch.from_numpy(array) for array in (make_score.ids(), make_score.mask(), make_score.targets())
)
REAL = MASK.bool()


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The models that the goldens were made from, loaded as a user loads them."""
    found = {}
    for kind in make_score.CONFIGS:
        path = tmp_path_factory.mktemp(kind)
        tensors = {name: torch.from_numpy(x) for name, x in make_gemma.weights(kind).items()}
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
        (path / "config.json").write_text(json.dumps(make_score.CONFIGS[kind]))
        tiny.tokenizer().save_pretrained(path)
        found[kind] = models.load(str(path), precision="fp32").model
    return found


def off(found: torch.Tensor, golden: Any, part: tuple[slice, ...] = (slice(None),) * 2) -> float:
    """The largest difference from keras-hub at tokens that are not padding."""
    real = REAL[part[:2]]
    return (found[part].detach() - torch.tensor(golden))[real].abs().max().item()


@pytest.mark.parametrize("kind", make_score.CONFIGS)
def test_logits_and_losses_are_keras_hubs(kind: str, google: dict[str, Any]) -> None:
    golden = GOLDEN[kind]
    logits = score.score(google[kind], IDS, MASK)
    assert off(logits, golden["logits"], make_score.EVERY) < 1e-4
    losses = score.score(google[kind], IDS, MASK, "loss", targets=TARGETS)
    assert off(losses, golden["loss"]) < 1e-4


@pytest.mark.parametrize("kind", make_score.CONFIGS)
def test_every_intercepted_activation_and_its_gradient_are_keras_hubs(
    kind: str, google: dict[str, Any]
) -> None:
    seen = []

    def watch(x: torch.Tensor, i: int) -> None:
        assert i == len(seen) - 1
        x.retain_grad()
        seen.append(x)

    losses = score.score(google[kind], IDS, MASK, "loss", watch, TARGETS)
    losses.sum().backward()
    golden = GOLDEN[kind]
    assert len(seen) == len(golden["activations"]) == google[kind].config.num_hidden_layers + 1
    for x, activation, gradient in zip(
        seen, golden["activations"], golden["gradients"], strict=True
    ):
        assert off(x, activation, make_score.WIDE) < 1e-4
        scale = torch.tensor(gradient).abs().max().item()
        assert off(x.grad, gradient, make_score.WIDE) < 1e-4 * max(scale, 1)


@pytest.mark.parametrize("kind", make_score.CONFIGS)
def test_a_changed_activation_goes_on_as_in_keras_hub(kind: str, google: dict[str, Any]) -> None:
    def change(x: torch.Tensor, i: int) -> torch.Tensor:
        return x * make_score.FACTOR if i == make_score.CHANGED else x

    changed = score.score(google[kind], IDS, MASK, intercept=change)
    assert off(changed, GOLDEN[kind]["changed"], make_score.EVERY) < 1e-4
    assert off(changed, GOLDEN[kind]["logits"], make_score.EVERY) > 1


def row(length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.cat(
        [torch.tensor([[2]]), torch.randint(6, 380, (1, length - 1), generator=generator)], 1
    )


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows of 12 and 20 tokens in one batch, its mask, and the shorter row alone."""
    short, long = row(12), row(20, 1)
    fill = torch.zeros(1, 8, dtype=torch.long)
    ones = torch.ones_like(short)
    parts = [(fill, short), (fill, ones)] if side == "left" else [(short, fill), (ones, fill)]
    ids, mask = (torch.cat(pair, 1) for pair in parts)
    return torch.cat([ids, long]), torch.cat([mask, torch.ones_like(long)]), short


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_logits_are_the_models_own(kind: str) -> None:
    model, ids = tiny.build(kind), row(20)
    with torch.no_grad():
        own = model(ids, use_cache=False).logits
        torch.testing.assert_close(score.score(model, ids), own, rtol=0, atol=0)
        same = score.score(model, ids, intercept=lambda x, i: None)
        torch.testing.assert_close(same, own, rtol=0, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_padded_row_scores_as_it_does_alone(kind: str, side: str) -> None:
    model = tiny.build(kind)
    ids, mask, short = padded(side)
    with torch.no_grad():
        alone = score.score(model, short, mode="loss")
        batch = score.score(model, ids, mask, "loss")
        best = score.top(model, ids, mask.bool(), 3)
        own = score.top(model, short, k=3)
    torch.testing.assert_close(batch[0][mask[0].bool()], alone[0], rtol=1e-5, atol=1e-5)
    assert (batch[0] == 0).sum() == 8 + 1  # padding, and the last token, which nothing follows
    torch.testing.assert_close(batch, -best.target_logprobs, rtol=1e-5, atol=1e-5)
    assert torch.equal(best.ids[0][mask[0].bool()], own.ids[0])


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_hook_is_on_every_layer_and_gradients_flow(kind: str) -> None:
    model, ids, seen = tiny.build(kind).requires_grad_(False), row(12), {}

    def leaf(x: torch.Tensor, i: int) -> torch.Tensor:
        seen[i] = x.detach().requires_grad_() if i == -1 else x
        if i >= 0:
            x.retain_grad()
        return seen[i]

    score.score(model, ids, mode="loss", intercept=leaf).sum().backward()
    layers = model.config.get_text_config().num_hidden_layers
    assert list(seen) == list(range(-1, layers))
    width = model.config.get_text_config().hidden_size
    for x in seen.values():
        assert x.shape == (1, 12, width)
        assert x.grad is not None
        assert x.grad.abs().sum() > 0
    table = model.get_input_embeddings().weight
    assert torch.equal(seen[-1], table[ids])


@pytest.mark.parametrize("kind", sorted({*tiny.KINDS} - {"gemma3n", "gemma4", "gemma4_text"}))
@pytest.mark.parametrize("layer", [-1, 1])
def test_a_patched_layer_decides_what_follows(kind: str, layer: int) -> None:
    """The activations of one text, put into another, give its logits.

    Not so with embeddings of each layer beside the first, which still tell of the other text.
    """
    model, source, other, kept = tiny.build(kind), row(10, 1), row(10, 2), {}
    with torch.no_grad():
        expected = score.score(model, source, intercept=lambda x, i: kept.update({i: x}))
        found = score.score(model, other, intercept=lambda x, i: kept[i] if i == layer else None)
        torch.testing.assert_close(found, expected)
        assert not torch.allclose(score.score(model, other), expected)


def test_an_embedding_may_be_changed_where_keras_hub_drops_the_change() -> None:
    model, ids = tiny.build("gemma"), row(10)
    with torch.no_grad():
        plain = score.score(model, ids)
        doubled = score.score(model, ids, intercept=lambda x, i: 2 * x if i == -1 else x)
        model.get_input_embeddings().embed_scale *= 2
        torch.testing.assert_close(doubled, score.score(model, ids))
    assert not torch.allclose(doubled, plain)


def test_an_adapter_is_part_of_the_model_unless_it_is_off() -> None:
    base = tiny.build("gemma2")
    ids = row(12)
    with torch.no_grad():
        plain = score.score(base, ids)
        model = lora.attach(base, r=2, alpha=4)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.1
        tuned = score.score(model, ids)
        torch.testing.assert_close(tuned, model(ids, use_cache=False).logits)
        assert not torch.allclose(tuned, plain)
        with model.disable_adapter():
            torch.testing.assert_close(score.score(model, ids), plain)


def test_a_quantised_base(folder: Any) -> None:
    model = models.load(folder("gemma3_text"), precision="nf4").model
    with torch.no_grad():
        torch.testing.assert_close(
            score.score(model, row(12)), model(row(12), use_cache=False).logits.float()
        )


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma2"])
def test_no_more_logits_than_a_tile_exist_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids, sizes = tiny.build(kind), row(30), []
    expected = score.score(model, ids, mode="loss")
    gradient = torch.autograd.grad(expected.sum(), model.get_input_embeddings().weight)[0]
    whole = score.top(model, ids, k=4)
    monkeypatch.setattr(batches, "TILE", 7 * tiny.VOCABULARY)
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(output.numel())
    )
    losses = score.score(model, ids, mode="loss")
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(
        torch.autograd.grad(losses.sum(), model.get_input_embeddings().weight)[0], gradient
    )
    tiled = score.top(model, ids, k=4)
    torch.testing.assert_close(tiled.logprobs, whole.logprobs)
    assert torch.equal(tiled.ids, whole.ids)
    assert len(sizes) > 10
    assert max(sizes) == batches.TILE


def test_the_top_tokens_and_targets_are_those_of_the_logits() -> None:
    model, ids = tiny.build("gemma2"), row(15)
    targets = ids.roll(1, 1)
    found = score.top(model, ids, k=5, targets=targets)
    with torch.no_grad():
        expected = score.score(model, ids).log_softmax(-1)
    torch.testing.assert_close(found.logprobs, expected.topk(5).values)
    assert torch.equal(found.ids, expected.topk(5).indices)
    torch.testing.assert_close(
        found.target_logprobs, expected.gather(2, targets[..., None]).squeeze(2)
    )


def test_ids_of_32_bits_do() -> None:
    model, ids = tiny.build("gemma"), row(6)
    short = ids.int()
    found = score.score(model, short, torch.ones_like(short), "loss", targets=short)
    torch.testing.assert_close(found, score.score(model, ids, mode="loss", targets=ids))


@pytest.mark.parametrize("modern", [False, True])
def test_the_mini_gpt_scores_as_any_other(modern: bool) -> None:
    from ft import minigpt

    size = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = minigpt.MiniGPTConfig(**(minigpt.MODERN if modern else {}) | size)
    model, ids, seen = minigpt.MiniGPTForCausalLM(config), row(9) % 50, []
    with torch.no_grad():
        own = model.eval()(ids, use_cache=False).logits
        found = score.score(model, ids, intercept=lambda x, i: seen.append((i, x.shape)))
    torch.testing.assert_close(found, own)
    assert seen == [(i, (1, 9, 16)) for i in (-1, 0, 1)]


def test_what_follows_a_prompt_are_the_last_logits() -> None:
    model, ids, sizes = tiny.build("gemma2"), row(15), []
    with torch.no_grad():
        expected = score.score(model, ids)[:, -1]
    model.get_output_embeddings().register_forward_hook(
        lambda module, inputs, output: sizes.append(output.shape)
    )
    torch.testing.assert_close(score.following(model, ids), expected)
    assert sizes == [(1, tiny.VOCABULARY)]


def test_a_position_without_a_target_has_no_loss() -> None:
    model, ids = tiny.build("gemma"), row(6)
    targets = torch.full_like(ids, IGNORE)
    assert score.score(model, ids, mode="loss", targets=targets).tolist() == [[0.0] * 6]
    assert score.top(model, ids, targets=targets).target_logprobs.tolist() == [[0.0] * 6]
    targets[0, 3] = 9
    assert score.score(model, ids, mode="loss", targets=targets).nonzero().tolist() == [[0, 3]]


def test_the_model_is_left_as_it_was() -> None:
    model = tiny.build("gemma3_text").train()
    with pytest.raises(UserError):
        score.score(model, row(5), intercept=lambda x, i: x[:, 1:] if i == 2 else x)
    assert model.training
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


ROW = row(6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mode": "logit"}, r"mode is 'logit'.*Did you mean 'logits'"),
        ({"targets": ROW}, "mode='logits' has no use for targets"),
        ({"mode": "loss", "targets": ROW[:, 1:]}, r"targets have the shape \[1, 5\] .* \[1, 6\]"),
        ({"mask": ROW[:, 1:]}, r"mask have the shape \[1, 5\]"),
        ({"mode": "loss", "targets": ROW + 400}, r"targets hold 4\d\d; .*0 to 399"),
        ({"ids": ROW - 9}, "ids hold -7"),
        ({"ids": ROW[0]}, r"ids have the shape \[6\]"),
        ({"ids": ROW[:, :0]}, r"ids have the shape \[1, 0\]"),
        ({"ids": ROW.repeat(1, 100)}, "600 tokens are more than the model's context of 512"),
        (
            {"intercept": lambda x, i: x[:, 1:] if i == 2 else x},
            r"intercept returned \[1, 5, 32\] for layer 2; .* \[1, 6, 32\]",
        ),
        ({"intercept": lambda x, i: x[..., 0]}, r"returned \[1, 6\] for the embedding \(-1\)"),
        ({"intercept": lambda x, i: 0}, "returned int for the embedding"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        score.score(tiny.build("gemma3_text"), **{"ids": ROW, **options})


@pytest.mark.parametrize("k", [0, -1, 401])
def test_a_k_that_cannot_be_is_named(k: int) -> None:
    with pytest.raises(UserError, match=rf"k is {k}; it must be from 1 to 400"):
        score.top(tiny.build("gemma"), ROW, k=k)


@pytest.mark.parametrize("mode", ["logits", "loss", "top"])
def test_logits_that_are_not_finite_are_named_by_row_and_token(mode: str) -> None:
    model, ids = tiny.build("gemma3_text"), torch.cat([ROW, ROW])

    def break_one(x: torch.Tensor, i: int) -> torch.Tensor:
        x = x.clone()
        x[1, 3] = float("nan") if i == 3 else x[1, 3]
        return x

    call = {
        "logits": lambda: score.score(model, ids, intercept=break_one),
        "loss": lambda: score.score(model, ids, mode="loss", intercept=break_one),
        "top": lambda: score.top(model, ids, intercept=break_one),
    }[mode]
    with pytest.raises(UserError, match=rf"after token 4 of row 2 \(id {ROW[0, 3]}\)"):
        call()
    mask = torch.ones_like(ids)
    mask[1, 3:] = 0  # what padding makes is nobody's business
    score.score(model, ids, mask, "logits", break_one)
