"""The mini-GPT: its size, cache, padding, loss, dropout, and its life as a transformers model."""

import math

import pytest
import torch
from support import tiny
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from ft import models
from ft.errors import UserError
from ft.generate import answers
from ft.kernels import cache, dropout
from ft.minigpt import MODERN, MiniGPTConfig, MiniGPTForCausalLM
from ft.models import parameters
from ft.score import logits
from ft.text.tokens import IGNORE
from ft.train import optim

SMALL = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
STYLES = {"book": {}, "modern": MODERN}
IDS = torch.randint(6, 390, (3, 24), generator=torch.Generator().manual_seed(1))


def build(style: str = "book", seed: int = 0, **changes) -> MiniGPTForCausalLM:
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = MiniGPTForCausalLM(MiniGPTConfig(**STYLES[style] | SMALL | changes))
    with torch.no_grad():  # zeros and ones hide mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


@pytest.fixture(params=STYLES)
def model(request) -> MiniGPTForCausalLM:
    return build(request.param)


def test_the_book_has_41_800_768_parameters():
    with torch.device("meta"):
        model = MiniGPTForCausalLM(MiniGPTConfig())
    tokens, positions = 32_000 * 512, 256 * 512
    attention = 4 * (512 * 512 + 512)
    feed = 512 * 2056 + 2056 + 2056 * 512 + 512
    norms = 2 * 2 * 512
    counted = tokens + positions + 2 * 512 + 8 * (attention + feed + norms)
    assert counted == 41_800_768
    assert sum(p.numel() for p in model.parameters()) == counted


def test_flops_are_six_for_each_entry_of_a_matrix_and_attention():
    c = MiniGPTConfig()
    assert c.flops_per_token(256) == 6 * 41_615_360 + 12 * 8 * 512 * 257 / 2
    for style in STYLES:
        small = build(style)
        attention = small.config.flops_per_token(64) - small.config.flops_per_token(0)
        assert attention == 6 * 3 * 32 * 64
        trunk, head = parameters.training_flops(small)
        assert trunk + head == small.config.flops_per_token(0) - 6 * 3 * 32


def test_modern_has_the_parameters_of_the_book():
    with torch.device("meta"):
        sizes = [
            sum(p.numel() for p in MiniGPTForCausalLM(MiniGPTConfig(**style)).parameters())
            for style in STYLES.values()
        ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.01)
    assert sizes[1] < sizes[0]


def test_the_book_by_hand():
    """The same numbers from the weights alone, written as the book's Keras layers compute."""
    model = build()
    w = dict(model.named_parameters())

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def normed(x, name):
        mean, variance = x.mean(-1, keepdim=True), x.var(-1, keepdim=True, unbiased=False)
        return (x - mean) / (variance + 1e-3).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]

    x = w["model.embed_tokens.weight"][IDS] + w["model.embed_positions.weight"][:24]
    x = normed(x, "model.norm")
    for layer in range(3):
        at = f"model.layers.{layer}."
        q, k, v = (
            dense(x, f"{at}attention.{name}_proj").view(3, 24, 4, 8).transpose(1, 2)
            for name in "qkv"
        )
        scores = q @ k.mT / math.sqrt(8) + torch.full((24, 24), -math.inf).triu(1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(3, 24, 32)
        x = normed(dense(mixed, f"{at}attention.o_proj") + x, f"{at}attention_norm")
        inner = dense(x, f"{at}mlp.up_proj").relu()
        x = normed(dense(inner, f"{at}mlp.down_proj") + x, f"{at}mlp_norm")
    logits = x @ w["model.embed_tokens.weight"].T
    torch.testing.assert_close(model(IDS).logits, logits, rtol=1e-4, atol=1e-4)


def test_no_position_sees_a_later_one(model):
    changed = IDS.clone()
    changed[:, 10] += 1
    a, b = model(IDS).logits, model(changed).logits
    torch.testing.assert_close(a[:, :10], b[:, :10], rtol=0, atol=1e-5)
    assert (a[:, 10:] - b[:, 10:]).abs().max() > 0.01


def test_modern_sees_distances_and_not_places():
    model = build("modern")
    moved = model(IDS, position_ids=torch.arange(30, 54)[None]).logits
    torch.testing.assert_close(model(IDS).logits, moved, rtol=0, atol=1e-4)


def test_cached_equals_uncached(model):
    whole = model(IDS, use_cache=False)
    assert cache.name() not in whole
    past, parts = None, []
    for a, b in ((0, 5), (5, 6), (6, 20), (20, 24)):
        mask = torch.ones(3, b, dtype=torch.long)
        out = model(IDS[:, a:b], attention_mask=mask, use_cache=True, **{cache.name(): past})
        past = out[cache.name()]
        parts.append(out.logits)
    torch.testing.assert_close(whole.logits, torch.cat(parts, 1), rtol=0, atol=1e-4)


def test_padding_on_the_left_changes_nothing(model):
    padded = F.pad(IDS, (7, 0))
    mask = (torch.arange(31) >= 7).long().expand(3, 31)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    whole = model(IDS).logits
    for given in ({}, {"position_ids": positions}):  # from the mask, or from who calls
        found = model(padded, attention_mask=mask, **given).logits[:, 7:]
        torch.testing.assert_close(whole, found, rtol=0, atol=1e-4)


def test_logits_to_keep_and_hidden_states(model):
    whole = model(IDS, output_hidden_states=True)
    torch.testing.assert_close(model(IDS, logits_to_keep=2).logits, whole.logits[:, -2:])
    assert len(whole.hidden_states) == 4
    torch.testing.assert_close(model.lm_head(whole.hidden_states[-1]), whole.logits)


def test_loss_is_the_mean_over_supervised_positions(model):
    labels = IDS.clone()
    labels[0, :12] = IGNORE
    logits = model(IDS).logits[:, :-1].flatten(0, 1)
    expected = F.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORE)
    out = model(IDS, labels=labels)
    assert out.logits is None
    torch.testing.assert_close(out.loss, expected)
    shifted = model(IDS[:, :-1], shift_labels=labels[:, 1:]).loss
    torch.testing.assert_close(shifted, expected)
    count = (labels[:, 1:] != IGNORE).sum()
    halved = model(IDS, labels=labels, num_items_in_batch=2 * count).loss
    torch.testing.assert_close(2 * halved, expected)


def test_gradients_are_those_of_plain_cross_entropy(model):
    model.train()
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.p = 0.0
    expected = F.cross_entropy(model(IDS[:, :-1]).logits.flatten(0, 1), IDS[:, 1:].flatten())
    expected.backward()
    plain = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    model(IDS[:, :-1], shift_labels=IDS[:, 1:]).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, plain[name], rtol=1e-4, atol=1e-5, msg=name)


def test_autocast_on_a_cpu_is_close(model):
    plain = model(IDS, labels=IDS).loss
    with torch.autocast("cpu", torch.bfloat16):
        half = model(IDS, labels=IDS).loss
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(plain.item(), rel=0.05)
    assert half.item() != plain.item()
    half.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_more_tokens_than_positions_are_refused(model):
    ids = torch.randint(6, 390, (1, 65))
    with pytest.raises(UserError, match="65 tokens are more than the model's 64 positions"):
        model(ids)
    with pytest.raises(UserError, match="64 positions"):
        model.generate(ids[:, :60], max_new_tokens=10, do_sample=False)
    model(ids[:, :64])


def test_heads_must_divide_the_width():
    with pytest.raises(UserError, match="hidden_size 30 is not a multiple of twice the 4"):
        MiniGPTConfig(hidden_size=30, num_attention_heads=4)


def test_saved_and_loaded_it_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is MiniGPTForCausalLM
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict()
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_our_loader_and_generation_take_it(model, tmp_path):
    model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    base = models.load(str(tmp_path), precision="fp32")
    torch.testing.assert_close(base.model(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)
    prompts = [[2, 50, 60, 70], [2, 80]]
    cached, uncached = (
        answers.generate(base.model, base.tokenizer, prompts, max_new_tokens=12, use_cache=on)
        for on in (True, False)
    )
    assert [a.ids for (a,) in cached] == [a.ids for (a,) in uncached]
    for prompt, (answer,) in zip(prompts, cached, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
        assert theirs[0, len(prompt) :].tolist() == list(answer.ids)


def test_score_takes_it(model):
    losses = logits.score(model, IDS, mode="loss")
    torch.testing.assert_close(losses.sum() / (3 * 23), model(IDS, labels=IDS).loss)
    seen = []
    logits.score(model, IDS, intercept=lambda x, i: seen.append((i, tuple(x.shape))))
    assert seen == [(i, (3, 24, 32)) for i in (-1, 0, 1, 2)]


def attention(q, k, v, drop, p):
    """Plainly, with the entries to drop given: [B, H, T, T]."""
    scores = q @ k.mT * q.shape[-1] ** -0.5 + torch.full((q.shape[2],) * 2, -math.inf).triu(1)
    return (scores.softmax(-1).masked_fill(drop, 0) / (1 - p) @ v).transpose(1, 2)


@pytest.mark.parametrize("length", [24, 64, 100])
def test_attention_with_dropout_is_attention_with_that_mask(length, monkeypatch):
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, length, 8, requires_grad=True) for _ in range(3)]
    drop, block = torch.rand(2, 3, length, length) < 0.3, iter(range(99))

    def given(shape, p):
        blocks = -(-length // dropout.BLOCK)
        row, start = divmod(next(block), blocks)
        rows = slice(start * dropout.BLOCK, start * dropout.BLOCK + shape[1])
        return drop[row, :, rows, : shape[2]]

    monkeypatch.setattr(dropout, "dropped", given)
    found, expected = dropout.causal_attention(*parts, 0.3), attention(*parts, drop, 0.3)
    torch.testing.assert_close(found, expected)
    upward = torch.randn_like(found)
    for a, b in zip(
        *(torch.autograd.grad(x, parts, upward) for x in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_dropout_drops_its_share_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(1000, 999)
    dropped = dropout.dropout(x, 0.1, training=True)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=2e-3)
    assert dropped.mean().item() == pytest.approx(1, abs=2e-3)
    zeros = (dropped == 0).float()  # neighbours are independent
    assert (zeros[:, 1:] * zeros[:, :-1]).mean().item() == pytest.approx(0.01, abs=1e-3)
    assert dropout.dropout(x, 0.1, training=False) is x
    assert torch.equal(dropout.dropout(x, 0.0, training=True), x)


def test_dropout_is_on_in_training_alone():
    model = build()
    assert torch.equal(model(IDS).logits, model(IDS).logits)
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    torch.manual_seed(3)
    first = model(IDS).logits
    torch.manual_seed(3)
    assert torch.equal(model(IDS).logits, first)


def test_matrices_of_the_blocks_decay_and_are_muons(model):
    names = {id(p): name for name, p in model.named_parameters()}
    muon, adamw = optim.muon(model, learning_rate=0.1, weight_decay=0.2)
    inner, rest = (
        {names[id(p)] for group in o.param_groups for p in group["params"]} for o in (muon, adamw)
    )
    assert inner == {n for n in names.values() if "_proj.weight" in n}
    assert inner | rest == set(names.values())
    assert not inner & rest
    assert muon.param_groups[0]["weight_decay"] == 0.2
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.0}
    before = {name: p.clone() for name, p in model.named_parameters()}
    model(IDS, labels=IDS).loss.backward()
    for optimizer in (muon, adamw):
        optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(names.values())
