"""The way of decoding is the best on the rows that it is chosen on, and part of what a run is."""

import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from support import tiny

from ft import __main__ as cli
from ft.generate.samplers import Beam, Greedy, from_generation_config, to_generation_config
from ft.runs import opened
from ft.score import decoding, translation
from ft.text import prompts
from ft.text.template import Template

ROWS = [{"source": "cat", "target": "le chat noir"}, {"source": "dog", "target": "le chien blanc"}]
TEMPLATE = prompts.translation()


def test_the_way_with_the_best_chrf_is_taken(monkeypatch):
    good = Beam(2, 0.6, 3)
    texts = {Greedy(): ["le", "chien"], good: ["le chat noir", "le chien"], Beam(4): ["", "non"]}
    monkeypatch.setattr(decoding, "translate", lambda m, t, te, rows, way, **_: texts[way])
    monkeypatch.setitem(decoding.WAYS, "auto", tuple(texts))
    chosen = decoding.choose(None, None, TEMPLATE, ROWS)
    record = chosen.record
    assert chosen.sampler == good
    assert from_generation_config(json.loads(json.dumps(record))) == good
    assert [tried["num_beams"] for tried in record["tried"]] == [1, 2, 4]
    assert max(tried["chrf"] for tried in record["tried"]) == record["tried"][1]["chrf"]
    assert "decoding: 2 beams without repeated 3-grams; on 2 validation rows greedy" in chosen.line


def test_the_first_of_equal_ways_is_taken_and_one_alone_is_not_tried(monkeypatch):
    calls: list[Any] = []

    def same(_: Any, __: Any, ___: Any, rows: Any, way: Any, **____: Any) -> list[str]:
        calls.append(way)
        return ["le chat", "le chien"]

    monkeypatch.setattr(decoding, "translate", same)
    chosen = decoding.choose(None, None, TEMPLATE, ROWS, how="auto")
    assert chosen.sampler == Greedy()
    assert len(calls) == 2
    for how, way in (("greedy", Greedy()), ("beam", decoding.BEAM)):
        chosen = decoding.choose(None, None, TEMPLATE, ROWS, how=how)
        assert chosen.sampler == way
        assert chosen.record == to_generation_config(way)
    assert len(calls) == 2


def test_the_answer_most_like_the_others_is_taken(monkeypatch):
    drawn = ["un chien", "le chat dort", "un chat mort", "le chat dort", "???"]

    def write(_: Any, __: Any, ___: Any, ids: Any, n: int, **____: Any) -> Any:
        return [[SimpleNamespace(text=text) for text in drawn[:n]] for _ in ids]

    monkeypatch.setattr(decoding, "write", write)
    monkeypatch.setattr(decoding, "prompt_ids", lambda *_: [2, 3])
    assert decoding.minimum_risk(None, None, TEMPLATE, ROWS, 5) == ["le chat dort"] * 2


def test_a_drawn_answer_is_no_longer_than_one_that_is_scored_may_be(monkeypatch):
    drawn: list[Any] = []
    write = decoding.write

    def kept(*asked: Any, **options: Any) -> Any:
        drawn.extend(zip(asked[3], found := write(*asked, **options), strict=True))
        return found

    monkeypatch.setattr(decoding, "write", kept)
    plain = Template("plain", "{source}", "{target}")
    decoding.minimum_risk(tiny.build("gemma3_text"), tiny.tokenizer(), plain, ROWS, 3)
    for prompt, answers in drawn:
        most = max(len(answer.ids) for answer in answers)
        assert 16 < most <= translation.RATIO * len(prompt) + 16


def test_translate_looks_as_the_run_does_unless_told(monkeypatch, capsys, tmp_path):
    seen: list[Any] = []
    run = SimpleNamespace(
        task="translation", template=TEMPLATE, weights="w", sampler=Beam(4, 1.0, 4)
    )
    monkeypatch.setattr(opened, "finished", lambda *_, **__: run)
    loaded = SimpleNamespace(model=None, tokenizer=None)
    tokenizers: list[Any] = []
    monkeypatch.setattr(
        opened, "load", lambda *_, tokenizer, **__: tokenizers.append(tokenizer) or loaded
    )
    monkeypatch.setattr(sys.modules["ft.models.load"], "load_tokenizer", lambda name: f"of {name}")
    monkeypatch.setattr("ft.cli.translate._refuse_control_tokens", lambda *_: None)

    def translate(_: Any, __: Any, ___: Any, rows: Any, sampler: Any, **____: Any) -> list[str]:
        seen.append(sampler)
        return ["ok"] * len(rows)

    monkeypatch.setattr("ft.score.translation.translate", translate)
    for flags in ([], ["--num-beams", "2"], ["--num-beams", "1"]):
        cli.main(["translate", "run", "hello", *flags])
    assert seen == [Beam(4, 1.0, 4), Beam(2), Greedy()]
    assert tokenizers == ["of w"] * 3  # it is read once, and handed on
    for flags, said in (
        (["--num-beams", "2", "--mbr", "4"], "not both"),
        (["--num-beams", "0"], "width = 0"),
        (["--mbr", "1"], "must be 2 or more"),
    ):
        with pytest.raises(SystemExit):
            cli.main(["translate", "run", "hello", *flags])
        assert said in capsys.readouterr().err
