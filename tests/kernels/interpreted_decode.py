"""Attention of one new token against PyTorch's operations, run by Triton's interpreter: prints JSON as interpreted.py does."""

import itertools
import unittest.mock

import torch
from support import interpreted, tiny
from support.replayed import Replayed

from ft.generate import static
from ft.generate.decoding import Decoder
from ft.kernels import attention, flash_decode


def inputs(batch, heads, shared, length, size, dtype=torch.float16):
    """A query as rotation leaves it, keys and values at their places, and which of these are padding."""
    query = torch.randn(batch, 1, heads, size).transpose(1, 2)
    keys, values = torch.randn(2, batch, shared, length, size)
    seen = torch.ones(batch, length, dtype=torch.bool)
    seen[1, :30] = False
    return [x.to(dtype) for x in (query, keys, values)] + [seen]


def compare(made, at, window=0, softcap=None, off=2e-3):
    """Within rounding of what is summed in fp32."""
    options = torch.tensor([at]), made[0].shape[-1] ** -0.5, window, softcap
    found = flash_decode.attend(*made, *options)
    exact = [x.double() if x.is_floating_point() else x for x in made]
    expected = flash_decode.plain(*exact, *options)
    assert found.shape == expected.shape
    wrong = ((found.double() - expected).norm() / expected.norm()).item()
    assert wrong <= off, f"at {at}, window {window}, cap {softcap}: {wrong:.1e} off"
    return found


def caps_and_windows():
    """The last place, the first, and one between spans; in fp32 to 1e-6."""
    for at, window, softcap in itertools.product((0, 63, 64, 149), (0, 20), (None, 2.0)):
        compare(inputs(2, 4, 2, 150, 16), at, window, softcap)
    compare(inputs(2, 4, 2, 150, 16, torch.float32), 149, 20, 2.0, off=1e-6)


def heads_that_share_keys():
    for shared in (1, 4, 8):
        compare(inputs(2, 8, shared, 70, 16), 69)
    compare(inputs(2, 32, 1, 70, 16), 69)


def heads_of_all_sizes():
    for size in (64, 128, 256, 512):
        compare(inputs(2, 2, 1, 80, size), 70, 0, 50.0)


def long_texts_have_as_many_programs():
    """And no place is left out, though their number divides by nothing."""
    with unittest.mock.patch.object(flash_decode, "SPANS", 4):
        made = inputs(2, 2, 2, 1003, 16)
        compare(made, 1002)
        made[2][:, :, 1002] += 100  # the last value alone
        made[1][:, :, 1002] = 10 * made[0][:, :, 0]
        assert (compare(made, 1002) > 50).all()


def what_is_not_seen_has_no_part():
    made = inputs(2, 4, 2, 150, 16)
    found = compare(made, 100, 40)
    made[1][:, :, 101:] = made[2][:, :, 101:] = torch.nan  # what was never written
    made[1][:, :, :61] = made[2][:, :, :61] = torch.nan
    assert torch.equal(compare_only(made, 100, 40), found)
    made[3][1] = False
    assert (compare_only(made, 100, 0)[1] == 0).all()


def compare_only(made, at, window):
    return flash_decode.attend(*made, torch.tensor([at]), made[0].shape[-1] ** -0.5, window)


def a_token_is_written_to_its_place():
    keys, values = torch.zeros(2, 2, 3, 40, 16)
    k = torch.randn(2, 1, 5 * 16)[..., 16:64].view(2, 1, 3, 16).transpose(1, 2)
    v = torch.randn(2, 3, 1, 16)
    flash_decode.put(keys, values, k, v, torch.tensor([17]))
    for places, new in ((keys, k), (values, v)):
        assert torch.equal(places[:, :, 17:18], new)
        assert not places[:, :, :17].any()
        assert not places[:, :, 18:].any()


def it_is_tried_before_it_is_taken():
    flash_decode.works.cache_clear()
    place = torch.device("cpu"), torch.float16, 64
    assert all(flash_decode.works(*place, capped) for capped in (False, True))
    flash_decode.works.cache_clear()
    wrong = lambda *_: torch.zeros(2, 1, 4, 64, dtype=torch.float16)  # noqa: E731
    with unittest.mock.patch.object(flash_decode, "attend", wrong):
        assert not flash_decode.works(*place, False)
    flash_decode.works.cache_clear()


def models_of_every_generation():
    """Across their windows, with padding on the left, a step answers as the growing cache does."""
    texts = [list(range(20, 29)), list(range(30, 33))]
    for kind in tiny.KINDS:
        sizes = {"head_dim": 16} | ({"global_head_dim": 16} if "gemma4" in kind else {})
        model = tiny.build(kind, **sizes)
        if static.refusal(model):
            continue
        model = model.half()
        attention.install(model)
        both = [Decoder(model, texts, 0, room=4, make_graph=make) for make in (None, Replayed)]
        with (
            torch.no_grad(),
            unittest.mock.patch.object(
                flash_decode, "attend", wraps=flash_decode.attend
            ) as attended,
        ):
            for step in range(3):
                for decoder in both:
                    decoder.step(torch.tensor([40, 50]) + step)
                wanted = both[0].logits.float()
                off = (both[1].logits.float() - wanted).abs().max() / wanted.abs().max()
                assert off < 2e-2, (kind, step, off)
        assert attended.call_count >= 4 * model.config.get_text_config().num_hidden_layers, kind


CASES = (
    caps_and_windows,
    heads_that_share_keys,
    heads_of_all_sizes,
    long_texts_have_as_many_programs,
    what_is_not_seen_has_no_part,
    a_token_is_written_to_its_place,
    it_is_tried_before_it_is_taken,
    models_of_every_generation,
)

if __name__ == "__main__":
    interpreted.report(CASES)
