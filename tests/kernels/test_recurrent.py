"""RecurrentGemma beside Google's own numbers, and rows packed, padded, cached and cut beside rows alone."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import make_recurrent as golden
from support import tiny
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from ft.generate import decoding
from ft.kernels import attention, cross_entropy, recurrent
from ft.text import batches

EXPECTED = json.loads((Path(golden.__file__).parent / "recurrent.json").read_text())
TOTAL = sum(golden.DOCUMENTS)
WINDOW = golden.CONFIG["attention_window_size"]


def reference(install: bool = True, attn: str = "sdpa") -> RecurrentGemmaForCausalLM:
    """The model whose numbers Google's library computed."""
    torch.set_num_threads(1)
    config = RecurrentGemmaConfig(**golden.CONFIG)
    model = RecurrentGemmaForCausalLM._from_config(config, attn_implementation=attn).eval()
    golden.fill(model)
    if install:
        recurrent.install(model)
    return model


def row(length: int = TOTAL) -> torch.Tensor:
    return torch.from_numpy(golden.ids(length))


@torch.no_grad()
def logits(model, ids: torch.Tensor, **options) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, **options).logits


def greedy(model, prompts: list[list[int]], new: int) -> list[int]:
    """The ids that follow a prompt."""
    decoder, found = decoding.Decoder(model, prompts, pad=0), []
    for _ in range(new):
        found.append(int(decoder.logits.argmax(-1)))
        decoder.step(decoder.logits.argmax(-1))
    return found


def difference(found: torch.Tensor, expected: list[list[float]]) -> np.ndarray:
    """The largest at each position."""
    return np.abs(found[0, :, golden.COLUMNS].numpy() - np.array(expected)).max(1)


def test_the_goldens_say_what_made_them():
    assert EXPECTED["environment"]["recurrentgemma"] == "1.0.1"
    assert max(golden.DOCUMENTS) > 2 * WINDOW


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_logits_equal_google_beyond_the_window(attn):
    model = reference(attn=attn)
    assert difference(logits(model, row()), EXPECTED["one_document"]).max() < 2e-5
    positions = torch.from_numpy(golden.positions(*golden.DOCUMENTS))
    packed = logits(model, row(), position_ids=positions)
    assert difference(packed, EXPECTED["packed"]).max() < 2e-5


def test_transformers_leaves_google_one_token_early_and_across_documents():
    """Why `install` exists; when this fails, transformers has mended it and so can we."""
    model = reference(install=False)
    found = difference(logits(model, row()), EXPECTED["one_document"])
    assert found[:WINDOW].max() < 2e-5
    assert found[WINDOW] > 1e-3
    positions = torch.from_numpy(golden.positions(*golden.DOCUMENTS))
    packed = difference(logits(model, row(), position_ids=positions), EXPECTED["packed"])
    assert packed[golden.DOCUMENTS[0]] > 1e-3


def test_generation_equals_google():
    ids = row(golden.PROMPT)
    assert greedy(reference(), ids.tolist(), golden.NEW) == EXPECTED["generated"]
    theirs = reference().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=golden.NEW,
        do_sample=False,
        eos_token_id=[],
    )
    assert theirs[0, golden.PROMPT :].tolist() == EXPECTED["generated"]


@pytest.mark.parametrize("attn", ["eager", "sdpa", attention.NAME])
def test_packed_examples_have_the_loss_of_single_ones(attn):
    model = tiny.build("recurrent_gemma")
    if attn == attention.NAME:
        attention.install(model)
    else:
        model.set_attn_implementation(attn)
    cross_entropy.install(model)
    lengths = (9, 1, 20, 2, 3, 12)  # shorter and longer than the window and the convolution
    ids = torch.randint(6, 300, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": e.tolist(), "labels": e.tolist()} for e in ids.split(lengths)]
    with torch.no_grad():
        alone = torch.stack([model(**batches.packed_row([e]))["loss"] for e in examples])
        packed = model(**batches.packed_row(examples))["loss"]
        padded = model(**batches.padded_batch(examples, pad=0))["loss"]
    torch.testing.assert_close(packed, alone.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(padded, alone.sum(), rtol=1e-6, atol=0)


def test_left_padded_rows_have_the_logits_of_single_ones():
    """With positions, without them, and with the ones that transformers' `generate` makes up."""
    model = reference()
    lengths = (19, 2, 30)
    rows = [row(30)[0, :n] for n in lengths]
    ids, mask = torch.zeros(3, 30, dtype=torch.long), torch.zeros(3, 30, dtype=torch.long)
    for i, r in enumerate(rows):
        ids[i, -len(r) :], mask[i, -len(r) :] = r, 1
    ours = (mask.cumsum(-1) - 1).clamp(min=0)
    for positions in (ours, None, ours.masked_fill(mask == 0, 1)):
        batch = logits(model, ids, attention_mask=mask, position_ids=positions)
        for i, r in enumerate(rows):
            alone = logits(model, r[None])[0]
            torch.testing.assert_close(batch[i, -len(r) :], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attn", ["eager", "sdpa", attention.NAME])
@pytest.mark.parametrize("pieces", [(30, *[1] * 10), (1,) * 40, (5, 20, 1, 14), (1, 2, 37)])
def test_a_row_in_pieces_through_the_cache_is_the_row(pieces, attn):
    model = reference(attn="eager" if attn == "eager" else "sdpa")
    expected = logits(model, row())
    if attn == attention.NAME:
        attention.install(model)
    cache, found = DynamicCache(config=model.config), []
    for piece in row().split(pieces, dim=1):
        with torch.no_grad():
            found.append(model(piece, past_key_values=cache, use_cache=True).logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_cache_can_be_selected():
    model = reference()
    ids = torch.cat([row(30), row(30).flip(1), row(30).roll(5, 1)])
    alone = logits(model, ids)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :25], past_key_values=cache, use_cache=True)
        cache.reorder_cache(torch.tensor([2, 0]))
        found = model(ids[[2, 0], 25:], past_key_values=cache, use_cache=True).logits
    torch.testing.assert_close(found, alone[[2, 0], 25:], rtol=1e-5, atol=1e-5)


def test_one_batch_leaves_nothing_for_the_next():
    model = reference()
    before = logits(model, row())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    greedy(model, row(12).tolist(), 4)
    model(row(12), use_cache=True)
    assert torch.equal(logits(model, row()), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(b.rg_lru.recurrent_states for b in model.modules() if hasattr(b, "rg_lru"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        model = tiny.build("recurrent_gemma").train()
        cross_entropy.install(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = [2, *range(10, 40)]
        model(**batches.packed_row([{"input_ids": ids, "labels": ids}] * 2))["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0, msg=name)


def test_what_is_saved_is_what_transformers_would_save(tmp_path):
    plain = tiny.build("recurrent_gemma", plain=True)
    plain.save_pretrained(tmp_path / "plain")
    model = tiny.build("recurrent_gemma")
    assert recurrent.installed(model)
    assert not recurrent.installed(plain)
    recurrent.install(model)  # once more changes nothing
    assert type(model.config) is RecurrentGemmaConfig
    model.save_pretrained(tmp_path / "ours")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_copy_is_mended_too():
    model = reference()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert difference(logits(other, row()), EXPECTED["one_document"]).max() < 2e-5
