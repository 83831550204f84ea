"""A recipe opened by its file, and a finished run by its folder."""

import dataclasses
from pathlib import Path

import pytest
from support import finished_run

from ft import config
from ft.errors import UserError
from ft.runs import opened
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


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "adapter_model.safetensors"])
def test_a_run_that_is_not_whole(name: str, run_folder: Path) -> None:
    (run_folder / name).unlink()
    with pytest.raises(UserError, match=name):
        opened.finished(run_folder)
