"""Which parameters decay, and optimizers that cannot be had here."""

import pytest
import tiny
import torch

from ft import optim
from ft.errors import UserError


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_embeddings_norms_biases_and_rg_lru_are_spared_and_every_matrix_decays(kind):
    model = tiny.build(kind)
    decayed, spared = ({id(p) for p in g["params"]} for g in optim.groups(model, 0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    for key in spared:
        assert any(word in names[key] for word in ("norm", "embed", "bias", "rg_lru")), names[key]
    for key in decayed:
        assert not any(word in names[key] for word in ("norm", "rg_lru")), names[key]
    assert len(decayed) + len(spared) == len(names)
    if kind == "recurrent_gemma":
        gates = [n for n in names.values() if "gate_weight" in n]
        assert gates
        assert all("rg_lru" in gate for gate in gates)


def test_decay_moves_only_what_decays():
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = optim.create(model, "adamw", learning_rate=0.1, weight_decay=0.5)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if name == "proj.weight" else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_a_model_with_nothing_to_train_is_an_error():
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        optim.create(model, "sgd", learning_rate=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="8-bit states work on a GPU")
def test_eight_bit_states_without_a_gpu_are_refused_by_name():
    with pytest.raises(UserError, match="'paged_adamw_8bit'.*use adamw or sgd"):
        optim.create(torch.nn.Linear(2, 2), "paged_adamw_8bit", learning_rate=0.1)
