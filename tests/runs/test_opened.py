"""A recipe opened by its file, and a finished run by its folder."""

import contextlib
import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest
from support import finished_run

from ft import __main__ as cli
from ft import config
from ft.errors import UserError
from ft.runs import hub, opened
from ft.text import prompts

RECIPE = Path(__file__).parents[2] / "recipes" / "mtnt_lora.py"


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return finished_run.write(tmp_path / "run")


def test_a_recipe_and_its_settings() -> None:
    module, settings = opened.recipe(RECIPE, ["--lora-r", "4"])
    assert settings == module.Config(lora_r=4)


def test_what_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no_recipe.py: there is no such recipe"):
        opened.recipe(tmp_path / "no_recipe.py", [])
    (tmp_path / "other.py").write_text("Config = None\n")
    with pytest.raises(UserError, match="other.py: not a recipe, it has no Config and rows"):
        opened.recipe(tmp_path / "other.py", [])


def test_a_finished_run_says_what_it_was_made_of(run_folder: Path) -> None:
    module, settings = opened.recipe(RECIPE, ["--language-pair", "en-fr", "--eval-limit", "7"])
    (run_folder / "config.yaml").write_text(config.to_yaml(settings))
    run = opened.finished(run_folder)
    assert run.folder == run_folder
    assert run.record == finished_run.RUN
    assert run.template == prompts.translation("French")
    assert run.settings["model_name_or_path"] == settings.model_name_or_path
    # the same recipe with the run's settings reads the same rows
    again, read = opened.recipe(RECIPE, ["--config", str(run_folder / "config.yaml")])
    assert dataclasses.asdict(read) == dataclasses.asdict(settings)
    assert {k: v.sha256 for k, v in again.rows(read).items()} == {
        k: v.sha256 for k, v in module.rows(settings).items()
    }


@pytest.mark.parametrize("text", [b"seed: 'cut", b"seed: \xff", b"a: b: c"])
def test_settings_that_are_no_yaml(run_folder: Path, text: bytes) -> None:
    (run_folder / "config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.yaml is not valid YAML"):
        opened.finished(run_folder)


def test_a_setting_that_is_not_there_is_named(run_folder: Path) -> None:
    (run_folder / "config.yaml").write_text("seed: 1\n")  # cut behind a line
    found = opened.finished(run_folder)
    assert found.settings.get("length_policy") is None
    with pytest.raises(UserError, match=r"config\.yaml has no model_name_or_path: it was cut"):
        _ = found.base


@pytest.mark.parametrize("verb", ["report", "eval", "merge", "summary"])
@pytest.mark.parametrize("file", ["run.json", "config.yaml", "adapter_config.json"])
@pytest.mark.parametrize("text", ["", "[1]", '{"a": '])
def test_a_damaged_file_of_a_run_is_one_line(
    verb: str, file: str, text: str, tmp_path: Path, capsys
) -> None:
    finished_run.write_real(tmp_path / "run")
    config = f"model_name_or_path: {tmp_path / 'base'}\n"
    (tmp_path / "run" / "config.yaml").write_text(config)
    (tmp_path / "run" / file).write_text(text)
    words = [verb, str(tmp_path / "run"), *[str(tmp_path / "out")] * (verb == "merge")]
    with contextlib.suppress(SystemExit):
        cli.main(words)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.count("error: ") <= 1


def test_a_run_that_had_hardly_begun(run_folder: Path) -> None:
    record = {key: value for key, value in finished_run.RUN.items() if key != "template"}
    (run_folder / "run.json").write_text(json.dumps(record))
    (run_folder / "config.yaml").write_text("seed: 1\n")
    with pytest.raises(UserError, match=r"run\.json names no template"):
        opened.finished(run_folder)
    (run_folder / "config.yaml").write_text("")
    with pytest.raises(UserError, match=r"config\.yaml holds no settings"):
        opened.finished(run_folder)


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "adapter_model.safetensors"])
def test_a_run_that_is_not_whole(name: str, run_folder: Path) -> None:
    (run_folder / name).unlink()
    with pytest.raises(UserError, match=name):
        opened.finished(run_folder)


@pytest.mark.parametrize(
    ("record", "settings", "task"),
    [
        ({}, {}, "translation"),
        ({}, {"chains": 4}, "reasoning"),
        ({}, {"train_vision": False}, "images"),
        ({"recipe": "minigpt_pretrain"}, {}, "pretraining"),
        ({"task": "instructions"}, {"chains": 4}, "instructions"),
    ],
)
def test_what_a_run_learnt_is_recorded_or_inferred(record, settings, task) -> None:
    assert opened.task_of(record, settings, prompts.translation("French")) == task
    if not record and not settings:
        assert opened.task_of({}, {}, prompts.INSTRUCTION["dolly"]) == "instructions"


OLDER = Path(__file__).parents[1] / "fixtures" / "older_run"


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run made before `run.json` had a `task`, its base beside it, in the working folder."""
    shutil.copytree(OLDER, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place" / "run"


def test_an_older_run_has_no_task_and_is_known_nevertheless(older: Path) -> None:
    assert "task" not in json.loads((older / "run.json").read_text())
    assert opened.finished("run").task == "translation"


# its base is named relative here, PEFT makes the name absolute
renamed = pytest.mark.filterwarnings("ignore:The PEFT config's `base_model_name_or_path`")
SHORT = ["--max-new-tokens", "3", "--precision", "fp32"]


@renamed
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["translate", "run", "hello", *SHORT], "\n"),
        (["translate", "run", "hello", "--base", *SHORT], "\n"),
        (["eval", "run", "--limit", "2", *SHORT], "chrF"),
        (["chat", "run", *SHORT], "\n"),
        (["generate", "run", "hello", *SHORT], "\n"),
        (["score", "run", "--text", "bonjour", "--precision", "fp32"], "perplexity"),
        (["samplers", "bonjour le chat", "--model", "run", *SHORT], "top-k"),
        (["summary", "run"], "lora"),
        (["merge", "run", "merged"], "mean KL"),
    ],
)
def test_every_command_reads_an_older_run(words, said, older: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    cli.main(words)
    assert said in capsys.readouterr().out


def test_a_chain_and_a_server_take_an_older_run(older: Path, capsys, monkeypatch) -> None:
    with pytest.raises(SystemExit):
        cli.main(["solve", "run", "How many?"])
    assert "was not trained to write ANSWER:" in capsys.readouterr().err
    monkeypatch.setattr("ft.chat.openai_server.Server.run", lambda self: print(self.partner.name))
    cli.main(["serve", "run", "--port", "0", "--precision", "fp32"])
    assert capsys.readouterr().out.endswith("run\n")


def test_a_reward_model_is_trained_on_an_older_run(older: Path, capsys) -> None:
    rows = [{"source": f"a {n}", "chosen": f"un {n}", "rejected": "no"} for n in range(3)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    cli.main(["reward", "pairs.jsonl", "--run", "run", "--out", "model"])
    assert "of 1 held-out pairs" in capsys.readouterr().out
    assert json.loads(Path("model/reward.json").read_text())["held_out"] == 1


def test_export_finds_an_older_runs_base(older: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["export", "run", "older.gguf"])
    assert "base: llama.cpp's gemma3 cannot compute" in capsys.readouterr().err  # its tiny layers


def test_the_scores_of_an_older_run_come_out_again(older: Path, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    cli.main(["eval", "run", "--limit", "2", "--precision", "fp32", "--json", str(file)])
    kept = json.loads((older / "run.json").read_text())["evaluation"]["test"]
    found = json.loads(file.read_text())
    for name in ("base", "tuned"):
        assert found[name]["loss"] == pytest.approx(kept[name]["loss"], rel=1e-5)


def test_an_older_runs_card_is_written_again(older: Path) -> None:
    card, record = hub.card(older), json.loads((older / "run.json").read_text())
    tuned = record["evaluation"]["test"]["tuned"]
    assert all(f"{tuned[key]['score']:.1f}" in card for key in ("bleu", "chrf"))
    assert record["template"]["prompt"].splitlines()[0] in card
    assert str(older) not in card
