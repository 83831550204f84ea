"""Scores equal sacreBLEU's own, losses are weighted by token, and bad input is named."""

import pytest
import torch
from support import tiny, toy

from ft.errors import UserError
from ft.kernels import cross_entropy
from ft.models import lora
from ft.score import evaluate
from ft.text import prompts

REFERENCES = ["le chat est sur le tapis", "bonjour tout le monde", "je ne sais pas", "oui"] * 10
BASE = ["the cat is on the mat", "hello all", "I do not know", "yes"] * 10
TUNED = ["le chat est là", "bonjour le monde", "je sais pas", "oui"] * 10


def test_scores_equal_sacrebleu():
    import sacrebleu

    found = evaluate.scores({"base": BASE, "tuned": TUNED}, REFERENCES)
    assert found["tuned"]["bleu"]["score"] == pytest.approx(
        sacrebleu.corpus_bleu(TUNED, [REFERENCES], force=True).score
    )
    assert found["tuned"]["chrf"]["score"] == pytest.approx(
        sacrebleu.corpus_chrf(TUNED, [REFERENCES]).score, abs=1e-4
    )
    for metric in ("bleu", "chrf"):
        s = found["tuned"][metric]
        assert s["low"] <= s["score"] <= s["high"]
        assert found["p_value"]["tuned"][metric] < 0.01
        assert "version:" in found["signatures"][metric]


def test_two_systems_that_are_as_good_do_not_differ():
    even = [TUNED[i] if i % 2 else BASE[i] for i in range(40)]
    odd = [BASE[i] if i % 2 else TUNED[i] for i in range(40)]
    swapped = even[:20] + odd[20:], odd[:20] + even[20:]
    found = evaluate.scores(dict(zip(("base", "tuned"), swapped, strict=True)), REFERENCES)
    assert found["p_value"]["tuned"]["chrf"] > 0.05


def test_translations_and_references_must_be_as_many():
    with pytest.raises(UserError, match="'tuned': 39, 'references': 40"):
        evaluate.scores({"tuned": TUNED[1:]}, REFERENCES)


@pytest.fixture
def model():
    made = tiny.build("gemma3_text")
    cross_entropy.install(made)
    return made


def test_the_loss_is_a_mean_over_tokens_not_over_examples(model):
    examples = toy.examples(5)
    summed = count = 0.0
    for example in examples:
        ids = torch.tensor([example["input_ids"]])
        labels = torch.tensor(example["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1]
        summed += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        count += (labels != -100).sum().item()
    for packing in (True, False):
        found = evaluate.loss(model, examples, packing=packing, pad=0, batch_size=2)
        assert found == pytest.approx(summed / count, rel=1e-6)


def test_validation_leaves_training_mode_as_it_was(model):
    for mode in (True, False):
        model.train(mode)
        evaluate.loss(model, toy.examples(2), packing=True, pad=0)
        assert model.training is mode


def test_nothing_supervised_is_an_error(model):
    example = {"input_ids": [2, 5, 1], "labels": [-100] * 3}
    with pytest.raises(UserError, match="no position is supervised"):
        evaluate.loss(model, [example], packing=True, pad=0)


def test_before_after_switches_the_adapter_off_for_the_base(model):
    adapted = lora.attach(tiny.build("gemma3_text"), r=2, alpha=4)
    cross_entropy.install(adapted.get_base_model())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    rows = [{"source": "chat", "target": "the cat"}, {"source": "table", "target": "a table"}]
    examples = toy.examples(3)
    result = evaluate.before_after(
        adapted,
        tiny.tokenizer(),
        prompts.translation(),
        rows,
        examples,
        ask={"source": "le chat"},
        packing=True,
        max_new_tokens=5,
    )
    assert result["base"]["loss"] == pytest.approx(
        evaluate.loss(model, examples, packing=True, pad=0), rel=1e-6
    )
    assert result["tuned"]["loss"] != pytest.approx(result["base"]["loss"], rel=1e-3)
    assert [s["source"] for s in result["samples"]] == ["chat", "table"]
    shown = evaluate.table(result)
    assert "test, 2 lines" in shown
    assert result["signatures"]["chrf"] in shown
