"""Losses are weighted by token however examples lie, and log-probabilities are those of the model's own logits."""

from types import SimpleNamespace

import pytest
import torch
from support import tiny, toy
from support.toy import examples
from support.waits import Waits

from ft import models
from ft.errors import UserError
from ft.kernels import attention, cross_entropy
from ft.models import lora
from ft.score import likelihood
from ft.text.batches import padded_batch
from ft.text.tokens import IGNORE


def padded(some):
    return padded_batch(some, 0)


@pytest.fixture
def model():
    made = tiny.build("gemma3_text")
    cross_entropy.install(made)
    return made


def test_the_loss_is_a_mean_over_tokens_not_over_examples(model):
    examples = toy.examples(5)
    summed = count = 0.0
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        labels = torch.tensor(example["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        summed += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += (labels != -100).sum().item()
    for batch in (None, padded):
        found = likelihood.loss(model, examples, batch_size=2, batch=batch)
        assert found == pytest.approx(summed / count, rel=1e-6)


def test_a_mean_over_rows_counts_each_alike(model):
    few, many = toy.examples(5)[:2]
    alone = [likelihood.loss(model, [few]), likelihood.loss(model, [many])]
    found = likelihood.loss(model, [few, many], mean="rows")
    assert found == pytest.approx(sum(alone) / 2)
    assert found != pytest.approx(likelihood.loss(model, [few, many]))


def test_validation_leaves_training_mode_as_it_was(model):
    for mode in (True, False):
        model.train(mode)
        likelihood.loss(model, toy.examples(2))
        assert model.training is mode


def test_nothing_supervised_is_an_error(model):
    example = {"input_ids": [2, 5, 1], "labels": [-100] * 3}
    with pytest.raises(UserError, match="no position is supervised"):
        likelihood.loss(model, [example])


def test_batches_of_long_examples_have_fewer(model, monkeypatch):
    examples, sizes = toy.examples(7), []

    def batch(chosen):
        made = padded(chosen)
        sizes.append(made["input_ids"].numel())
        return made

    expected = likelihood.loss(model, examples, batch=padded)
    monkeypatch.setattr(likelihood, "PADDED", 80)
    assert likelihood.loss(model, examples, batch=batch) == pytest.approx(expected, rel=1e-6)
    assert len(sizes) > 1
    assert max(sizes) <= 80


@pytest.mark.parametrize(
    ("device", "masked", "tokens"),
    [("cuda", False, 2048), ("cuda", True, 1024), ("cpu", False, 1024)],
)
def test_rows_are_longer_where_launches_take_the_time_and_no_mask_grows(
    device, masked, tokens, model, monkeypatch
):
    on = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device(device))]))
    with monkeypatch.context() as patch:
        patch.setattr(attention, "installed", lambda _: not masked)
        assert likelihood._row(on) == tokens
    example = {"input_ids": [2] * 100, "labels": [5] * 100}
    rows: list[int] = []
    monkeypatch.setattr(likelihood, "_row", lambda _: tokens)
    model.register_forward_pre_hook(
        lambda _, __, given: rows.append(given["input_ids"].numel()), with_kwargs=True
    )
    likelihood.loss(model, [example] * 40)
    assert rows == {1024: [1000] * 4, 2048: [2000] * 2}[tokens]


def test_likelihood_is_the_same_packed_and_padded():
    model = tiny.build("gemma3_text")
    cross_entropy.install(model)
    examples = toy.examples(7)
    packed, other = (
        likelihood.of_examples(model, examples, batch_size=3, batch=batch)
        for batch in (None, padded)
    )
    assert packed.loss == pytest.approx(other.loss, rel=1e-6)
    assert (packed.accuracy, packed.tokens) == (other.accuracy, other.tokens)


def plain(model, example) -> torch.Tensor:
    ids = torch.tensor([example["input_ids"]])
    every = model(input_ids=ids, use_cache=False).logits[0, :-1].log_softmax(-1)
    labels = torch.tensor(example["labels"][1:])
    kept = labels != IGNORE
    return every[kept].gather(1, labels[kept, None])[:, 0]


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "recurrent_gemma"])
def test_values_and_gradients_are_those_of_the_logits(kind, folder):
    base = models.load(folder(kind), precision="fp32")
    model = lora.attach(base, r=4, alpha=8)
    cross_entropy.install(model.get_base_model())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    rows = examples(5)
    weights = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found, gradients = [], []
    for way in (
        lambda: torch.cat(likelihood.logprobs(model, rows)),
        lambda: torch.cat([plain(model, row) for row in rows]),
    ):
        model.zero_grad()
        values = way()
        (values * weights.repeat(9)[: len(values)]).sum().backward()
        found.append(values.detach())
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert torch.allclose(*found, atol=2e-5)
    assert gradients[0]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-4, rtol=1e-3)


def test_no_row_waits_for_a_gpu(model):
    attention.install(model)
    forward, found = model.forward, []

    def watched(**inputs):
        with Waits() as waits:
            made = forward(**inputs)
        found.append(waits.found)
        return made

    model.forward = watched
    given = toy.examples(40)
    values = likelihood.logprobs(model, given)
    torch.cat(values).sum().backward()
    assert len(found) > 1
    assert not any(found)
    assert [len(v) for v in values] == [
        sum(label != IGNORE for label in example["labels"][1:]) for example in given
    ]


def test_a_padded_batch_gets_each_examples_values_in_its_place():
    model = tiny.build("gemma3_text").eval()
    cross_entropy.install(model)
    rows = examples(3)
    width = max(len(row["input_ids"]) for row in rows) + 2
    ids, mask, labels = (torch.zeros(3, width, dtype=torch.long) for _ in range(3))
    labels += IGNORE
    for i, row in enumerate(rows):
        at = slice(i, i + len(row["input_ids"]))  # padded on both sides
        ids[i, at], labels[i, at] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
        mask[i, at] = 1
    with torch.no_grad():
        batch = likelihood.unpadded(ids, mask, labels)
        found = likelihood.logprobs_of_batch(model, batch)
        alone = likelihood.logprobs(model, rows)
    assert found.shape == (3, width - 1)
    for i in range(3):
        assert torch.allclose(found[i][labels[i, 1:] != IGNORE], alone[i], atol=1e-5)
        assert not found[i][labels[i, 1:] == IGNORE].any()
