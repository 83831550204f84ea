"""The documentation: links that lead somewhere, pages that open with a command, sizes that can be read."""

import argparse
import ast
import contextlib
import importlib.util
import json
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.recipe_runs import RECIPES, load

from ft import __version__, config

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [*PAGES, *(ROOT / n for n in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"))]
ALL += [ROOT / "recipes/README.md", ROOT / "benchmarks/README.md"]
BY_NAME = {path.stem for path in RECIPES}
FACES = sorted(
    p.parent.name for p in (ROOT / "ft").glob("*/__init__.py") if "__all__" in p.read_text()
)


@pytest.mark.parametrize("page", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.S))
    for link in links:
        file, _, anchor = link.partition("#")
        if file.startswith("http"):
            continue
        there = page.parent / file if file else page
        assert there.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), flags=re.M)
            known = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}
            assert anchor in known, link


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page_opens_with_a_command(page):
    title, blank, first = page.read_text(encoding="utf-8").splitlines()[:3]
    assert title.startswith("# ")
    assert not blank
    assert re.match(r"    (ft|accelerate launch|pip|python) ", first), first


def test_recipes_that_pages_name_exist():
    for page in ALL:
        for name in re.findall(
            r"(?<!tests/)recipes/([a-z]\w*)\.py", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / f"recipes/{name}.py").is_file(), f"{page.name}: {name}"


def test_the_readme_and_the_architecture_can_be_read():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 220
    assert len((ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").splitlines()) <= 150


def test_the_readme_links_every_page():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for page in PAGES:
        assert f"docs/{page.name}" in text, page.name


def test_files_that_the_architecture_names_exist():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)+\w+\.(?:py|json|md))`", text)
    assert len(named) > 15
    for name in named:
        place = ROOT / name if (ROOT / name).exists() else ROOT / "ft" / name
        assert place.exists() or "NAME" in name or "TASK" in name, name


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command that a page or a recipe's header shows, in a block or between backticks."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".py":
        text = textwrap.indent(ast.get_docstring(ast.parse(text)) or "", "    ")
    blocks = re.findall(r"^    (.+)$", text, flags=re.M) + re.findall(r"`([^`\n]+)`", text)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        for part in line.split("&&"):
            shown = re.split(r"\s{3,}|\s#\s|\s[<>|]\s|…|\.\.\.", part.strip())[0]
            with contextlib.suppress(
                ValueError
            ):  # of a quotation mark without its pair: no command
                yield shlex.split(shown)


SHOWN = [
    pytest.param(words, id=f"{page.stem}: {' '.join(words)[:60]}")
    for page in [*ALL, *RECIPES]
    for words in commands(page)
    if words and words[0] in ("ft", "accelerate", "python") and len(words) > 2
]


@pytest.mark.parametrize("words", SHOWN)
def test_a_command_that_is_shown_can_be_parsed(words):
    """Its verb and its flags exist; the values of a recipe's flags are the recipe's own tests."""
    program, *words = words
    if program == "ft":
        module, parser = (
            importlib.import_module(f"ft.cli.{words[0]}"),
            argparse.ArgumentParser(add_help=False),
        )
        module.arguments(parser)
        known = set(parser._option_string_actions)
    else:
        known = {"--config_file", "--num_processes", "--num_machines", "--machine_rank"}
        known |= {"--main_process_ip"}
    file = next((w for w in words if re.search(r"recipes/\w+\.py$", w) or w in BY_NAME), "")
    if file:
        cls = load(ROOT / f"recipes/{Path(file).stem}.py").Config
        known |= {f"--{name}" for name in config._options(cls)} | {"--help", "--preset", "--config"}
    elif program != "ft":
        return
    for word in words:
        flag = word.split("=")[0]
        if re.match(r"--?[a-z]", flag):
            plain = flag.replace("-no-", "-", 1).replace("-", "_").replace("__", "--", 1)
            assert {flag, plain} & known, f"{flag} of {' '.join(words)}"


def test_the_notebook_installs_the_wheel_beside_it(tmp_path, monkeypatch):
    notebook = json.loads((ROOT / "notebooks/mtnt_qlora.ipynb").read_text(encoding="utf-8"))
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    asked = []
    cell = re.sub(r"%pip install -q (.+)", r"asked.append(f\1)", "".join(first["source"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip wheel --no-deps"):  # no index has the package
        exec(cell, {"asked": asked})
    wheel = tmp_path / "gemma_ft-0.1.0-py3-none-any.whl"
    wheel.touch()
    exec(cell, {"asked": asked})
    assert asked == [f"{wheel}[embedded]"]


@pytest.mark.parametrize("face", FACES)
def test_a_public_name_tells_what_it_is(face):
    package = importlib.import_module(f"ft.{face}")
    for name in package.__all__:
        found = getattr(package, name)
        assert not callable(found) or (found.__doc__ or "").strip(), name


def test_the_citation_has_this_version():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
