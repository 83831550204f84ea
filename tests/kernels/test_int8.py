"""Int8 weights: close to the weights they stand for, adapters on top, refused for training."""

import pytest
import torch

from ft import machine, models
from ft.errors import UserError
from ft.generate import answers
from ft.kernels import int8
from ft.machine import Machine
from ft.models import lora, precision
from ft.runs import divergence

needs_vectors = pytest.mark.skipif(not machine.cpu_int8(), reason="no AVX2 on this CPU")


def layer(out: int = 96, into: int = 64, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(into, out, bias=bias)


@needs_vectors
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (7, 64), (2, 3, 64), (int8.ROWS + 1, 64), (5, 9, 64)])
def test_a_layer_multiplies_by_rounded_weights(shape, bias, monkeypatch):
    monkeypatch.setattr(int8, "PIECE", 40 * 64)  # the last piece is a smaller one
    plain = layer(bias=bias)
    before = plain.weight.clone()
    quantised = int8._class()(plain)
    assert torch.equal(plain.weight, before)
    x = torch.randn(*shape)
    steps = plain.weight.abs().amax(1, keepdim=True) / 127
    # half a step, and at the largest weights what rounding the scale to bf16 takes from 127 of them
    assert ((quantised.weight - plain.weight).abs() <= 0.76 * steps).all()
    rounded = torch.nn.functional.linear(x, quantised.weight, plain.bias)
    few = x.numel() // 64 <= int8.ROWS
    error = (quantised(x) - rounded).abs().max() / rounded.abs().max()
    assert error < (2**-8 if few else 1e-6)
    assert quantised(x.bfloat16()).dtype == torch.bfloat16


@needs_vectors
def test_a_number_that_is_not_finite_stays_so():
    x = torch.randn(2, 64)
    x[1, 3] = float("nan")
    found = int8._class()(layer())(x)
    assert found[0].isfinite().all()
    assert not found[1].isfinite().any()


@needs_vectors
@pytest.mark.parametrize(
    "kind", ["gemma", "gemma3_text", "gemma3n", "gemma4_moe", "recurrent_gemma"]
)
def test_a_model_in_int8_is_close_to_itself(kind, folder):
    ids = [torch.randint(6, 300, (1, 24), generator=torch.Generator().manual_seed(0))]
    plain = models.load(folder(kind), precision="fp32")
    base = models.load(folder(kind), precision="int8", inference=True)
    assert base.precision == "int8"
    assert any("int8" in note for note in base.notes)
    assert int8.installed(base.model)
    assert not int8.installed(plain.model)
    found = divergence.compare(
        divergence.logits(plain.model, ids), divergence.logits(base.model, ids), bound=1.0
    )
    assert 0 < found.kl < 0.02
    ((answer,),) = answers.generate(base.model, base.tokenizer, ["le chat"], max_new_tokens=5)
    assert len(answer.ids) == 5


@needs_vectors
def test_an_adapter_goes_on_it(folder, tmp_path):
    from peft import PeftModel

    trained = lora.attach(models.load(folder("gemma3_text"), precision="fp32"), r=2, alpha=4)
    with torch.no_grad():
        for name, weight in trained.named_parameters():
            if "lora_B" in name:
                weight += 0.2
    trained.save_pretrained(tmp_path)
    base = models.load(folder("gemma3_text"), precision="int8", inference=True)
    loaded = lora.load(base, tmp_path)
    assert isinstance(loaded, PeftModel)
    assert int8.installed(loaded)
    ids = [torch.tensor([[2, 40, 50, 60, 70]])]
    found = divergence.compare(
        divergence.logits(trained, ids), divergence.logits(loaded, ids), bound=1.0
    )
    assert found.kl < 0.02


@needs_vectors
def test_training_is_refused(folder):
    with pytest.raises(UserError, match="int8 is for generation"):
        models.load(folder("gemma"), precision="int8")
    with pytest.raises(UserError, match="int8 is for generation with the backend transformers"):
        models.load(folder("gemma"), precision="int8", backend="unsloth", inference=True)


def test_it_needs_a_processor_with_vectors():
    for device in ("cpu", "cuda:0", "mps"):
        machine = Machine(device, True, True, "something else")
        with pytest.raises(UserError, match="int8 needs a CPU with AVX2 .* this is something else"):
            precision.choose_precision("int8", machine)
