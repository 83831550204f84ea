"""The documentation: links that lead somewhere, pages that open with a command, sizes that can be read."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
ALL = [*PAGES, *(ROOT / n for n in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"))]
ALL += [ROOT / "recipes/README.md", ROOT / "benchmarks/README.md"]


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
