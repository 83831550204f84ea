"""Flash attention against tiles of scores in fp64, run by Triton's interpreter: prints JSON as interpreted.py does."""

import functools
import itertools
import unittest.mock

import torch
from support import interpreted, tiny

from ft.kernels import attention, cross_entropy, flash, tiled
from ft.text import batches, row_inputs

TILES = flash.tiles
LAYERS = ["sliding_attention", "full_attention"]
LENGTHS = (70, 5, 60, 1)  # in tiles of 32 and 64


def inputs(heads, groups, size, lengths, dtype=torch.float32):
    """q, k, v as rotation and a fused product of heads leave them, and d_out."""
    length = sum(lengths)
    q = torch.randn(1, length, heads, size)
    kv = torch.randn(1, length, 2 * heads // groups, size)
    k, v = kv.transpose(1, 2).chunk(2, dim=1)
    d_out = torch.randn(1, heads, length, size).transpose(1, 2)  # in another order than the output
    return [x.to(dtype) for x in (q.transpose(1, 2), k, v, d_out)]


def answers(run, made):
    *leaves, d_out = (x.detach().requires_grad_() for x in made)
    out = run(*leaves)
    return [out, *torch.autograd.grad(out, leaves, d_out.detach())]


def compare(made, lengths, window, softcap, *, off=3e-6, spare=1):
    """Output and gradients within ``off`` of the largest, of tiles in fp64."""
    offsets = torch.tensor([0, *itertools.accumulate(lengths)] + [sum(lengths)] * spare).int()
    options = made[0].shape[-1] ** -0.5, window, softcap
    found = answers(lambda q, k, v: flash.attend(q, k, v, offsets, *options), made)
    exact = [x.double() for x in made]
    expected = answers(lambda q, k, v: tiled.attend(q, k, v, lengths, None, *options), exact)
    for name, ours, other in zip(("out", "dq", "dk", "dv"), found, expected, strict=True):
        assert ours.shape == other.shape
        assert ours.dtype == made[0].dtype
        wrong = ((ours.double() - other).abs().max() / other.abs().max()).item()
        assert wrong <= off, f"{name} of window {window}, cap {softcap}: {wrong:.1e} off"


def caps_and_windows():
    for softcap, window in itertools.product((None, 2.0), (0, 20)):
        compare(inputs(1, 1, 16, LENGTHS), LENGTHS, window, softcap)


def heads_that_share_keys():
    for groups in (1, 2, 4):
        compare(inputs(4, groups, 16, (35, 5)), (35, 5), 0, 2.0)


def wide_heads():
    compare(inputs(2, 2, 64, (35, 5)), (35, 5), 20, 50.0)


def one_example_and_many():
    """Shorter than a tile, exactly one, one more; and more examples than are looked up at once."""
    for lengths in ((5,), (64,), (65,), (1,) * 20 + (50,)):
        compare(inputs(1, 1, 16, lengths), lengths, 0, 2.0, spare=0)
    compare(inputs(1, 1, 16, (30, 3)), (30, 3), 0, 2.0, spare=20)


def tiles_of_every_gpu():
    """Whatever the size of the heads that they are for."""
    for size, grouped in itertools.product((64, 256), (False, True)):
        shapes = TILES(size, grouped)
        with unittest.mock.patch.object(flash, "tiles", lambda *_, found=shapes: found):
            compare(inputs(1, 1, 16, LENGTHS), LENGTHS, 20, 2.0)


def half_precision():
    compare(inputs(2, 2, 16, (35, 5), torch.float16), (35, 5), 20, 2.0, off=3e-3)


def large_scores_are_capped():
    """Far beyond the cap, where exponentials of the scores overflow, and near zero."""
    q, k, v, d_out = inputs(1, 1, 16, (35, 5))
    offsets = torch.tensor([0, 35, 40]).int()
    run = functools.partial(flash.attend, offsets=offsets, scale=0.25, softcap=2.0)
    out, *gradients = answers(run, [q * 300, k * 300, v, d_out])
    exact = [x.double() for x in (q * 300, k * 300, v)]
    expected = tiled.attend(*exact, [35, 5], None, 0.25, 0, 2.0)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    assert all(x.isfinite().all() for x in gradients)
    compare([q * 1e-3, k, v, d_out], (35, 5), 0, 50.0)


def examples_do_not_see_each_other():
    """To the last bit."""
    offsets = torch.tensor([0, 70, 75, 135, 136, 136]).int()
    run = functools.partial(flash.attend, offsets=offsets, scale=0.25, window=0, softcap=2.0)
    made = inputs(1, 1, 16, LENGTHS)
    before = answers(run, made)
    for x in made[:3]:
        x[:, :, 70:75] = torch.randn_like(x[:, :, 70:75])
    out, *gradients = [(x - y).abs() for x, y in zip(answers(run, made), before, strict=True)]
    for change in (out.transpose(1, 2), *gradients):
        assert change[:, :, 70:75].any()
        assert not change[:, :, :70].any()
        assert not change[:, :, 75:].any()


def a_capped_model():
    """Gemma 2 has the loss and the gradients of tiled scores, whether it knows lengths or offsets."""
    model = tiny.build("gemma2", num_hidden_layers=2, layer_types=LAYERS)
    cross_entropy.install(model)
    attention.install(model)
    rows = [
        {"input_ids": [2, *range(6, 6 + n)], "labels": [-100, *range(6, 6 + n)]} for n in (9, 3)
    ]
    given = row_inputs.of(batches.packed_row(rows), 8)
    found = []
    for left_out, works in (("", False), ("example_lengths", True), ("example_offsets", True)):
        model.zero_grad()
        options = {k: v for k, v in given.items() if k != left_out}
        with (
            unittest.mock.patch.object(attention, "flash_works", lambda *_, answer=works: answer),
            unittest.mock.patch.object(flash, "attend", wraps=flash.attend) as attended,
        ):
            loss = model(**options)["loss"]
        assert attended.call_count == works * model.config.num_hidden_layers
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in found[1:]:
        for ours, expected in zip(other, found[0], strict=True):
            assert (ours - expected).norm() <= 1e-4 * expected.norm()


CASES = (
    caps_and_windows,
    heads_that_share_keys,
    wide_heads,
    one_example_and_many,
    tiles_of_every_gpu,
    half_precision,
    large_scores_are_capped,
    examples_do_not_see_each_other,
    a_capped_model,
)

if __name__ == "__main__":
    interpreted.report(CASES)
