"""Base beside tuned: which model is which, intervals against published ones, and what a run keeps."""

import pytest
import torch
from support import tiny

from ft.kernels import cross_entropy
from ft.models import lora
from ft.score import comparison, likelihood


@pytest.fixture
def adapted():
    model = lora.attach(tiny.build("gemma3_text"), r=2, alpha=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([[2, 5, 9]])).logits


def test_the_base_is_the_model_without_its_adapter_or_the_one_that_is_given(adapted):
    plain = tiny.build("gemma3_text")
    found = comparison.both(logits, adapted)
    assert list(found) == ["base", "tuned"]
    assert torch.equal(found["base"], logits(plain))
    assert not torch.equal(found["tuned"], found["base"])
    given = comparison.both(logits, adapted, plain)
    assert all(torch.equal(given[name], found[name]) for name in found)
    assert torch.equal(logits(adapted), found["tuned"])


def test_the_adapter_is_back_after_a_failure(adapted):
    def fail(model):
        raise ZeroDivisionError

    before = logits(adapted)
    with pytest.raises(ZeroDivisionError):
        comparison.both(fail, adapted)
    assert torch.equal(logits(adapted), before)


def test_a_model_that_trained_whole_is_alone_without_its_base():
    assert list(comparison.both(logits, tiny.build("gemma3_text"))) == ["tuned"]


def test_equal_systems_do_not_differ_and_far_ones_do():
    drawn = comparison.resamples(40)
    low, high = [float(i % 3) for i in range(40)], [5.0 + i % 3 for i in range(40)]
    assert comparison.p_value(low, low, drawn) == 1
    assert comparison.p_value(low, high, drawn) == 1 / (len(drawn) + 1)
    found = comparison.interval(low, drawn)
    assert found["low"] < found["score"] < found["high"]
    assert found == comparison.interval(low, comparison.resamples(40))


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [  # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_wilsons(share, trials, low, high):
    assert comparison.wilson(share, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0, 27.8), (5, 10, 23.7, 76.3), (100, 100, 96.3, 100)]
)
def test_a_share_in_per_cent(right, n, low, high):
    found = comparison.per_cent(right / n, n)
    assert (found["low"], found["high"]) == (
        pytest.approx(low, abs=0.05),
        pytest.approx(high, abs=0.05),
    )


def test_losses_of_tokens_are_those_that_the_loss_is_the_mean_of(adapted):
    examples = [
        {"input_ids": [2, 5, 9, 40, 41, 1], "labels": [-100, -100, -100, 40, 41, 1]},
        {"input_ids": [2, 7, 60, 1], "labels": [-100, -100, 60, 1]},
    ]
    found = comparison.token_losses(adapted, tiny.tokenizer(), examples)
    assert [len(entry["tokens"]) for entry in found] == [3, 2]
    assert [list(entry) for entry in found] == [["prompt", "tokens", "base", "tuned"]] * 2
    cross_entropy.install(adapted.get_base_model())
    losses = [loss for entry in found for loss in entry["tuned"]]
    expected = likelihood.loss(adapted, examples)
    assert comparison.mean(losses) == pytest.approx(expected, abs=1e-3)
    assert losses != [loss for entry in found for loss in entry["base"]]


def test_a_text_without_a_loss_is_not_shaded(adapted):
    example = {"input_ids": [2, 5] * 200, "labels": [-100] * 399 + [5]}
    assert comparison.token_losses(adapted, tiny.tokenizer(), [example]) == []
