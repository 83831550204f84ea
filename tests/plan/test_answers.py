"""What answers are planned to take against what PyTorch allocates for them, and how that moves with the settings."""

import pytest
import torch
from support import tiny
from support.allocations import allocated

from ft.generate import room
from ft.generate.decoding import Decoder
from ft.kernels import few_rows
from ft.plan import answers, peak, shapes
from ft.plan.autograd import Mode

WIDE = {"hidden_size": 64, "intermediate_size": 256}
PLENTY = 2**60


READ, MANY_WORDS, GROW = (100, 4, 2048), (4, 3, 30_000), (4, 120, 2048)
CASES = [(kind, *case) for kind in tiny.KINDS for case in (READ, MANY_WORDS)]
CASES += [(kind, *GROW) for kind in ("gemma", "gemma3_text", "recurrent_gemma")]


@pytest.mark.parametrize(("kind", "prompt", "new", "words"), CASES)
def test_answers_take_what_was_planned(kind, prompt, new, words):
    """Long prompts are the peak while they are read, long answers while they grow; both within a sixth."""
    model, rows = tiny.build(kind, **WIDE | {"vocab_size": words}), 12

    def answer() -> None:
        decoder = Decoder(model, [[2, *range(6, 5 + prompt - i % 3)] for i in range(rows)], pad=0)
        for _ in range(new):
            decoder.step(torch.full((rows,), 7))

    with few_rows.fast(model):
        taken = allocated(answer)
    shape = shapes.from_config(model.config.to_dict())
    evaluation = answers.Evaluation(prompt, new, rows)
    attention = "eager" if kind == "gemma2" else "sdpa"
    found = answers.moments(shape, Mode(), evaluation, "cpu", attention, PLENTY)
    sums = {name: sum(named.values()) for name, named in found.items()}
    longest = answers.READING if prompt == READ[0] else answers.ANSWERING
    assert sums[longest] == max(sums.values()) == pytest.approx(taken, rel=0.17)


def test_a_batch_of_answers_is_as_large_as_the_generator_makes_it():
    model = tiny.build("gemma", **WIDE)
    shape, evaluation = shapes.from_config(model.config.to_dict()), answers.Evaluation(100, 28)
    assert answers.cache(shape, Mode(), 128, windows=False) == 128 * room.cache_bytes(model)
    found = answers.moments(shape, Mode(), evaluation, "cpu", "sdpa", PLENTY)
    together = room.batches([128] * 10_000, room.room_for(model))
    held = found[answers.READING]["keys and values"]
    assert held == len(together[0]) * 100 * room.cache_bytes(model)


def test_answers_take_a_third_of_what_a_gpu_has_left_at_most():
    shape, evaluation = shapes.of("google/gemma-2b"), answers.Evaluation(400, 112)
    for free, most in ((2**33, 2**31), (2**30, 2**30 // 3)):
        found = answers.moments(shape, Mode(width=2), evaluation, "cuda", "sdpa", free)
        held = found[answers.ANSWERING]["keys and values"]
        assert 0.9 * most < held <= 1.1 * most
        before = found[answers.READING]["keys and values"]  # with those of the batch before
        assert 1.5 * most < before <= 2 * most


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"max_new_tokens": 60, "test_rows": 50}, answers.Evaluation(200, 60, 50)),
        ({"max_new_tokens": 60, "eval_limit": 5, "chains": 4}, answers.Evaluation(200, 60, 5, 4)),
        ({"decoding": "greedy", "eval_limit": None}, answers.Evaluation(200, 256)),
        ({"decoding": "auto", "eval_limit": 8}, answers.Evaluation(200, 256, 8, 4)),
        ({"max_length": 9}, None),
    ],
)
def test_what_is_answered_follows_from_a_recipes_settings(settings, expected):
    assert answers.of(settings, 200) == expected


def test_the_peak_may_be_in_the_evaluation_and_graphs_are_decided_by_the_training():
    options = {"precision": "nf4", "lora_r": 8, "optim": "adamw", "batch": 1, "max_length": 256}
    options |= {"device": "cuda", "checkpointing": True, "supervised": 0.1}
    shape, room = shapes.of("google/gemma-2b"), 24 * peak.GIB
    alone = peak.plan_of(shape, **options)
    both = peak.plan_of(shape, **options, evaluation=answers.Evaluation(256, 256), room=room)
    assert both.moment in (answers.READING, answers.ANSWERING)
    assert both.peak > alone.peak
    assert (both.passing, both.staying) == (alone.passing, alone.staying)
    few = peak.plan_of(shape, **options, evaluation=answers.Evaluation(256, 256, 1), room=room)
    assert (few.moment, few.peak) == (alone.moment, alone.peak)
