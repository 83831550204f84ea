"""Preferences from any run: a Dolly-like one and one of chat turns learn them, single answers too, and go on exactly."""

import json

import pytest
import torch
from safetensors.torch import load_file
from support import learner, tiny
from support.recipe_runs import RECIPES, load

from ft import __main__ as cli
from ft import config
from ft.errors import UserError
from ft.files import write_json
from ft.rewards import drawn
from ft.runs import opened
from ft.runs.folder import read
from ft.text import chat_template, prompts
from ft.text.template import to_record
from ft.text.tokens import prompt_ids

pytestmark = learner.needs_trl
RECIPE = next(path for path in RECIPES if path.stem == "preference")
FEW = ["--valid-rows", "4", "--answer-rows", "1", "--max-new-tokens", "2", "--watch-rows", "1"]
FEW += ["--precision", "fp32", "--max-kl", "99", "--max-drift", "99", "--min-distinct", "0"]
FEW += ["--learning-rate", "1e-2", "--per-device-train-batch-size", "4", "--watch-steps", "3"]


@pytest.fixture(scope="module", params=["dolly", "chat"])
def start(request, tmp_path_factory):
    """A run of instructions, by a template of fields or by the tokenizer's own turns."""
    folder = learner.finished(tmp_path_factory.mktemp(request.param) / "run")
    own = chat_template.read(tiny.tokenizer())
    template = prompts.INSTRUCTION["dolly"] if request.param == "dolly" else own
    record = read(folder) | {"task": "instructions", "recipe": "dolly_qlora"}
    write_json(folder / "run.json", record | {"template": to_record(template)})
    return folder


def pairs(place, count=16):
    file = place / "pairs.jsonl"
    rows = [
        {"prompt": f"Say {i}.", "chosen": f"the cat {i}", "rejected": f"{i} chat le", "id": i}
        for i in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def labelled(place):
    file = place / "answers.jsonl"
    rows = [
        {"prompt": f"Say {i}.", "completion": f"the cat {i}" if i % 2 else f"{i} chat le"}
        | {"label": bool(i % 2)}
        for i in range(16)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def go(start, data, out, *flags):
    module = load(RECIPE)
    words = ["--run", str(start), "--data", str(data), "--output-dir", str(out), *FEW, *flags]
    module.main(config.parse(module.Config, words))
    return opened.finished(out)


def test_pairs_are_learnt_and_the_run_goes_on(start, tmp_path, capsys):
    found = go(start, pairs(tmp_path), tmp_path / "out", "--num-train-epochs", "2")
    values = found.record["evaluation"]["valid"]
    assert values["base"]["preference"]["score"] == 50
    assert values["tuned"]["preference"]["score"] == 100
    assert values["tuned"]["preference"]["low"] < 100
    assert values["tuned"]["preference_loss"] < values["base"]["preference_loss"]
    assert found.task == "instructions"
    assert found.template == opened.finished(start).template
    assert found.asked == opened.finished(start).settings
    said = capsys.readouterr().out
    assert "ignored columns: id" in said
    assert "start: preference loss 0.6931 on 4 held-out rows" in said
    losses = [line["eval_loss"] for line in found_lines(found) if "eval_loss" in line]
    assert losses[0] > losses[-1]
    assert "implicit reward" in (found.folder / "README.md").read_text()


def found_lines(found):
    return [json.loads(line) for line in (found.folder / "metrics.jsonl").read_text().splitlines()]


def test_ids_are_the_runs_own(start, tmp_path):
    module = load(RECIPE)
    words = ["--run", str(start), "--data", str(pairs(tmp_path)), *FEW]
    c = module.resolved(config.parse(module.Config, words))
    rows, tokenizer = module.rows(c)["train"], tiny.tokenizer()
    template = module.template(c)
    found = drawn.encode_preferences(rows, template, tokenizer)
    for row, pair in zip(rows, found.pairs, strict=True):
        assert pair["prompt_ids"] == prompt_ids(template, row, tokenizer)
        end = tokenizer.convert_tokens_to_ids(template.end or tokenizer.eos_token)
        assert pair["chosen_ids"][-1] == pair["rejected_ids"][-1] == end
        text = template.render(row | {"response": row["chosen"]})["completion"]
        assert tokenizer.decode(pair["chosen_ids"][:-1]) == text
    with pytest.raises(UserError, match="12 of 12 rows have an answer with more than max_length=9"):
        drawn.encode_preferences(rows, template, tokenizer, max_length=9)


def test_single_answers_are_learnt_by_kto(start, tmp_path, capsys):
    if "dolly" not in str(start):
        pytest.skip("once is enough")
    found = go(start, labelled(tmp_path), tmp_path / "out", "--num-train-epochs", "4")
    values = found.record["evaluation"]["valid"]
    assert values["tuned"]["preference"]["score"] == 100
    assert "of wanted answers" in capsys.readouterr().out
    assert min(found.record["weights"].values()) == 1


def test_it_goes_on_exactly(start, tmp_path):
    if "dolly" not in str(start):
        pytest.skip("once is enough")
    data = pairs(tmp_path)
    whole = go(start, data, tmp_path / "whole", "--num-train-epochs", "2")
    module = load(RECIPE)
    words = ["--run", str(start), "--data", str(data), "--output-dir", str(tmp_path / "cut"), *FEW]
    words += ["--num-train-epochs", "2"]
    watched = module.guards.Watch.__call__

    def stop(self, step):
        watched(self, step)
        if step == 6:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.guards.Watch, "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            module.main(config.parse(module.Config, words))
    module.main(config.parse(module.Config, [*words, "--resume-from-checkpoint", "last"]))
    found = opened.finished(tmp_path / "cut")
    assert found.record["resumed_from"] == "checkpoint-3"
    ours, theirs = (load_file(r.folder / "adapter_model.safetensors") for r in (found, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line.get("loss") for line in found_lines(found)] == [
        line.get("loss") for line in found_lines(whole)
    ]


def test_check_and_show(start, tmp_path, capsys):
    words = [str(RECIPE), "--run", str(start), "--data", str(pairs(tmp_path)), *FEW[:2]]
    cli.main(["check", *words, "--output-dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "\nok    data " in said
    assert "ERROR" not in said
    cli.main(["show", *words])
    said = capsys.readouterr().out
    assert "12 pairs, longest" in said
    assert "⟦the cat" in said
    assert " chat le" in said
