"""Products in float16 between float32 activations: those of float32 to float16's rounding, whatever the sizes."""

import copy

import pytest
import torch
from support import tiny, toy

from ft import machine, models
from ft.kernels import half
from ft.machine import Machine
from ft.models import lora
from ft.text import batches

WIDE = {"hidden_size": 128, "head_dim": 64}  # rows of whole blocks
ROUNDING = 2**-10  # of float16, relative


def adapted(folder: str, scale: float = 1.0, bf16: bool = False):
    """A model in 4 bits that computes in float32, or bf16, with an adapter; ``scale`` times the embedding."""
    plain = Machine("cpu", bf16, True, "a CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "here", lambda: plain)
        base = models.load(folder, precision="nf4").model
    head, table = base.get_output_embeddings(), base.get_input_embeddings()
    if scale != 1.0:  # untied, so that the logits stay as they are
        head.weight = torch.nn.Parameter(table.weight.detach().clone(), requires_grad=False)
        table.weight.data.mul_(scale)
    torch.manual_seed(0)
    model = lora.attach(base, r=4, alpha=8)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05)
    return model


def loss_and_gradients(model, share: float = 1.0) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = model(**batches.packed_row(toy.examples(3)))["loss"]
    (loss * share).backward()
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), torch.cat(found)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("half")
    kinds = ("gemma", "gemma2", "gemma3_text", "gemma4_text")
    return {kind: str(tiny.folder(kind, root / kind, **WIDE)) for kind in kinds}


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text", "gemma4_text"])
def test_loss_and_gradients_are_those_of_float32(kind, places):
    model = adapted(places[kind])
    loss, gradient = loss_and_gradients(model)
    assert half.install(model) > 20
    other, close = loss_and_gradients(model)
    assert other == pytest.approx(loss, rel=ROUNDING)
    # what a rounding makes of a gradient depends on the model: that of bf16 is eight times as large
    _, coarse = loss_and_gradients(adapted(places[kind], bf16=True))
    assert 0 < (close - gradient).norm() < (coarse - gradient).norm() / 4


def test_activations_beyond_float16_stay_right(places):
    """Where float16 alone is not finite: the residual stream, and what goes into and out of the products."""
    model = adapted(places["gemma"], scale=1e6)
    loss, gradient = loss_and_gradients(model)
    alone = copy.deepcopy(adapted(places["gemma"], scale=1e6)).half()
    assert not torch.isfinite(alone(**batches.packed_row(toy.examples(3)))["loss"])
    half.install(model)
    other, close = loss_and_gradients(model)
    assert other == pytest.approx(loss, rel=ROUNDING)
    assert (close - gradient).norm() < 4 * ROUNDING * gradient.norm()


@pytest.mark.parametrize("share", [1e-12, 1e12])
def test_gradients_of_any_size_neither_vanish_nor_overflow(share, places):
    model = adapted(places["gemma3_text"])
    half.install(model)
    _, gradient = loss_and_gradients(model)
    _, other = loss_and_gradients(model, share)
    assert (other / share - gradient).norm() < 2 * ROUNDING * gradient.norm()


def test_a_row_is_scaled_by_itself():
    x = torch.tensor([[3e38, 1e38], [1e-40, 2e-40], [0.0, 0.0], [1.0, -2.0]])
    found = half.product(x, torch.eye(2).half())
    torch.testing.assert_close(found, x, rtol=ROUNDING, atol=1e-43)
    x[0, 0] = float("inf")
    assert not torch.isfinite(half.product(x, torch.eye(2).half())[0, 0])
