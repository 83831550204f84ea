"""Quantised layers: bitsandbytes' 4-bit values, outputs and gradients, from pieces; int8 weights close to those they stand for."""

import copy
from collections.abc import Callable

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, dequantize_blockwise
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from support import tiny

from ft import machine, models
from ft.errors import UserError
from ft.generate import answers
from ft.kernels import quantized
from ft.machine import Machine
from ft.models import lora, precision
from ft.runs import merge

Folder = Callable[..., str]
DTYPES = [torch.float32, torch.bfloat16]
WIDE = {"hidden_size": 128, "head_dim": 64}  # rows of whole blocks, as every Gemma has them


def quantised(outputs: int, inputs: int, dtype: torch.dtype, **options) -> Params4bit:
    generator = torch.Generator().manual_seed(outputs + inputs)
    values = torch.randn(outputs, inputs, generator=generator).to(dtype)
    return Params4bit(values, requires_grad=False, quant_type="nf4", **options).to("cpu")


def layer(outputs: int, inputs: int, dtype: torch.dtype, bias: bool = False) -> Linear4bit:
    """A layer of bitsandbytes' own, kept from its kernel without a backward."""
    made = Linear4bit(inputs, outputs, bias=bias, compute_dtype=dtype, quant_type="nf4")
    made.weight = quantised(outputs, inputs, dtype)
    made.support_avx512bf16_for_cpu = False
    return made


def installed(module: torch.nn.Module) -> torch.nn.Module:
    twin = copy.deepcopy(module)
    quantized.install_nf4(twin)
    return twin


def values(weight: Params4bit, dtype: torch.dtype) -> torch.Tensor:
    return torch.cat([piece for _, piece in quantized.pieces(weight, dtype)])


def by_definition(weight: Params4bit, dtype: torch.dtype) -> torch.Tensor:
    """A table's entry for each 4-bit code, times the scale of its block, rounded once."""
    state = weight.quant_state
    scales = state.absmax
    if state.nested:
        scales = dequantize_blockwise(scales, state.state2) + state.offset
    packed = weight.detach().view(-1).int()
    codes = torch.stack([packed >> 4, packed & 15], -1).view(-1)[: state.shape.numel()]
    blocks = scales.repeat_interleave(state.blocksize)[: len(codes)]
    return (state.code[codes] * blocks).to(dtype).view(state.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("piece", [1, 2**22])
@pytest.mark.parametrize("shape", [(130, 128), (65, 640), (200, 32), (70, 96), (3, 200), (1, 2)])
def test_values_are_those_of_the_definition(shape, piece, double, dtype, monkeypatch) -> None:
    monkeypatch.setattr(quantized, "NF4_PIECE", piece)
    weight = quantised(*shape, dtype, compress_statistics=double)
    assert torch.equal(values(weight, dtype), by_definition(weight, dtype))
    rows = [at for at, _ in quantized.pieces(weight, dtype)]
    assert len(rows) == (-(-shape[0] // 64) if piece == 1 else 1)
    assert [at.start for at in rows] + [shape[0]] == [0] + [at.stop for at in rows]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("blocksize", [64, 128])
@pytest.mark.parametrize("shape", [(64, 128), (640, 2048), (2304, 1152)])
def test_values_are_those_of_bitsandbytes_where_rows_are_whole_blocks(
    shape, blocksize, dtype
) -> None:
    weight = quantised(*shape, dtype, blocksize=blocksize)
    expected = dequantize_4bit(weight.data, weight.quant_state)
    assert torch.equal(values(weight, dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_answers_and_differentiates_as_that_of_bitsandbytes(bias, dtype) -> None:
    theirs = layer(192, 128, dtype, bias)
    found = []
    for module in (theirs, installed(theirs)):
        x = torch.randn(2, 9, 128, dtype=dtype, generator=torch.Generator().manual_seed(1))
        x.requires_grad_(True)
        result = module(x)
        result.sin().sum().backward()
        found.append((result.detach(), x.grad))
    torch.testing.assert_close(*found, rtol=1e-6, atol=0)


def test_a_bias_that_trains_gets_its_gradient() -> None:
    ours = installed(layer(192, 128, torch.float32, bias=True))
    factors = torch.randn(2, 9, 192, generator=torch.Generator().manual_seed(1))
    (ours(torch.ones(2, 9, 128)) * factors).sum().backward()
    torch.testing.assert_close(ours.bias.grad, factors.sum((0, 1)))


@pytest.mark.parametrize("bias", [False, True])
def test_pieces_answer_to_the_bit_and_differentiate_within_rounding(bias, monkeypatch) -> None:
    theirs = layer(1024, 128, torch.bfloat16, bias)
    ours = installed(theirs)
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    factors = torch.randn(9, 1024, generator=torch.Generator().manual_seed(2)).bfloat16()
    exact = factors.float() @ by_definition(theirs.weight, torch.bfloat16).float()
    monkeypatch.setattr(quantized, "NF4_PIECE", 1)  # 16 pieces
    results, errors = [], []
    for module in (theirs, ours):
        leaf = x.clone().requires_grad_(True)
        results.append(module(leaf))
        results[-1].backward(factors)
        errors.append((leaf.grad.float() - exact).norm() / exact.norm())
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=0)
    assert 1e-4 < errors[0] < 3e-3  # bfloat16 was at work
    assert errors[1] < 1.5 * errors[0]


def test_the_layer_computes_in_its_own_dtype_and_answers_in_that_of_its_input() -> None:
    ours = installed(layer(64, 64, torch.bfloat16))
    x = torch.randn(3, 64)
    weight = by_definition(ours.weight, torch.bfloat16)
    assert ours(x).dtype == torch.float32
    assert torch.equal(ours(x), (x.bfloat16() @ weight.T).float())


def test_a_result_may_be_written_into() -> None:
    ours = installed(layer(64, 64, torch.float32))
    x = torch.randn(1, 3, 64, requires_grad=True)
    result = ours(x)
    assert not result._is_view()
    result.mul_(2).sum().backward()
    expected = 2 * by_definition(ours.weight, torch.float32).sum(0)
    torch.testing.assert_close(x.grad, expected.expand(1, 3, 64))


def test_a_weight_takes_an_eighth_of_float32_and_nothing_is_kept_for_the_backward() -> None:
    ours = installed(layer(640, 640, torch.float32))
    state = ours.weight.quant_state
    kept = [ours.weight, state.absmax, state.state2.absmax]
    assert sum(t.nbytes for t in kept) < 0.135 * 4 * 640 * 640
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        ours(torch.ones(1, 640, requires_grad=True))
    assert saved == []


def test_a_copy_and_a_merged_layer_use_their_own_weights() -> None:
    ours = installed(layer(64, 64, torch.float32))
    twin = copy.deepcopy(ours)
    twin.weight = quantised(64, 64, torch.float32, blocksize=128)
    x = torch.randn(2, 64)
    assert torch.equal(twin(x), x @ by_definition(twin.weight, torch.float32).T)
    assert not torch.equal(twin(x), ours(x))


def step(model) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss, and the gradients of an adapter whose B is not zero."""
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(2))
    ids = torch.arange(6, 30)[None]
    result = model.train()(input_ids=ids, labels=ids)
    result["loss"].backward()
    grads = [p.grad.flatten() for p in model.parameters() if p.requires_grad]
    return result["loss"].detach(), torch.cat(grads)


def test_a_qlora_step_is_that_of_bitsandbytes(tmp_path, monkeypatch) -> None:
    path = str(tiny.folder("gemma3_text", tmp_path / "wide", **WIDE))
    found = []
    for own in (False, True):
        with monkeypatch.context() as patch:
            if not own:
                patch.setattr(quantized, "install_nf4", lambda model: None)
            base = models.load(path, precision="nf4")
        layers = [m for m in base.model.modules() if isinstance(m, Linear4bit)]
        assert [("forward" in vars(m)) for m in layers] == [own] * 28
        torch.manual_seed(0)
        found.append(step(lora.attach(base, r=4, alpha=8)))
    (loss, grads), (our_loss, our_grads) = found
    torch.testing.assert_close(our_loss, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(our_grads, grads, rtol=1e-5, atol=1e-8)
    assert grads.norm() > 1e-3


def test_the_adapter_switches_off_and_merges_over_our_layers(folder: Folder) -> None:
    base = models.load(folder("gemma3_text"), precision="nf4")
    ids = torch.arange(6, 30)[None]
    plain = base.model(input_ids=ids).logits
    model = lora.attach(base, r=4, alpha=8)
    step(model)
    model.eval()
    adapted = model(input_ids=ids).logits
    assert (adapted - plain).abs().max() > 1e-2
    with model.disable_adapter():
        torch.testing.assert_close(model(input_ids=ids).logits, plain)
    with pytest.warns(UserWarning, match="Merge lora module to 4-bit"):
        model.merge_adapter()
    merged = model(input_ids=ids).logits
    assert (merged - plain).abs().max() > 1e-2


needs_vectors = pytest.mark.skipif(not machine.cpu_int8(), reason="no AVX2 on this CPU")


def plain_layer(out: int = 96, into: int = 64, bias: bool = False) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(into, out, bias=bias)


def is_int8(model: torch.nn.Module) -> bool:
    return any(isinstance(module, quantized.Int8Linear) for module in model.modules())


@needs_vectors
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "shape", [(1, 64), (7, 64), (2, 3, 64), (quantized.ROWS + 1, 64), (5, 9, 64)]
)
def test_a_layer_multiplies_by_rounded_weights(shape, bias, monkeypatch):
    monkeypatch.setattr(quantized, "INT8_PIECE", 40 * 64)  # the last piece is a smaller one
    plain = plain_layer(bias=bias)
    before = plain.weight.clone()
    quantised = quantized.Int8Linear(plain)
    assert torch.equal(plain.weight, before)
    x = torch.randn(*shape)
    steps = plain.weight.abs().amax(1, keepdim=True) / 127
    # half a step, and at the largest weights what rounding the scale to bf16 takes from 127 of them
    assert ((quantised.weight - plain.weight).abs() <= 0.76 * steps).all()
    rounded = torch.nn.functional.linear(x, quantised.weight, plain.bias)
    few = x.numel() // 64 <= quantized.ROWS
    error = (quantised(x) - rounded).abs().max() / rounded.abs().max()
    assert error < (2**-8 if few else 1e-6)
    assert quantised(x.bfloat16()).dtype == torch.bfloat16


@needs_vectors
def test_a_number_that_is_not_finite_stays_so():
    x = torch.randn(2, 64)
    x[1, 3] = float("nan")
    found = quantized.Int8Linear(plain_layer())(x)
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
    assert is_int8(base.model)
    assert not is_int8(plain.model)
    found = merge.compare(merge.logits(plain.model, ids), merge.logits(base.model, ids), bound=1.0)
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
    assert is_int8(loaded)
    ids = [torch.tensor([[2, 40, 50, 60, 70]])]
    found = merge.compare(merge.logits(trained, ids), merge.logits(loaded, ids), bound=1.0)
    assert found.kl < 0.02


@needs_vectors
def test_training_is_refused(folder):
    with pytest.raises(UserError, match="int8 is for generation"):
        models.load(folder("gemma"), precision="int8")
    with pytest.raises(UserError, match="int8 is for generation with the backend transformers"):
        models.load(folder("gemma"), precision="int8", backend="unsloth", inference=True)


def test_it_needs_a_processor_with_vectors():
    for device in ("cpu", "cuda:0", "mps"):
        on = Machine(device, True, True, "something else")
        with pytest.raises(UserError, match="int8 needs a CPU with AVX2 .* this is something else"):
            precision.choose_precision("int8", on)
