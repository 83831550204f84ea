"""Continued pretraining on a tiny model: what the commands do with such a run, and its exact resume."""

import json

import pytest
from support.recipe_runs import RECIPES, train, words

from ft import __main__ as cli
from ft.errors import UserError
from ft.files import sha256
from ft.runs import proof

RECIPE = str(next(p for p in RECIPES if p.stem == "text_lora"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    flags = ["--learning-rate", "1e-2", "--eval-steps", "1", "--max-length", "24"]
    return train("text_lora", tmp_path_factory.mktemp("text"), *flags)


def test_the_record_says_what_it_learnt(run):
    record = json.loads((run / "run.json").read_text())
    assert record["task"] == "text"
    test = record["evaluation"]["test"]
    assert test["tuned"]["bits_per_byte"]["score"] < test["base"]["bits_per_byte"]["score"]
    card = (run / "README.md").read_text()
    score = test["tuned"]["bits_per_byte"]["score"]
    assert f"| {score:.3f} \\[" in card
    assert "'text': " in card


def test_the_commands_take_it(run, tmp_path, capsys):
    kept = json.loads((run / "run.json").read_text())["evaluation"]["test"]
    result = tmp_path / "result.json"
    cli.main(["eval", str(run), "--precision", "fp32", "--json", str(result)])
    found = json.loads(result.read_text())
    for name in ("base", "tuned"):
        assert found[name]["bits_per_byte"]["score"] == pytest.approx(
            kept[name]["bits_per_byte"]["score"], rel=1e-4
        )
    own = tmp_path / "own.txt"
    own.write_text("A text of my own.")
    cli.main(["eval", str(run), "--precision", "fp32", "--data", str(own)])
    assert "1 documents, 17 bytes" in capsys.readouterr().out
    say = ["--precision", "fp32", "--max-new-tokens", "4"]
    cli.main(["generate", str(run), "The cat", *say])
    asked = capsys.readouterr().out
    cli.main(["generate", str(run), "The cat", "--raw", *say])
    assert capsys.readouterr().out == asked
    cli.main(["merge", str(run), str(tmp_path / "merged")])
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_show_and_check_count_documents(run, capsys):
    given = ["--model", str(run.parent / "base"), "--data", str(run.parent / "notes.jsonl")]
    given += ["--valid-rows", "4", "--test-rows", "3", "--max-length", "24"]
    cli.main(["show", RECIPE, *given])
    shown = capsys.readouterr().out
    assert "train: " in shown
    assert "⟦Note" in shown
    cli.main(["check", RECIPE, *given, "--output-dir", str(run.parent / "other")])
    assert "13 train" in capsys.readouterr().out


def test_a_mixture_resumes_exactly_and_no_other_does(run, tmp_path):
    notes = run.parent / "notes.jsonl"
    more = tmp_path / "more.lines"
    more.write_text("".join(f"Line {i} of more.\n" for i in range(30)))
    mixed = ["--data", f"{notes},{more}=0.5", "--eval-steps", "1", "--max-length", "24"]
    whole = train("text_lora", tmp_path, *mixed)
    record = json.loads((whole / "run.json").read_text())
    assert sum(record["data"]["train"]["sources"].values()) == record["data"]["train"]["rows"]
    adapter = sha256(whole / "adapter_model.safetensors")
    other = ["--data", f"{notes},{more}=0.4", *mixed[2:]]
    with pytest.raises(UserError, match=r"data\.train"):
        train("text_lora", tmp_path, *other, "--resume", "last")
    again = words("text_lora", tmp_path, *mixed, "--resume", "last")
    cli.main(["check", RECIPE, *again, "--weights"])  # of a run that has begun, too
    train("text_lora", tmp_path, *mixed, "--resume", "last")
    checks = json.loads((whole / "run.json").read_text())["checks"]
    assert proof.NONE in record["checks"]
    assert {"packed", "merged"} <= {check["name"] for check in checks if "measured" in check}
    assert sha256(whole / "adapter_model.safetensors") == adapter
