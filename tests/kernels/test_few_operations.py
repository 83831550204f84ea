"""Norms and rotary embeddings of a CPU: what transformers' own compute, each way, in fewer operations."""

import collections

import pytest
import torch
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from ft.kernels import few_operations, fused_layers
from ft.models import lora


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names = collections.Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        views = [r.alias_info and not r.alias_info.is_write for r in function._schema.returns]
        name = function.overloadpacket.__name__
        self.names[name] += not any(views) and "empty" not in name
        return function(*args, **(kwargs or {}))


def answer(model, ids):
    """Logits, and the gradients of what trains, with padding and positions of a second row that differ."""
    model.zero_grad()
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    counting = Counting()
    with counting:
        logits = model(input_ids=ids, attention_mask=mask).logits[:, 3:]
        logits.square().mean().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found, counting.names.total()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_frozen_gemma_of_every_generation_answers_and_learns_as_before(kind):
    torch.manual_seed(0)
    model = lora.attach(tiny.build(kind), r=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
        if "norm" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(5, 29).reshape(2, 12)
    logits, slopes, operations = answer(model, ids)
    found = fused_layers.install(model)
    assert found["norms"] > 2
    ours, gradients, fewer = answer(model, ids)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    assert gradients.keys() == slopes.keys()
    for name, slope in slopes.items():
        bound = 1e-4 * slope.abs().max().item()
        torch.testing.assert_close(gradients[name], slope, rtol=1e-3, atol=bound, msg=name)
    assert fewer <= operations - 3 * found["norms"]


def test_where_norms_train_they_are_transformers_own():
    model, ids = tiny.build("gemma2"), torch.arange(5, 29).reshape(2, 12)
    logits, slopes, _ = answer(model, ids)
    fused_layers.install(model)
    ours, gradients, _ = answer(model, ids)
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-5)
    norms = [name for name in slopes if "norm" in name]
    assert norms
    for name in norms:
        torch.testing.assert_close(gradients[name], slopes[name], rtol=1e-4, atol=1e-6)


def test_functions_pass_gradcheck():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    weight, angle = torch.randn(6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    for scale in (weight, None):
        assert torch.autograd.gradcheck(
            lambda x, w=scale: few_operations.rms_norm(x, w, 0.1, 1.0), x
        )
    turn = lambda x: few_operations.rotary(angle.cos(), angle.sin(), x)  # noqa: E731
    assert torch.autograd.gradcheck(turn, x)


def test_the_scale_follows_the_weight():
    weight, x = torch.nn.Parameter(torch.randn(8), requires_grad=False), torch.randn(3, 8)
    before = few_operations.rms_norm(x, weight, 1e-6, 1.0)
    with torch.no_grad():
        weight.mul_(2).add_(1)  # 1 + w, twice as large
    torch.testing.assert_close(few_operations.rms_norm(x, weight, 1e-6, 1.0), 2 * before)
    weight.data = torch.full((8,), -1.0)
    assert not few_operations.rms_norm(x, weight, 1e-6, 1.0).any()


def test_it_is_for_gradients_in_fp32_on_a_cpu():
    x, weight = torch.ones(2, 4, requires_grad=True), torch.ones(4)
    assert few_operations.usable(x, weight, None)
    assert not few_operations.usable(x.detach(), weight)
    with torch.no_grad():
        assert not few_operations.usable(x, weight)
    assert not few_operations.usable(x.bfloat16(), weight.bfloat16())
    assert not few_operations.usable(x, weight.requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not few_operations.usable(x)
    assert not few_operations.usable(torch.ones(2, device="meta", requires_grad=True))
