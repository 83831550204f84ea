"""AdamW is the published rule, learns what JAX's does, and fp32 stays with exact arithmetic."""

import copy
import json

import numpy as np
import pytest
import torch
from goldens import make_recurrent as golden
from goldens import make_recurrent_adamw as trained
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from ft.kernels import recurrent
from ft.train import optim

RATE, DECAY = trained.RATE, trained.DECAY


@pytest.fixture(scope="module")
def rows() -> list[torch.Tensor]:
    """A row of up to 100 tokens for each step."""
    return [torch.from_numpy(ids) for ids in trained.rows()]


@pytest.fixture
def model() -> RecurrentGemmaForCausalLM:
    torch.set_num_threads(1)
    config = RecurrentGemmaConfig(**golden.CONFIG)
    made = RecurrentGemmaForCausalLM._from_config(config, attn_implementation="sdpa")
    golden.fill(made)
    recurrent.install(made)
    return made.train()


def losses(model, rows, name: str, after=lambda model: None) -> np.ndarray:
    """The loss of each step, of one row each, in the model's own precision."""
    options = {"weight_decay": DECAY, "betas": trained.BETAS}
    optimizer = optim.create(model, name, learning_rate=RATE, **options)
    found = []
    for ids in rows:
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        after(model)
        optimizer.step()
        found.append(loss.item())
    return np.array(found)


def test_adamw_is_the_published_rule_in_exact_arithmetic(model, rows, monkeypatch) -> None:
    """Bias correction, epsilon and decay as Loshchilov & Hutter and optax have them, to the last digits."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the norms' own widening
    model, (b1, b2), eps = model.double(), trained.BETAS, trained.EPSILON
    wanted = {name: p.detach().clone() for name, p in model.named_parameters()}
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in wanted.items()}
    groups, step = optim.groups(model, DECAY, None), 0
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}

    def update(model) -> None:
        nonlocal step
        step += 1
        for name, p in model.named_parameters():
            m, v = moments[name]
            m.mul_(b1).add_((1 - b1) * p.grad)
            v.mul_(b2).add_((1 - b2) * p.grad**2)
            move = m / (1 - b1**step) / ((v / (1 - b2**step)).sqrt() + eps)
            wanted[name] -= RATE * (move + decay[id(p)] * wanted[name])

    losses(model, rows, "adamw", update)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), wanted[name], rtol=0, atol=1e-9, msg=name)


def test_adamw_learns_what_google_and_optax_do(model, rows, monkeypatch) -> None:
    """To 9 digits in exact arithmetic: what fp32 differs by is rounding, here as in JAX."""
    theirs = json.loads(trained.FILE.read_text())
    single = losses(copy.deepcopy(model), rows, "adamw")
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact = losses(model.double(), rows, "adamw")
    np.testing.assert_allclose(exact, theirs["fp64"], rtol=0, atol=2e-9)
    np.testing.assert_allclose(single, theirs["fp32"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fp32_stays_with_exact_arithmetic(name, model, rows, monkeypatch) -> None:
    """What rounding alone may explain after 60 steps at 0.003; a larger difference is one of the rule."""
    single = losses(copy.deepcopy(model), rows, name)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact = losses(model.double(), rows, name)
    assert np.abs(single - exact).max() < 1e-5
    assert abs(exact[0] - exact[-1]) > 0.01  # it has moved
