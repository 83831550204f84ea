"""Scores of answers: ROUGE-L as the reference library computes it, intervals, and base beside tuned."""

import random

import pytest
import torch
from support import tiny, toy

from ft.errors import UserError
from ft.kernels import cross_entropy
from ft.models import lora
from ft.score import instructions, likelihood
from ft.text import prompts


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [  # F-measures of rouge_score 0.1.2, rougeL, use_stemmer=False
        ("The cat sat on the mat.", "the cat is on the mat", 0.8333333333333334),
        (
            "Mix flour, sugar and 2 eggs; bake 30 minutes.",
            "First mix the flour with sugar. Add two eggs, then bake for 30-35 minutes.",
            0.5833333333333334,
        ),
        ("a b c d e f", "f e d c b a", 0.16666666666666666),
        ("Ça va très bien !", "ca va tres bien", 0.4444444444444445),
        ("no overlap here", "something else entirely", 0.0),
        ("same words same words", "words same words same", 0.75),
        ("", "empty", 0.0),
    ],
)
def test_rouge_l_is_the_reference_librarys(answer, reference, score):
    assert instructions.rouge_l(answer, reference) == pytest.approx(100 * score)


def test_scores_have_intervals_and_a_paired_test():
    draws = random.Random(0)
    words = [f"w{i}" for i in range(30)]
    references = [" ".join(draws.choices(words, k=12)) for _ in range(40)]
    worse = [" ".join(draws.choices(words, k=12)) for _ in references]
    better = [r.rsplit(" ", 2 + i % 5)[0] for i, r in enumerate(references)]
    found = instructions.scores({"base": worse, "tuned": better}, references)
    for key in ("rouge_l", "chrf"):
        for name in ("base", "tuned"):
            s = found[name][key]
            assert s["low"] < s["score"] < s["high"]
        assert found["tuned"][key]["low"] > found["base"][key]["high"]
        assert found["p_value"]["tuned"][key] < 0.01
    assert found == instructions.scores({"base": worse, "tuned": better}, references)
    same = instructions.scores({"base": better, "tuned": better}, references)
    assert same["p_value"]["tuned"]["chrf"] == 1
    assert "sacreBLEU 2" in found["signatures"]["chrf"]


def test_answers_and_references_of_other_numbers_are_refused():
    with pytest.raises(UserError, match=r"\{'tuned': 1\}, 2"):
        instructions.scores({"tuned": ["a"]}, ["a", "b"])


@pytest.fixture(scope="module")
def result():
    model = lora.attach(tiny.build("gemma3_text"), r=2, alpha=4)
    cross_entropy.install(model.get_base_model())
    tokenizer = tiny.tokenizer()
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    talk = [{"role": "user", "content": "chat"}, {"role": "assistant", "content": "cat"}]
    rows = [{"instruction": "le chat", "response": "the cat"}, {"messages": talk}]
    found = instructions.before_after(
        model,
        tokenizer,
        prompts.by_name("chat", tokenizer),
        rows,
        toy.examples(3),
        ask={"instruction": "table"},
        max_new_tokens=5,
    )
    return found.values, found.table, model


def test_the_adapter_is_off_for_the_base(result):
    found, _, _ = result
    plain = tiny.build("gemma3_text")
    cross_entropy.install(plain)
    seen = likelihood.of_examples(plain, toy.examples(3))
    assert found["base"]["loss"] == pytest.approx(seen.loss, rel=1e-6)
    assert found["base"]["perplexity"] == pytest.approx(seen.perplexity, rel=1e-6)
    assert found["base"]["accuracy"] == seen.accuracy
    assert found["tuned"]["loss"] != pytest.approx(seen.loss, rel=1e-3)


def test_the_last_answer_of_a_conversation_is_its_reference(result):
    found, _, _ = result
    assert [s["reference"] for s in found["samples"]] == ["the cat", "cat"]
    assert [s["prompt"] for s in found["samples"]] == [
        f"<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
        for text in ("le chat", "chat")
    ]


def test_who_stops_is_counted(result):
    found, _, _ = result
    for name in ("base", "tuned"):
        assert 0 <= found[name]["stopped"] <= 1
        assert found[name]["answer_tokens"] == 5 or found[name]["stopped"] > 0


def test_the_table_has_every_figure(result):
    found, shown, _ = result
    for word in ("test, 2 answers", "perplexity", "token accuracy", "stopped by itself", "ROUGE-L"):
        assert word in shown
    assert found["signatures"]["chrf"] in shown
