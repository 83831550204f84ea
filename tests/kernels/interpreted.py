"""The fused kernels against PyTorch, run by Triton's interpreter on a CPU: `python interpreted.py` prints JSON.

In a process of its own, because Triton reads TRITON_INTERPRET once, when it is imported.
"""

import itertools
import sys
import unittest.mock

import torch
from support import interpreted, tiny

from ft.kernels import fused, fused_head, fused_layers, fused_nf4
from ft.text import batches

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def close(found, expected, dtype, *, ulps=2):
    """Equal to rounding: in 16 bits to some units of the last place of the largest, in fp32 to 2e-6."""
    assert found.dtype == expected.dtype
    bound = 2e-6 if dtype == torch.float32 else ulps * torch.finfo(dtype).eps
    scale = expected.float().abs().max()
    off = (found.float() - expected.float()).abs().max() / scale
    assert off <= bound, f"{dtype}: {off:.1e} off"


def same(function, reference, inputs, dtype):
    """Equal outputs and gradients."""
    results = []
    for run in (function, reference):
        leaves = [
            x.detach().clone(memory_format=torch.preserve_format).requires_grad_() for x in inputs
        ]
        out = run(*leaves)
        torch.manual_seed(1)
        gradient = torch.randn(out.shape).to(out.dtype)
        out.backward(gradient)
        results.append([out.detach(), *(x.grad for x in leaves)])
    for found, expected in zip(*results, strict=True):
        close(found, expected, dtype)


def rms_norm_reference(x, weight, offset):
    wide = x.float()
    normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (normed if weight is None else normed * (offset + weight.float())).type_as(x)


def norms():
    for dtype, (width, rows), offset in zip(
        (*DTYPES, *DTYPES), ((40, 7), (1500, 1)) * 3, (0.0, 1.0, 1.0) * 2, strict=True
    ):
        x, weight = torch.randn(2, rows, width).to(dtype) * 3, torch.randn(width).to(dtype)
        same(
            lambda x, w, o=offset: fused.rms_norm(x, w, 1e-6, o),
            lambda x, w, o=offset: rms_norm_reference(x, w, o),
            [x, weight],
            dtype,
        )
        same(
            lambda x: fused.rms_norm(x, None, 1e-6),
            lambda x: rms_norm_reference(x, None, 0),
            [x],
            dtype,
        )


def norms_of_heads_lie_as_their_input_does():
    x = torch.randn(2, 9, 3, 16).transpose(1, 2).requires_grad_()  # [B, H, T, D]
    weight = torch.randn(16)
    out = fused.rms_norm(x, weight, 1e-6, 1.0)
    assert out.stride() == x.stride()
    gradient = torch.randn(2, 3, 9, 16)  # in another order than the input
    (found,) = torch.autograd.grad(out, x, gradient)
    (expected,) = torch.autograd.grad(rms_norm_reference(x, weight, 1.0), x, gradient)
    close(found, expected, torch.float32)


def norms_of_heads_that_are_a_part_of_wider_rows():
    """Keys of a product that is queries, keys and values at once; and the last block of rows is not full."""
    for batch, time in ((1, 9), (2, 5)):
        wide = torch.randn(batch, time, 11 * 8, requires_grad=True)
        weight = torch.randn(8)
        results = []
        for norm in (fused.rms_norm, lambda x, w, *_: rms_norm_reference(x, w, 1.0)):
            heads = wide[..., 24:64].view(batch, time, 5, 8)
            out = norm(heads, weight, 1e-6, 1.0)
            assert out.is_contiguous()
            torch.manual_seed(1)
            gradient = torch.randn(batch, 5, time, 8).transpose(1, 2)
            results.append([out.detach(), *torch.autograd.grad(out, wide, gradient)])
        for found, expected in zip(*results, strict=True):
            close(found, expected, torch.float32)


def norms_of_a_part_of_wider_rows_leave_room_in_the_gradient():
    """Where what comes behind is A's part of a product; it has a number for each weight's gradient too."""
    for batch, trained in ((1, True), (2, False)):
        wide = torch.randn(batch, 5, 48, requires_grad=True)
        weight = torch.randn(40, requires_grad=trained)
        results = []
        for norm in (fused.rms_norm, lambda x, w, *_: rms_norm_reference(x, w, 1.0)):
            part = wide[..., :40]
            out = norm(part, weight, 1e-6, 1.0)
            assert out.is_contiguous()
            torch.manual_seed(1)
            leaves = [part, weight][: 1 + trained]
            slopes = torch.autograd.grad(out, leaves, torch.randn(batch, 5, 40))
            results.append([out.detach(), *slopes])
        for found, expected in zip(*results, strict=True):
            close(found, expected, torch.float32)
        slope = results[0][1]
        assert slope.stride()[1:] == (48, 1)
        assert slope.untyped_storage().nbytes() == 4 * batch * 5 * 48


def a_frozen_norm_costs_no_gradient():
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(8)
    fused.rms_norm(x, weight, 1e-6).sum().backward()
    assert weight.grad is None


def programs_with_several_blocks_of_rows_add_them_up():
    fused.SHARES, fused.ELEMENTS = 2, 16  # two rows a block
    same(
        lambda x, w: fused.rms_norm(x, w, 1e-6, 1.0),
        lambda x, w: rms_norm_reference(x, w, 1.0),
        [torch.randn(11, 8), torch.randn(8)],
        torch.float32,
    )


def geglu():
    for dtype in DTYPES:
        gate = torch.cat([torch.randn(3, 500) * 3, torch.full((3, 4), 30.0), torch.zeros(3, 7)], 1)
        gate[0, :3] = torch.tensor([-30.0, -1e-3, 1e-3])
        same(
            fused.geglu,
            lambda g, u: torch.nn.functional.gelu(g, approximate="tanh") * u,
            [gate.to(dtype), torch.randn(3, 511).to(dtype)],
            dtype,
        )


def geglu_of_the_halves_of_one_product():
    """Is not copied, and its gradients are halves of one matrix again, with as much behind them."""
    for more in (0, 16):
        _halves(more)


def _halves(more):
    width = 2 * 1100 + more
    wide = torch.randn(1, 3, width).requires_grad_()
    gate, up = wide[..., :1100], wide[..., 1100:2200]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x), x)[1], lambda x: x):
        out = fused.geglu(gate, up)
    assert [x.data_ptr() for x in kept] == [gate.data_ptr(), up.data_ptr()]
    gradient = torch.randn(1, 3, 1100)
    d_gate, d_up = torch.autograd.grad(out, (gate, up), gradient, retain_graph=True)
    assert d_up.data_ptr() == d_gate.data_ptr() + 4 * 1100
    assert d_up.stride() == d_gate.stride() == (3 * width, width, 1)
    (found,) = torch.autograd.grad(out, wide, gradient)
    plain = torch.nn.functional.gelu(gate, approximate="tanh") * up
    close(out.detach(), plain.detach(), torch.float32)
    (expected,) = torch.autograd.grad(plain, wide, gradient)
    close(found, expected, torch.float32)
    # one with rows of its own and one without
    apart = fused.geglu(gate, up.contiguous())
    close(apart.detach(), plain.detach(), torch.float32)


def rotated(x, cos, sin):
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]


def rotary():
    shapes = zip(DTYPES, (1, 3, 2), (12, 16, 16), (1, 2, 1), strict=True)
    for (dtype, heads, width, rows), order in itertools.product(shapes, (0, 1)):
        angle = torch.randn(rows, 3, width)
        cos, sin = angle.cos().to(dtype), angle.sin().to(dtype)
        x = torch.randn(2, 3, heads, width).to(dtype).transpose(1, 2)
        same(
            lambda x, c=cos, s=sin: fused.rotary(c, s, x)[0],
            lambda x, c=cos, s=sin: rotated(x, c, s),
            [x if order else x.contiguous()],
            dtype,
        )


def rotary_of_queries_and_keys_is_one_kernel():
    """Of other numbers of heads, as parts of one product; each has the gradient of its own result."""
    angle = torch.randn(1, 4, 16)
    cos, sin = angle.cos(), angle.sin()
    wide = torch.randn(2, 4, 8 * 16, requires_grad=True)
    both = [x.view(2, 4, -1, 16).transpose(1, 2) for x in wide.split([80, 48], -1)]
    with unittest.mock.patch.object(fused, "_kernels", wraps=fused._kernels) as launched:
        found = fused.rotary(cos, sin, *both)
        assert launched.call_count == 1
        gradients = [torch.randn(x.shape) for x in found]
        for out, x, gradient in zip(found, both, gradients, strict=True):
            expected = rotated(x, cos, sin)
            close(out.detach(), expected.detach(), torch.float32)
            slopes = [
                torch.autograd.grad(y, wide, gradient, retain_graph=True)[0]
                for y in (out, expected)
            ]
            close(*slopes, torch.float32)
        together = torch.autograd.grad(found, wide, gradients)[0]
        assert launched.call_count == 4
    close(
        together,
        torch.autograd.grad([rotated(x, cos, sin) for x in both], wide, gradients)[0],
        torch.float32,
    )


def capped(logits, softcap):
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def rows_of(dtype, n=6, vocabulary=1003):
    hidden, weight = torch.randn(n, 24).to(dtype), torch.randn(vocabulary, 24).to(dtype)
    targets = torch.randint(vocabulary, (n,))
    targets[::4] = -100
    targets[1], targets[2] = 0, vocabulary - 1
    return hidden, weight, targets


def head():
    """Loss and gradients are those of the same rounded logits in fp64; ignored rows have none."""
    fused_head.SPAN, fused_head.BLOCK = 512, 256  # two parts of two blocks, the last one not full
    for dtype, softcap in (*zip(DTYPES, (5.0, 30.0, None), strict=True), (torch.bfloat16, None)):
        hidden, weight, targets = rows_of(dtype)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        found = fused_head.losses(hidden, weight, targets, softcap, d_hidden, d_weight)
        raw = (hidden @ weight.T).double().requires_grad_()
        loss = torch.nn.functional.cross_entropy(capped(raw, softcap), targets, reduction="none")
        torch.testing.assert_close(found, loss.float().detach(), rtol=2e-6, atol=4e-6)
        (by_logits,) = torch.autograd.grad(loss.sum(), raw)
        close(d_hidden, (by_logits @ weight.double()).to(dtype), dtype)
        close(d_weight, (by_logits.T @ hidden.double()).to(dtype), dtype)
        assert not found[::4].any()
        assert not d_hidden[::4].any()
        alone = fused_head.losses(hidden, weight, targets, softcap)
        torch.testing.assert_close(alone, found, rtol=1e-6, atol=1e-6)


def head_in_tiles():
    """Tiles of rows change nothing, and padding rows neither: their number can be a bucket's."""
    fused_head.SPAN, fused_head.BLOCK = 512, 256
    hidden, weight, targets = rows_of(torch.float32, n=7)
    whole, tiled, padded = (torch.empty(n, 24) for n in (7, 7, 10))
    expected = fused_head.losses(hidden, weight, targets, 5.0, whole)
    batches.GPU_TILE, batches.STEP = 4 * 1003 * 3, 2
    assert len(batches.gpu_tiles(7, 1003, 4)) > 1
    close(fused_head.losses(hidden, weight, targets, 5.0, tiled), expected, torch.float32)
    close(tiled, whole, torch.float32)
    wide = torch.nn.functional.pad(hidden, (0, 0, 0, 3))
    labels = torch.nn.functional.pad(targets, (0, 3), value=-100)
    found = fused_head.losses(wide, weight, labels, 5.0, padded)
    close(found[:7], expected, torch.float32)
    assert not found[7:].any()
    assert not padded[7:].any()


def head_scores():
    """Shares of the highest logit, ties included, and the loss without gradients."""
    fused_head.SPAN, fused_head.BLOCK = 512, 256
    for softcap in (None, 5.0):
        hidden, weight, targets = rows_of(torch.float32, n=8)
        logits = hidden @ weight.T
        targets[5:8] = logits[5:8].argmax(-1)
        weight[700] = weight[targets[6]]  # in the other part of the vocabulary
        found, shares = fused_head.scores(hidden, weight, targets, softcap)
        expected = torch.zeros(8)
        expected[5:8] = torch.tensor([1.0, 0.5, 1.0])
        assert torch.equal(shares, expected)
        torch.testing.assert_close(
            found, fused_head.losses(hidden, weight, targets, softcap, torch.empty_like(hidden))
        )


def a_loss_that_is_not_a_number_stays_one():
    hidden, weight, targets = rows_of(torch.float32)
    hidden[1] = float("nan")
    found = fused_head.losses(hidden, weight, targets, 5.0, torch.empty_like(hidden))
    assert found.isnan().tolist() == [False, True, *[False] * 4]


def four_bits():
    """A weight comes back as bitsandbytes brings it, to the bit; what the kernel cannot take, by bitsandbytes."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for dtype, shape in itertools.product(DTYPES, ((75, 256), (3, 64))):  # 300 blocks, and 3
        weight = torch.randn(shape).to(dtype)
        weight[0] *= 9
        codes, state = quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        assert fused_nf4.usable(codes, state, dtype)
        expected = dequantize_4bit(codes, state)
        found = fused_nf4.decode(codes, state, dtype)
        if dtype == torch.bfloat16:  # the interpreter cuts off where a GPU rounds
            close(found, expected, dtype, ulps=1)
        else:
            assert torch.equal(found, expected)
    assert fused_nf4.works(torch.device("cpu"), torch.float16)
    plain = quantize_4bit(weight, compress_statistics=False, quant_type="nf4")
    assert not fused_nf4.usable(*plain, dtype)
    assert torch.equal(fused_nf4.weight(*plain, dtype), dequantize_4bit(*plain))


def answer(model, ids):
    """Logits, and the gradients of all parameters."""
    model.zero_grad()
    logits = model(input_ids=ids).logits
    logits.float().square().mean().backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def a_tiny_gemma_of_every_generation():
    """With the kernels its logits and gradients stay, and what else reads transformers' modules is untouched."""
    ids = torch.tensor([[2, 7, 9]])
    for kind in ("gemma2", "gemma3_text", "gemma4_text"):
        layers = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
        layers |= {"num_kv_shared_layers": 0} if kind == "gemma4_text" else {}
        model = tiny.build(kind, **layers)
        modeling = sys.modules[type(model).__module__]
        plain = modeling.apply_rotary_pos_emb
        logits, gradients = answer(model, ids)
        found = fused_layers.install(model)
        assert found["norms"] >= 9, found
        assert found["MLPs"] == found["rotary embeddings"] == 2, found
        assert modeling.apply_rotary_pos_emb is plain
        with unittest.mock.patch.object(fused, "_kernels", wraps=fused._kernels) as launched:
            ours, slopes = answer(model, ids)
        assert launched.call_count >= 2 * (found["norms"] + 2 + 2)  # each of them, both ways
        torch.testing.assert_close(ours, logits, rtol=1e-5, atol=1e-5)
        assert slopes.keys() == gradients.keys()
        for name, slope in slopes.items():
            torch.testing.assert_close(slope, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
        assert not any(fused_layers.install(model).values())  # once is enough


CASES = (
    norms,
    norms_of_heads_lie_as_their_input_does,
    norms_of_heads_that_are_a_part_of_wider_rows,
    norms_of_a_part_of_wider_rows_leave_room_in_the_gradient,
    a_frozen_norm_costs_no_gradient,
    programs_with_several_blocks_of_rows_add_them_up,
    a_tiny_gemma_of_every_generation,
    geglu,
    geglu_of_the_halves_of_one_product,
    rotary,
    rotary_of_queries_and_keys_is_one_kernel,
    head,
    head_in_tiles,
    head_scores,
    a_loss_that_is_not_a_number_stays_one,
    four_bits,
)

if __name__ == "__main__":
    interpreted.report(CASES)
