"""Norms and gated MLPs of a GPU without Triton: PyTorch's own numbers, of which the inputs alone are kept."""

import pytest
import torch
from support import tiny

from ft.kernels import few_operations, fused_layers, recomputed
from ft.models import lora


def learnt(model, ids):
    """Loss, gradients of what trains, and bytes that are kept between forward and backward."""
    model.zero_grad()
    held = {}

    def keep(x):
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        loss = model(input_ids=ids).logits.float().square().mean()
    loss.backward()
    slopes = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    return loss.detach(), slopes, sum(size for at, size in held.items() if at not in own)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_generation_learns_what_it_did_and_keeps_less(kind, dtype, full, monkeypatch):
    torch.manual_seed(0)
    model = tiny.build(kind).to(dtype)
    if not full:
        model = lora.attach(model, r=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name or "norm" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.arange(5, 29).reshape(2, 12)
    loss, slopes, held = learnt(model, ids)
    fused_layers.install(model)
    monkeypatch.setattr(few_operations, "usable", lambda *_: False)
    monkeypatch.setattr(recomputed, "usable", lambda x: x.requires_grad)
    ours, gradients, less = learnt(model, ids)
    assert torch.equal(ours, loss)
    assert gradients.keys() == slopes.keys()
    bound = 1e-5 if dtype == torch.float32 else 0.05  # sums of a gradient come in another order
    for name, slope in slopes.items():
        off = (gradients[name] - slope).float().norm() / slope.float().norm().clamp(min=1e-9)
        assert off < bound, (name, off)
    assert less < held * (0.95 if dtype == torch.bfloat16 else 1.0), (less, held)


def test_nothing_is_kept_of_what_has_no_gradient():
    x = torch.randn(2, 8)
    assert not recomputed.usable(x)
    assert not recomputed.rms_norm(x, torch.ones(8), 1e-6).requires_grad


def test_only_what_needs_a_gradient_has_one():
    x, weight = torch.randn(2, 8, requires_grad=True), torch.ones(8)
    recomputed.rms_norm(x, weight, 1e-6, 1.0).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
