"""The memory that full-parameter training is refused for."""

import pytest
from support import tiny

from ft import machine, memory, models
from ft.errors import UserError
from ft.models import parameters
from ft.train import optim


def base(kind: str, precision: str = "fp32") -> models.Base:
    model = tiny.build(kind)
    return models.Base(model, None, kind, None, precision, "transformers", "sdpa", ())  # pyright: ignore


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_estimate_is_what_a_step_leaves_behind(kind):
    model = parameters.train_all(base(kind))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.create(model, "adamw", learning_rate=1e-3)
    for p in trained:
        p.grad = p.detach().clone()
    optimizer.step()
    need = memory.full_training(model.config, optim="adamw", precision="fp32")
    assert need.parameters == sum(p.numel() for p in model.parameters())
    assert need.weights == 4 * need.parameters
    states = [s for p in trained for k, s in optimizer.state[p].items() if k != "step"]
    assert need.states == sum(s.nbytes for s in states)
    head = model.get_input_embeddings().weight
    assert need.gradients == sum(p.grad.nbytes for p in trained) + head.nbytes


def test_less_is_needed_by_sgd_8_bits_and_bf16():
    def states(name: str, precision: str = "fp32") -> int:
        return memory.full_training(tiny.config("gemma"), optim=name, precision=precision).states

    assert states("sgd") == 0
    assert states("adamw") == 4 * states("adamw_8bit") == 2 * states("adamw", "bf16")


def test_what_will_not_fit_is_refused_with_the_estimate(monkeypatch):
    config = tiny.config("gemma", hidden_size=2048, intermediate_size=16384, num_hidden_layers=18)
    monkeypatch.setattr(machine, "free_memory", lambda: (16 * memory.GIB, "a GPU"))
    said = r"optim=adamw will not fit: [\d,]+ parameters need 27.1 GiB \(weights 6.8, .* a GPU has 16.0"
    with pytest.raises(UserError, match=said) as error:
        memory.check(config, optim="adamw", precision="fp32")
    assert "Use --optim sgd" in str(error.value)
    assert "16.0 GiB are free" in memory.check(config, optim="sgd", precision="fp32")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "16.0 GiB are free" in memory.check(config, optim="adamw", precision="fp32")


def test_the_ways_out_are_those_that_are_left(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda: (10, "a GPU"))
    with pytest.raises(UserError, match="free. Use --lora-r 16, which"):
        memory.check(tiny.config("gemma"), optim="sgd", precision="bf16")
