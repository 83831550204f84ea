"""Examples of a packed row attended one by one: equal to the block mask, alone, and elsewhere untouched."""

import pytest
import torch
from support import tiny

from ft.kernels import attention, cross_entropy, flash, fused, tiled
from ft.kernels import cache as caches
from ft.text import batches, row_inputs, tokens
from ft.train import graphed

KINDS = [k for k in tiny.KINDS if k != "gemma2"]


def examples(*lengths: int) -> list[tokens.Example]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for length in lengths:
        ids = [2, *torch.randint(6, 300, (length - 1,), generator=generator).tolist()]
        made.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return made


ROW = examples(5, 23, 1, 12, 9)  # the window is 8: some are longer than it


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_row_has_the_loss_and_gradient_of_the_block_mask(kind):
    model = tiny.build(kind)
    cross_entropy.install(model)
    weight = next(p for n, p in model.named_parameters() if "q_proj" in n and "layers.0" not in n)
    found = []
    for by_example in (False, True):
        if by_example:
            attention.install(model)
        assert attention.installed(model) is by_example
        model.zero_grad()
        value = model(**batches.packed_row(ROW))["loss"]
        value.backward()
        found.append((value.detach(), weight.grad.clone()))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)
    assert (found[0][1] - found[1][1]).norm() / found[1][1].norm() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_other_batches_go_through_sdpa_as_before(kind):
    model = tiny.build(kind)
    ids = torch.randint(6, 300, (2, 20), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).logits
        attention.install(model)
        assert torch.equal(model(input_ids=ids, attention_mask=mask).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_with_a_cache_equals_sdpa(kind):
    """Left-padded rows, some steps beyond the sliding window of 8; eager where scores have a soft cap."""
    from transformers import DynamicCache

    model = tiny.build(kind)
    prompt = torch.randint(6, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    new = torch.randint(6, 300, (2, 4), generator=torch.Generator().manual_seed(2))
    found = []
    for install in (False, True):
        if install:
            attention.install(model)
        cache, mask, logits = DynamicCache(config=model.config), torch.ones_like(prompt), []
        mask[0, :5] = 0
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ids = prompt
        for step in range(5):
            with torch.no_grad():
                out = model(
                    input_ids=ids,
                    attention_mask=mask,
                    position_ids=positions,
                    use_cache=True,
                    **{caches.name(): cache},
                )
            logits.append(out.logits[:, -1])
            ids, positions = new[:, step : step + 1], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(2, 1)], dim=1)
        found.append(torch.stack(logits))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("known", [True, False], ids=["lengths", "offsets"])
@pytest.mark.parametrize("queries", [512, 7])
def test_capped_scores_in_tiles_have_the_loss_and_gradients_of_eager_ones(
    known, queries, monkeypatch
):
    monkeypatch.setattr(tiled, "QUERIES", queries)
    model = tiny.build("gemma2")
    cross_entropy.install(model)
    given = row_inputs.of(batches.packed_row(ROW), 8)
    given.pop("example_lengths" if not known else "example_offsets")
    found = []
    for pieces in (False, True):
        if pieces:
            attention.install(model)
        model.zero_grad()
        value = model(**given)["loss"] if pieces else model(**batches.packed_row(ROW))["loss"]
        value.backward()
        found.append([value.detach(), *(p.grad.clone() for p in model.parameters())])
    assert model.config._attn_implementation == attention.CAPPED
    for plain, ours in zip(*found, strict=True):
        assert (plain - ours).norm() <= 1e-4 * plain.norm()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("window", [0, 4])
def test_tiles_without_a_cap_are_sdpa(groups, window):
    generator = torch.Generator().manual_seed(0)
    lengths, size = [5, 9, 1], 8
    offsets = torch.tensor([0, 5, 14, 15, 15], dtype=torch.int32)
    made = [torch.randn(1, h, 15, size, generator=generator) for h in (2 * groups, 2, 2)]
    found = []
    for run in (
        lambda *x: attention._one_by_one(*x, lengths, 0.0, size**-0.5, window),
        lambda *x: tiled.attend(*x, lengths, None, size**-0.5, window),
        lambda *x: tiled.attend(*x, None, offsets, size**-0.5, window),
    ):
        leaves = [x.clone().requires_grad_() for x in made]
        out = run(*leaves)
        found.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_flash_kernel_is_not_taken_where_there_is_none():
    assert not attention.works(torch.device("cpu"), torch.bfloat16, 64)


def test_a_padded_batch_is_no_packed_row():
    assert attention.examples_of(torch.arange(5).expand(3, 5)) is None
    assert attention.examples_of(batches.packed_row(ROW)["position_ids"]) == [5, 23, 1, 12, 9]


def test_a_merged_or_saved_model_does_not_ask_for_it(tmp_path):
    model = tiny.build("gemma3_text")
    attention.install(model)
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("only", "capped", "taken"),
    [
        (None, False, "varlen"),
        (None, True, "flash"),
        ("flash", False, "flash"),
        ("flash", True, "flash"),
        ("varlen", False, "varlen"),
        ("eager", True, "tiled"),
        ("sdpa", False, "tiled"),  # offsets alone tell no lengths
    ],
)
def test_packed_rows_go_through_what_was_asked_for(only, capped, taken, monkeypatch):
    """Where every kernel works; layers are told by ``install``, and others keep their choice."""
    seen = []
    for module, name in ((attention, "varlen"), (flash, "attend"), (tiled, "attend")):
        label = name if name == "varlen" else module.__name__.rpartition(".")[2]
        monkeypatch.setattr(module, name, lambda *_, label=label: seen.append(label))
    for name in ("works", "flash_works"):
        monkeypatch.setattr(attention, name, lambda *_: True)
    monkeypatch.setattr(fused, "usable", lambda *_: True)
    model = tiny.build("gemma2" if capped else "gemma3_text")
    attention.install(model, only)
    assert attention.asked(model) == only
    row = torch.zeros(1, 2, 8, 16)
    offsets = torch.tensor([0, 8], dtype=torch.int32)
    layer = model.model.layers[0].self_attn
    attention._forward(
        layer, row, row, row, None, softcap=5.0 if capped else None, example_offsets=offsets
    )
    assert seen == [taken]
    assert ("sdpa" in graphed.refusal(model, packing=True, processes=1, checkpointing=False)) == (
        only == "sdpa"
    )
