"""Lays out the documentation as a site's pages: `python .ci/site.py FOLDER`, then `zensical build -f FOLDER/mkdocs.yml`.

The repository's own pages, under the paths that they have there, and those made of recipes, commands and faces.
"""

import contextlib
import importlib
import io
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import yaml

from ft import __main__ as cli
from ft.runs import opened

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
PAGES += ["recipes/README.md", "benchmarks/README.md"]
TASKS = re.findall(r"\]\((docs/\w[\w-]*\.md)\)", (ROOT / "README.md").read_text())
RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*.py"))
FACES = sorted(
    p.parent.name for p in (ROOT / "ft").glob("*/__init__.py") if "__all__" in p.read_text()
)


def main(folder: Path) -> None:
    """Write the pages and the generator's settings."""
    made = {f"recipes/{name}.md": _recipe(name) for name in RECIPES}
    made |= {f"packages/{name}.md": _face(name) for name in FACES}
    made["commands.md"] = _commands()
    made |= {name: _linked((ROOT / name).read_text()) for name in [*PAGES, *TASKS]}
    pages = folder / "docs"
    for name, text in made.items():
        page = pages / name.replace("README.md", "index.md")
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(text)
    for picture in (ROOT / "recipes").glob("*.png"):
        shutil.copy(picture, pages / "recipes")
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    settings["nav"] = [
        {"ft": "index.md"},
        {"Tasks": TASKS},
        {"Recipes": ["recipes/index.md", *(f"recipes/{name}.md" for name in RECIPES)]},
        {"Commands": "commands.md"},
        {"Packages": [f"packages/{name}.md" for name in FACES]},
        {"Numbers": "benchmarks/index.md"},
        {"How it is built": PAGES[1:5]},
    ]
    settings["plugins"][1]["mkdocstrings"]["handlers"]["python"]["paths"] = [str(ROOT)]
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False))


def _linked(text: str) -> str:
    """Links to a recipe's file lead to its page, and those to files that are no pages are their names."""
    text = re.sub(r"(\]\((?:[\w./]*/)?)README\.md", r"\1index.md", text)
    text = re.sub(rf"(\]\((?:[\w./]*/)?(?:{'|'.join(RECIPES)}))\.py\)", r"\1.md)", text)
    return re.sub(r"\[([^\]]+)\]\((?!https?:)[^)#]*(?<!\.md)(?<!\.png)\)", r"`\1`", text)


def _recipe(name: str) -> str:
    """A recipe's first line, its header with all settings, and its source."""
    file = ROOT / "recipes" / f"{name}.py"
    said = _said(f"{name}.py", lambda: opened.recipe(file, ["--help"]))
    first, _, rest = said.partition("\n")
    source = f"## Source\n\n```python\n{file.read_text()}```\n"
    return f"# {name}\n\n{first}\n\n```text\n{rest.strip()}\n```\n\n{source}"


def _commands() -> str:
    """The help of every verb."""
    text = "# Commands\n"
    for words in [[], *([verb] for verbs in cli.VERBS.values() for verb in verbs)]:
        said = _said("ft", lambda words=words: cli.main([*words, "--help"]))
        text += f"\n## {' '.join(['ft', *words])}\n\n```text\n{said}```\n"
    return text


def _said(program: str, what) -> str:
    """What a call prints before it ends the process."""
    with (
        mock.patch.object(sys, "argv", [program]),
        contextlib.redirect_stdout(io.StringIO()) as said,
        contextlib.suppress(SystemExit),
    ):
        what()
    return said.getvalue()


def _face(name: str) -> str:
    """The public names of a package, from their docstrings."""
    package = importlib.import_module(f"ft.{name}")
    entries = ""
    for each in package.__all__:
        module = (
            ROOT / "ft" / name / f"{each}.py"
        ).is_file()  # of this name, too: the generator's choice
        inner = f".{each}" if module and callable(getattr(package, each)) else ""
        entries += f"::: ft.{name}.{each}{inner}\n\n"
    return f"# ft.{name}\n\n{package.__doc__}\n\n{entries}"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
