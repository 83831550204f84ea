"""`ft run` and `ft recipes`: recipes by name, as they lie in a wheel or in a clone."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from ft import __main__ as cli
from ft import files

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "mtnt_lora.py"
PYTHON = [sys.executable]
LAUNCH = [*PYTHON, "-m", "accelerate.commands.launch"]


@pytest.fixture
def started(monkeypatch):
    """The words of the process that `ft run` becomes, given its own words."""
    monkeypatch.setenv("FT_COMMAND", "")  # so that what the command sets there goes with the test
    monkeypatch.delenv("FT_COMMAND")

    def become(_, words):
        raise SystemExit(words)

    monkeypatch.setattr(os, "execv", become)

    def of(*words):
        monkeypatch.setattr(sys, "argv", ["/bin/ft", "run", *words])
        with pytest.raises(SystemExit) as done:
            cli.main()
        return done.value.code

    return of


def test_a_name_is_started_with_its_own_flags(started):
    assert started("mtnt_lora", "--max-steps", "4") == [*PYTHON, str(RECIPE), "--max-steps", "4"]
    assert os.environ["FT_COMMAND"] == "ft run mtnt_lora --max-steps 4"


def test_so_is_a_file_before_a_name(started, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").touch()
    assert started("mine.py") == [*PYTHON, "mine.py"]
    Path("mtnt_lora").touch()
    assert started("mtnt_lora") == [*PYTHON, "mtnt_lora"]


def test_several_processes_have_accelerates_settings(started):
    settings = ["--config_file", str(ROOT / "accelerate_config.yaml"), "--num_processes", "4"]
    for words in (["mtnt_lora", "--processes", "4", "-x"], ["--processes", "4", "mtnt_lora", "-x"]):
        assert started(*words) == [*LAUNCH, *settings, str(RECIPE), "-x"]
    sharded = started("mtnt_lora", "--processes", "2", "--fsdp")
    assert sharded[4:-1] == [str(ROOT / "accelerate_fsdp.yaml"), "--num_processes", "2"]


def test_help_behind_a_recipe_is_the_recipes(started, capsys):
    assert started("mtnt_lora", "--help") == [sys.executable, str(RECIPE), "--help"]
    assert started("--help") == 0
    assert "--fsdp" in capsys.readouterr().out


def test_what_cannot_be_started_is_said(started, capsys):
    assert started("mtnt_lroa") == 2
    assert "no such recipe" in (said := capsys.readouterr().err)
    assert "Did you mean 'mtnt_lora'?" in said
    assert started("mtnt_lora", "--processes", "0") == 2
    assert "--processes 0" in capsys.readouterr().err


def test_a_mistake_in_a_recipes_flags_ends_it_with_status_2_and_one_message():
    command = [*PYTHON, "-m", "ft", "run", "mtnt_lora", "--max-stps", "3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: command line: unknown option '--max-stps'. Did you mean '--max_steps'?"
    ]


def test_recipes_are_listed_by_their_first_lines(capsys):
    cli.main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        p.stem for p in sorted(RECIPE.parent.glob("*.py"))
    ]
    for line in lines:
        name, said = line.split(maxsplit=1)
        assert (RECIPE.parent / f"{name}.py").read_text().startswith(f'"""{said}\n')


def test_a_recipe_is_copied_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cli.main(["recipes", "copy", "mtnt_lora"])
    assert Path("mtnt_lora.py").read_bytes() == RECIPE.read_bytes()
    Path("mtnt_lora.py").write_text("changed")
    for words, said in (
        (["mtnt_lora"], "mtnt_lora.py is here already"),
        (["mtnt_lroa"], "Did you mean 'mtnt_lora'?"),
        ([], "needs the name of a recipe"),
    ):
        with pytest.raises(SystemExit) as done:
            cli.main(["recipes", "copy", *words])
        assert done.value.code == 2
        assert said in capsys.readouterr().err
    assert [(p.name, p.read_text()) for p in Path().iterdir()] == [("mtnt_lora.py", "changed")]


def test_a_name_is_a_recipe_to_every_command(capsys):
    for verb, words in (("plan", ["--gpu", "24GB", "--model", "embedded"]), ("check", ["--all"])):
        with pytest.raises(SystemExit) as done:
            cli.main([verb, "mtnt_lora", *words, "--no-such-flag"])
        assert done.value.code == 2
        assert "no_such_flag" in capsys.readouterr().err.replace("-", "_")


def test_a_wheel_holds_what_a_clone_has(tmp_path, monkeypatch):
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    inside = build["targets"]["wheel"]["force-include"]
    for source, target in inside.items():
        place = tmp_path / target
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    here = files.recipes()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "ft" / "files.py"))
    assert files.bundled() == tmp_path / "ft" / "bundled"
    assert files.recipes() == here
    assert files.recipe("mtnt_lora") == tmp_path / "ft/bundled/recipes/mtnt_lora.py"
    for name in ("accelerate_config.yaml", "accelerate_fsdp.yaml", "constraints.txt"):
        assert (files.bundled() / name).read_bytes() == (ROOT / name).read_bytes()
