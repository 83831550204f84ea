"""Texts that grow together: selected, padded, with a cache and without; batches that fit."""

import pytest
import torch
from support import tiny

from ft.generate import decoding
from ft.generate.decoding import Decoder
from ft.generate.room import batches, cache_bytes


@torch.no_grad()
def alone(model, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1]


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("lengths", [(11, 3), (5, 5)])
def test_texts_that_are_chosen_and_repeated_go_on_as_alone(kind, use_cache, lengths):
    model = tiny.build(kind)
    texts = [torch.arange(20 + i, 20 + i + n).tolist() for i, n in enumerate(lengths)]
    decoder = Decoder(model, texts, pad=0, use_cache=use_cache)
    for rows, ids in (([1, 0], [40, 41]), ([1, 1, 0], [50, 51, 52]), ([2], [60])):
        decoder.select(torch.tensor(rows))
        decoder.step(torch.tensor(ids))
        texts = [[*texts[row], i] for row, i in zip(rows, ids, strict=True)]
        expected = torch.stack([alone(model, text) for text in texts])
        torch.testing.assert_close(decoder.logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("piece", [4, 14])
def test_long_prompts_in_pieces_are_as_in_one(kind, piece, monkeypatch):
    """Longer than the windows of 8, and padded by more than a piece."""
    model = tiny.build(kind)
    texts = [torch.arange(20 + i, 20 + i + n).tolist() for i, n in enumerate((23, 9))]
    whole = Decoder(model, texts, pad=0)
    passes = []
    model.register_forward_pre_hook(
        lambda _, __, given: passes.append(given["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setitem(decoding.PREFILL, "cpu", piece)
    pieces = Decoder(model, texts, pad=0)
    assert sum(passes) == 23
    assert max(passes) == (23 if kind == "recurrent_gemma" else piece // 2)
    for ids in ([40, 41], [50, 51]):
        torch.testing.assert_close(pieces.logits, whole.logits, rtol=1e-4, atol=1e-4)
        for decoder in (whole, pieces):
            decoder.step(torch.tensor(ids))


@torch.no_grad()
def test_hidden_states_are_those_that_the_head_sees():
    model = tiny.build("gemma3_text")
    decoder = Decoder(model, [[2, 40, 50]], pad=0, keep_hidden=True)
    assert decoder.hidden.shape == (1, 3, model.config.hidden_size)
    torch.testing.assert_close(model.lm_head(decoder.hidden[:, -1]), decoder.logits)
    decoder.step(torch.tensor([60]))
    assert decoder.hidden.shape == (1, 1, model.config.hidden_size)


def test_batches_hold_what_fits():
    sizes = [3, 9, 1, 4, 4, 20, 2]
    found = batches(sizes, room=12)
    assert sorted(i for batch in found for i in batch) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(sizes[i] for i in b) <= 12 for b in found)
    assert [5] in found  # too large for the room, so alone
    assert batches([], 12) == []


def test_a_model_without_named_projections_has_a_bound_from_its_configuration():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=40, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = 1
    assert cache_bytes(GPT2LMHeadModel(config)) == 2 * 2 * 16 * 4
