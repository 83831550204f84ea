"""Every recipe: a header that tells what it needs, settings that are frozen and explained."""

import ast
import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_there_are_recipes():
    assert [p.stem for p in RECIPES] == ["mtnt_lora"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_header_tells_what_it_takes(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    for word in ("accelerate launch", "Hardware", "Time", "Memory", "Score", "Data", "Source"):
        assert word in header, word


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_settings_are_few_frozen_and_explained(path, capsys):
    from ft import config

    module = load(path)
    fields = dataclasses.fields(module.Config)
    assert len(fields) <= 40
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Config().seed = 1
    with pytest.raises(SystemExit) as stopped:
        config.parse(module.Config, ["--help"], doc=module.__doc__)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for field in fields:
        assert field.name in shown
