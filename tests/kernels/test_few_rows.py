"""Products and norms of few rows: what PyTorch's own calls give, and nothing left behind."""

import pytest
import torch
from support import tiny

from ft.kernels import few_rows
from ft.models import lora


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 16, 17, 40])
@pytest.mark.parametrize(("height", "width"), [(64, 16), (512, 64), (640, 8), (1024, 32)])
def test_a_product_equals_pytorchs(rows, height, width):
    torch.manual_seed(0)
    weight = torch.randn(height, width)
    for x in (torch.randn(rows, width), torch.randn(1, rows, width), torch.randn(rows, 1, width)):
        found = few_rows.product(x, weight)
        expected = torch.nn.functional.linear(x, weight)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_a_model_has_the_same_logits(kind):
    model = tiny.build(kind)
    ids = torch.tensor([[2, 40, 50, 60]])
    with torch.no_grad():
        plain = [model(x, use_cache=False).logits for x in (ids, ids[:, :1], ids.repeat(3, 1))]
        with few_rows.fast(model):
            quick = [model(x, use_cache=False).logits for x in (ids, ids[:, :1], ids.repeat(3, 1))]
    for found, expected in zip(quick, plain, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_layers_inside_adapters_change_and_come_back():
    model = tiny.build("gemma3_text")
    adapted = lora.attach(model, r=2, alpha=4)
    own = {id(m) for m in adapted.modules() if "forward" in m.__dict__}  # LoRA's
    with few_rows.fast(adapted), few_rows.fast(adapted):
        inside = [m for m in adapted.modules() if "forward" in m.__dict__ and id(m) not in own]
        kinds = {type(m).__name__ for m in inside}
        assert kinds == {"Linear", "Gemma3RMSNorm"}
        assert adapted.get_output_embeddings() in inside
    assert {id(m) for m in adapted.modules() if "forward" in m.__dict__} == own


def test_a_bias_is_added_and_other_dtypes_are_left_alone():
    layer = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 16).bfloat16())
    x = torch.randn(1, 8)
    expected = layer[0](x)
    with few_rows.fast(layer):
        assert "forward" in layer[0].__dict__
        assert "forward" not in layer[1].__dict__
        torch.testing.assert_close(layer[0](x), expected)
