"""Our LoRA layer computes what PEFT's does, gradients included, and leaves to PEFT what it does not know."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from support import tiny

from ft.kernels import lora_linear


def adapted(**options):
    """A tiny Gemma 3 with a LoRA adapter whose B is not zero, once as PEFT has it and once with ours."""
    torch.manual_seed(0)
    model = tiny.build("gemma3_text")
    plain = get_peft_model(
        model,
        LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM", **options
        ),
    )
    for name, parameter in plain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    ours = copy.deepcopy(plain)
    lora_linear.install(ours)
    return plain, ours


def step(model, dtype=torch.float32):
    model.to(dtype)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    ids = torch.arange(3, 27).reshape(2, 12)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    assert grads
    assert all(g.abs().sum() > 0 for g in grads.values())
    return logits.detach(), torch.cat([g.flatten() for g in grads.values()])


@pytest.mark.parametrize(
    "options", [{}, {"lora_dropout": 0.3}, {"use_rslora": True}], ids=["plain", "dropout", "rslora"]
)
def test_outputs_and_gradients_are_those_of_peft(options):
    (expected, expected_grad), (found, found_grad) = (step(m.train()) for m in adapted(**options))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found_grad, expected_grad, atol=1e-6, rtol=1e-4)


def test_bf16_is_no_farther_from_fp32_than_peft_under_autocast():
    plain, ours = adapted()
    exact = step(copy.deepcopy(plain))[1]
    distance = [(step(m, torch.bfloat16)[1] - exact).norm() / exact.norm() for m in (plain, ours)]
    assert distance[0] > 1e-4  # bf16 was at work
    assert distance[1] <= 1.2 * distance[0]


def test_the_function_passes_gradcheck():
    torch.manual_seed(0)
    shapes = [(2, 3, 5), (2, 3, 4), (2, 4), (5, 2)]
    inputs = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]

    def run(result, x, a, b):
        return lora_linear.add_low_rank(result * 1, x, a, b, 0.5)  # a copy: it is written into

    assert torch.autograd.gradcheck(run, inputs)


def test_a_layer_that_is_more_than_plain_lora_answers_as_peft_wrote_it():
    plain, ours = adapted(use_dora=True)
    torch.testing.assert_close(step(ours), step(plain))
    plain, ours = adapted()
    ids = torch.arange(3, 15)[None]
    adapter = ours(input_ids=ids).logits
    with ours.disable_adapter(), plain.disable_adapter():
        base = plain(input_ids=ids).logits
        torch.testing.assert_close(ours(input_ids=ids).logits, base)
    assert (adapter - base).abs().max() > 1e-3
    ours.merge_adapter()
    torch.testing.assert_close(ours(input_ids=ids).logits, adapter, atol=1e-4, rtol=1e-4)
    ours.unmerge_adapter()
    merged = ours.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=ids).logits, adapter, atol=1e-4, rtol=1e-4)


def test_a_deep_copy_uses_its_own_weights():
    _, ours = adapted()
    other = copy.deepcopy(ours)
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(parameter)
    ids = torch.arange(3, 15)[None]
    assert (ours(input_ids=ids).logits - other(input_ids=ids).logits).abs().max() > 1e-3
