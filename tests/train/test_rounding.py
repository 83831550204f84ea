"""AdamW is the published rule, and fp32 stays with exact arithmetic: what two implementations can be asked for."""

import copy

import numpy as np
import pytest
import torch
from goldens import make_recurrent as golden
from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from ft.kernels import recurrent
from ft.train import optim

STEPS, RATE, DECAY = 60, 0.003, 0.1


@pytest.fixture(scope="module")
def rows() -> list[torch.Tensor]:
    """A row of up to 100 tokens for each step."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 101, STEPS)
    return [torch.from_numpy(rng.integers(6, golden.CONFIG["vocab_size"], (1, n))) for n in sizes]


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
    optimizer = optim.create(model, name, learning_rate=RATE, weight_decay=DECAY)
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
    model, (b1, b2, eps) = model.double(), (0.9, 0.999, 1e-8)
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


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fp32_stays_with_exact_arithmetic(name, model, rows, monkeypatch) -> None:
    """What rounding alone may explain after 60 steps at 0.003; a larger difference is one of the rule."""
    single = losses(copy.deepcopy(model), rows, name)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    exact = losses(model.double(), rows, name)
    assert np.abs(single - exact).max() < 1e-5
    assert abs(exact[0] - exact[-1]) > 0.01  # it has moved
