"""Scores equal sacreBLEU's own, bad input is named, and base stands beside tuned."""

import re

import pytest
import torch
from support import tiny, toy

from ft.errors import UserError
from ft.kernels import cross_entropy
from ft.models import lora
from ft.score import likelihood, translation
from ft.text import prompts

REFERENCES = ["le chat est sur le tapis", "bonjour tout le monde", "je ne sais pas", "oui"] * 10
BASE = ["the cat is on the mat", "hello all", "I do not know", "yes"] * 10
TUNED = ["le chat est là", "bonjour le monde", "je sais pas", "oui"] * 10


def test_scores_equal_sacrebleu():
    import sacrebleu

    found = translation.scores({"base": BASE, "tuned": TUNED}, REFERENCES)
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


def test_an_interval_of_few_lines_stays_within_what_a_score_can_be():
    references = ["a b c d e f g", "h i j k l m", "n o p q", "r s t u v w"]
    some = ["a b c d e x", "z z z z z", "y", "r q q q q"]
    found = translation.scores({"base": ["q"] * 4, "tuned": some}, references)
    for metric in ("bleu", "chrf"):
        assert 0 <= found["tuned"][metric]["low"] < found["tuned"][metric]["high"] <= 100


def test_two_systems_that_are_as_good_do_not_differ():
    even = [TUNED[i] if i % 2 else BASE[i] for i in range(40)]
    odd = [BASE[i] if i % 2 else TUNED[i] for i in range(40)]
    swapped = even[:20] + odd[20:], odd[:20] + even[20:]
    found = translation.scores(dict(zip(("base", "tuned"), swapped, strict=True)), REFERENCES)
    assert found["p_value"]["tuned"]["chrf"] > 0.05


def test_answers_that_loop_are_counted():
    looping = ["bon, " * 7, *TUNED[1:]]
    found = translation.scores({"base": looping, "tuned": TUNED}, REFERENCES)
    assert (found["base"]["loops"], found["tuned"]["loops"]) == (1, 0)


def test_a_system_beside_itself_is_not_better():
    found = translation.scores({"base": TUNED, "tuned": list(TUNED)}, REFERENCES)
    assert found["p_value"]["tuned"] == {"bleu": 1.0, "chrf": 1.0}


def test_translations_and_references_must_be_as_many():
    with pytest.raises(UserError, match="'tuned': 39, 'references': 40"):
        translation.scores({"tuned": TUNED[1:]}, REFERENCES)


@pytest.fixture
def model():
    made = tiny.build("gemma3_text")
    cross_entropy.install(made)
    return made


def test_before_after_switches_the_adapter_off_for_the_base(model):
    adapted = lora.attach(tiny.build("gemma3_text"), r=2, alpha=4)
    cross_entropy.install(adapted.get_base_model())
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    rows = [{"source": "chat", "target": "the cat"}, {"source": "table", "target": "a table"}]
    examples = toy.examples(3)
    found = translation.before_after(
        adapted,
        tiny.tokenizer(),
        prompts.translation(),
        rows,
        examples,
        ask={"source": "le chat"},
        max_new_tokens=5,
    )
    result = found.values
    assert result["base"]["loss"] == pytest.approx(likelihood.loss(model, examples), rel=1e-6)
    assert result["tuned"]["loss"] != pytest.approx(result["base"]["loss"], rel=1e-3)
    assert [s["source"] for s in result["samples"]] == ["chat", "table"]
    shown = found.table
    assert "test, 2 lines" in shown
    assert result["signatures"]["chrf"] in shown
    counts = re.search(r"^loops +(\d+) +(\d+)$", shown, re.MULTILINE)
    assert counts.groups() == tuple(str(result[name]["loops"]) for name in ("base", "tuned"))


def test_a_base_that_answers_the_first_rows_is_compared_on_them():
    """Its scores and p are those of these rows; the tuned model's are of all."""
    adapted = lora.attach(tiny.build("gemma3_text"), r=2, alpha=4)
    cross_entropy.install(adapted.get_base_model())
    words = ("chat", "table", "le chat", "the cat is")
    rows = [{"source": word, "target": f"{word} la"} for word in words]
    examples, ask = toy.examples(4), {"source": "le chat"}

    def found(n: int, **options: int):
        given = (adapted, tiny.tokenizer(), prompts.translation(), rows[:n], examples[:n])
        return translation.before_after(*given, ask=ask, max_new_tokens=5, **options)

    whole, part, few = found(4), found(4, base_rows=2), found(2)
    same = ("bleu", "chrf", "loops", "loss")
    assert [part.values["base"][k] for k in same] == [few.values["base"][k] for k in same]
    assert [part.values["tuned"][k] for k in same] == [whole.values["tuned"][k] for k in same]
    assert part.values["p_value"] == few.values["p_value"]
    assert (part.values["n"], part.values["n_base"]) == (4, 2)
    assert ["base" in sample for sample in part.values["samples"]] == [True, True, False, False]
    assert "base: on the first 2 lines, as is p" in part.table
    assert "n_base" not in whole.values


def test_words_are_told_apart_by_the_target(monkeypatch, tmp_path):
    monkeypatch.setattr(translation, "find_spec", lambda name: None)
    monkeypatch.setattr(translation, "_flores200", lambda: tmp_path / "none")
    assert translation.tokenizer_of("en-de") == ("13a", "")
    assert translation.tokenizer_of("zh-en") == ("13a", "")
    assert (
        translation.tokenizer_of("en-zh_Hant") == translation.tokenizer_of("fr-zho") == ("zh", "")
    )
    for pair, wanted in (("en-ja", "ja-mecab"), ("en-ko_KR", "ko-mecab"), ("en-th", "flores200")):
        name, note = translation.tokenizer_of(pair)
        assert name == "char"
        assert wanted in note
    monkeypatch.setattr(translation, "find_spec", lambda name: name)
    monkeypatch.setattr(translation, "_flores200", lambda: tmp_path)
    (tmp_path / "model").write_text("")
    monkeypatch.setattr(translation, "_flores200", lambda: tmp_path / "model")
    assert translation.tokenizer_of("en-ja") == ("ja-mecab", "")
    assert translation.tokenizer_of("en-ko") == ("ko-mecab", "")
    assert translation.tokenizer_of("en-th") == ("flores200", "")


def test_the_signature_names_the_tokenizer():
    chinese = ["我喜欢喝茶。", "火车晚点了。"] * 5
    found = translation.scores({"base": chinese[::-1], "tuned": chinese}, chinese, tokenizer="zh")
    assert "tok:zh" in found["signatures"]["bleu"]
    assert found["tuned"]["bleu"]["score"] == pytest.approx(100)
    assert "tok" not in found["signatures"]["chrf"]
