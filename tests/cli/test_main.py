"""The commands as a user runs them: help at once, clear mistakes, and a run used from end to end."""

import argparse
import ast
import importlib
import inspect
import json
import resource
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ft import __main__ as cli

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "mtnt_lora.py")


def ft(*words: str, code: int = 0, **options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "ft", *words], capture_output=True, text=True, cwd=ROOT, **options
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


@pytest.mark.parametrize("words", [("--help",), ("translate", "--help"), ("push", "-h")])
def test_help_teaches_and_is_quick(words):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = ft(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "RUN" in done.stdout or "recipes/mtnt_lora.py" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.3


def test_help_and_check_import_no_torch():
    code = (
        "import sys\nfrom ft.__main__ import main\ntry:\n    main(sys.argv[1:])\n"
        "except SystemExit: pass\nassert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    for words in (["--help"], ["check", RECIPE, "--output-dir", "/nonexistent-run"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_check_counts_the_rows(tmp_path):
    out = ft("check", RECIPE, "--output-dir", str(tmp_path / "run")).stdout
    assert "\nok    data        900 train + 40 valid + 120 test\n" in out
    assert "ERROR" not in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["check", RECIPE, "--lerning-rate", "1"], "Did you mean '--learning_rate'"),
        (["check", RECIPE, "--lora-r", "many"], "--lora-r: got 'many', expected int"),
        (["check", RECIPE, "--data", "/no/such/folder"], "/no/such/folder"),
        (["check", RECIPE, "--data", "smaple"], "smaple"),
        (["check", RECIPE, "--learning-rate", "0"], "--learning-rate: got 0.0, must be above 0"),
        (["check", RECIPE, "--language-pair", "en-de"], "en-fr"),
        (["check", "no_recipe.py"], "no_recipe.py: there is no such recipe"),
        (["translate", "/no/run", "hello"], "/no/run"),
        (["translate", "/no/run"], "the input is empty"),
        (["push", "/no/run", "--repo", "a/b"], "/no/run"),
    ],
)
def test_a_mistake_is_one_message_and_status_2(words, said):
    done = ft(*words, code=2, input="")
    assert said in done.stderr
    assert done.stderr.startswith("error: ")


def test_unknown_arguments_of_a_command_are_refused():
    done = ft("merge", "a", "b", "--fast", code=2)
    assert "--fast" in done.stderr


def test_several_mistakes_come_at_once():
    done = ft("check", RECIPE, "--lora-r", "x", "--seed", "y", "--modle", "z", code=2)
    assert all(word in done.stderr for word in ("--lora-r", "--seed", "--modle"))


VERBS = {verb: line for verbs in cli.VERBS.values() for verb, line in verbs.items()}
FILES = {p.stem: p for p in (ROOT / "ft" / "cli").glob("*.py")}


def test_each_file_is_a_verb_of_the_help():
    assert set(FILES) - {"__init__", "console"} == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_line_is_the_first_sentence_of_its_file(verb):
    text = ast.get_docstring(ast.parse(FILES[verb].read_text())) or ""
    assert text.split("\n\n")[0] == VERBS[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_has_an_example_that_can_be_parsed(verb, capsys):
    module, parser = (
        importlib.import_module(f"ft.cli.{verb}"),
        argparse.ArgumentParser(add_help=False),
    )
    module.arguments(parser)
    said, name, *words = shlex.split(parser.epilog or "")
    assert (said, name, words[0]) == ("example:", "ft", verb)
    options, rest = parser.parse_known_args(words[1:])
    assert not rest or verb in cli.TAKE_RECIPE_FLAGS
    taken = inspect.signature(module.command).parameters
    assert set(vars(options)) <= set(taken) or "settings" in taken
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert "example: ft" in capsys.readouterr().out


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of the recipe itself on a tiny model, two steps."""
    from support import tiny

    place = tmp_path_factory.mktemp("finished")
    base = tiny.folder("gemma3_text", place / "base", max_position_embeddings=4096)
    flags = ["--model", str(base), "--output-dir", str(place / "run"), "--max-steps", "2"]
    flags += ["--eval-limit", "3", "--precision", "fp32", "--max-length", "2000"]
    done = subprocess.run(
        [sys.executable, RECIPE, *flags], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place, done.stdout


def test_the_recipe_tells_its_story(finished):
    place, out = finished
    for said in (
        "bundled sample",
        "precision fp32",
        "attention",
        "LoRA r 16",
        "⟦",
        "Start, validation",
    ):
        assert said in out
    assert "STEP 2 training loss:" in out
    assert "chrf: nrefs:1" in out
    names = {p.name for p in (place / "run").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "config.yaml", "run.json"} <= names
    assert (place / "run" / "examples.txt").read_text().count("<bos>") == 8
    assert {"metrics.jsonl", "samples.txt", "README.md", "loss.png", "tokenizer.json"} <= names
    record = json.loads((place / "run" / "run.json").read_text())
    assert record["data"]["train"]["rows"] == 900
    assert record["evaluation"]["test"]["n"] == 3


def test_running_again_is_refused(finished):
    place, _ = finished
    command = [sys.executable, RECIPE, "--output-dir", str(place / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert "is not empty" in done.stderr


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "/no/such/folder"], "/no/such/folder"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--max-length", "3"], "all 900 train rows have more than max_length=3"),
        (["--lora-target-modules", "q_porj"], "q_proj"),
        (["--resume", "last"], "no complete checkpoint"),
    ],
)
def test_a_run_that_cannot_start_leaves_nothing(flags, said, finished, tmp_path):
    place, _ = finished
    out = tmp_path / "run"
    command = [sys.executable, RECIPE, "--model", str(place / "base"), "--precision", "fp32"]
    command += ["--output-dir", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists() or not any(out.iterdir())


def test_translate_gives_a_line_for_a_line(finished, capsys, tmp_path):
    place, _ = finished
    (tmp_path / "in.txt").write_text("hello\n\nidk lol\n")
    cli.main(
        [
            "translate",
            str(place / "run"),
            "--file",
            str(tmp_path / "in.txt"),
            "--max-new-tokens",
            "4",
        ]
    )
    assert capsys.readouterr().out.count("\n") == 3


def test_eval_gives_the_scores_of_the_run(finished, capsys, tmp_path):
    place, _ = finished
    result = tmp_path / "result.json"
    cli.main(
        ["eval", str(place / "run"), "--limit", "3", "--precision", "fp32", "--json", str(result)]
    )
    record = json.loads((place / "run" / "run.json").read_text())["evaluation"]["test"]
    again = json.loads(result.read_text())
    assert again["tuned"]["loss"] == pytest.approx(record["tuned"]["loss"], rel=1e-6)
    assert again["samples"] == record["samples"]
    assert "chrF" in capsys.readouterr().out


def test_merge_writes_a_model_that_answers_as_the_adapter(finished, capsys, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM

    from ft import models
    from ft.models import lora

    place, _ = finished
    cli.main(["merge", str(place / "run"), str(tmp_path / "merged")])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    adapted = lora.load(models.load(str(place / "base"), precision="fp32"), place / "run")
    ids = torch.tensor([[2, 30, 40, 50]])
    with torch.no_grad():
        torch.testing.assert_close(
            merged.float()(ids).logits, adapted(ids).logits, rtol=1e-3, atol=1e-3
        )
