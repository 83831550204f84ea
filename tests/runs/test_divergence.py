"""The distance of two models' predictions, against arithmetic."""

import math

import torch

from ft.runs import divergence


def test_against_arithmetic() -> None:
    half, quarter = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, math.log(3)]])  # p, q of [T, V]
    found = divergence.compare([half, half], [half, quarter], bound=0.1)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.tokens == 2
    assert math.isclose(found.kl, kl / 2, rel_tol=1e-6)
    assert math.isclose(found.largest, 1.0)
    assert found.agreement == 0.5
    assert "mean KL 7.2e-02 nats (bound 1e-01), same first choice 50.0%" in str(found)


def test_shifted_logits_are_the_same_distribution() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    found = divergence.compare([logits], [logits + 3], bound=1)
    assert abs(found.kl) < 1e-12 + 1e-6
    assert found.agreement == 1


def test_not_a_number_is_no_agreement() -> None:
    logits = torch.zeros(1, 3)
    found = divergence.compare([logits], [logits * math.nan], bound=1)
    assert not found.kl <= found.bound
