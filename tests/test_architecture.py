"""The house: which package may import which, imports that stay cheap, sizes that can be read in one sitting."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "ft").rglob("*.py"))
PACKAGES = sorted(p.parent.name for p in (ROOT / "ft").glob("*/__init__.py"))

FREE = {"errors", "files"}  # what any file may import
MAY_IMPORT = {  # each row also its own package
    "config": set(),
    "machine": set(),
    "text": {"machine"},  # what it says
    "data": {"text", "machine"},
    "kernels": {"text"},
    "minigpt": {"text", "kernels"},
    "models": {"text", "data", "kernels", "minigpt", "machine"},
    "generate": {"text", "kernels", "models", "machine"},
    "runs": {"text", "kernels", "models", "generate", "config", "machine"},
    "score": {"text", "data", "kernels", "models", "generate", "runs", "machine"},
    "train": {"text", "kernels", "models", "runs", "machine"},
    "rewards": {"text", "data", "kernels", "models", "generate", "runs", "score", "train"}
    | {"config", "machine"},
    "plan": {"text", "data", "kernels", "models", "generate", "runs", "score", "train"}
    | {"config", "machine"},
    "chat": {"text", "data", "models", "generate", "runs", "score", "machine"},
}
FACES = {  # the public names of each package, for recipes and users
    "chat": "Chat Conversation Partner load",
    "data": "Rows SPLITS dolly duplicates held_out instructions mtnt normalize_punctuation one_line "
    "open_pairs overlap pairs parallel summary translation_splits",
    "generate": "Answer Banned Beam Chain Contrastive Filter Forced Greedy MinP Prompt "
    "RepetitionPenalty Sample TopK TopP generate of_rows stream write",
    "models": "Base attach_lora load load_config load_lora load_tokenizer summary train_all",
    "plan": "Plan check_memory checked of_run plan_of",
    "rewards": "Guards Reward Vitals Watch chrf_of language length matches no_repetition number_of "
    "weighted",
    "runs": "Finished Opened Run Target check_folder find finish finished load pull push recipe "
    "start",
    "score": "Comparison decoding documents following images instructions loss reasoning score top translation",
    "text": "Encoded Template encode_rows encode_splits",
    "train": "Trained deadline sft",
}
LONG_FILE, LONG_FUNCTION = 330, 80  # lines
LONGER = {"ft.train.sft.sft": 125}  # its signature and what the settings mean are half of it
HEAVY = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "huggingface_hub"}
HEAVY |= {"starlette", "uvicorn", "llguidance"}
HEAVY |= {"unsloth", "matplotlib", "numpy", "sacrebleu", "rich", "pandas", "pyarrow"}
# subclasses of TRL's, transformers' and torch's classes, imported where they are needed; all kernels too
OPEN = {"ft.train.trainer", "ft.train.journal", "ft.rewards.trl_trainers", "ft.minigpt"}
OPEN |= {"ft.chat.openai_server", "ft.chat.openai_gate"}  # an app of Starlette, for `ft serve`


def name_of(path: Path) -> str:
    """`ft.text.tokens` of its file, `ft.text` of a package's face."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Modules of ft that a file imports, lazily too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ft":
            inner = {f"{node.module}.{a.name}" for a in node.names}
            found |= {name if name in MODULES else node.module for name in inner}
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name.split(".")[0] == "ft"}
    return found - {"ft"}


def station(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("name", [n for n in MODULES if n not in {"ft", "ft.__main__"}])
def test_imports_run_down_the_table(name):
    own = station(name)
    allowed = MAY_IMPORT.get(own, set(MAY_IMPORT)) | {own}  # a verb may import all
    wrong = {m for m in imported(MODULES[name]) if station(m) not in allowed | FREE}
    assert not wrong, f"{name} imports upwards"


def test_the_table_has_no_cycle():
    seen: set[str] = set()
    while len(seen) < len(MAY_IMPORT):
        ready = {name for name in MAY_IMPORT if MAY_IMPORT[name] <= seen} - seen
        assert ready, f"a cycle among {set(MAY_IMPORT) - seen}"
        seen |= ready
    assert set(MAY_IMPORT) >= set(PACKAGES) - {"cli"}


def test_modules_have_no_cycle():
    graph = {n: imported(p) & set(MODULES) - {n} for n, p in MODULES.items() if n != "ft.__main__"}
    faces = {n for n, p in MODULES.items() if p.name == "__init__.py"}
    seen: set[str] = set(faces)
    while len(seen) < len(graph):
        ready = {name for name in graph if graph[name] <= seen} - seen
        assert ready, f"a cycle among {set(graph) - seen}"
        seen |= ready


@pytest.mark.parametrize("name", [n for n in MODULES if MODULES[n].name != "__init__.py"])
def test_inside_ft_no_face_is_imported(name):
    faces = {n for n, p in MODULES.items() if p.name == "__init__.py"}
    assert not imported(MODULES[name]) & faces


@pytest.mark.parametrize("name", [n for n in MODULES if n.startswith("ft.cli.")])
def test_no_verb_imports_another(name):
    others = {m for m in imported(MODULES[name]) if station(m) == "cli"}
    assert others <= {"ft.cli.console"}


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.py")), ids=lambda p: p.stem)
def test_a_recipe_imports_ft_and_no_other_recipe(path):
    others = {p.stem for p in path.parent.glob("*.py")}
    names = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert not names & others


def heavy_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_ft_loads_nothing_heavy():
    names = [n for n in MODULES if n not in OPEN and not n.startswith("ft.kernels.")]
    assert heavy_after("\n".join(f"import {name}" for name in names)) == set()


LATE = [n for n in MODULES if n not in OPEN and n != "ft" and station(n) != "kernels"]


@pytest.mark.parametrize("name", LATE)
def test_kernels_are_imported_where_they_are_needed(name):
    top = ast.parse(MODULES[name].read_text()).body
    at_once = {n.module for n in top if isinstance(n, ast.ImportFrom) and n.module}
    kernels = {module for module in at_once if module.startswith("ft.kernels")}
    assert not kernels, f"{name} would load torch, which a kernel may import"


def test_that_test_can_fail():
    assert heavy_after("import numpy") == {"numpy"}


@pytest.mark.parametrize("name", list(MODULES))
def test_each_file_opens_with_one_sentence(name):
    text = ast.get_docstring(ast.parse(MODULES[name].read_text())) or ""
    first = text.split("\n\n")[0]
    assert first.endswith(".")
    assert len(first) < 140


@pytest.mark.parametrize("name", list(MODULES))
def test_a_file_can_be_read_in_one_sitting(name):
    text = MODULES[name].read_text()
    assert len(text.splitlines()) <= LONG_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LONGER.get(f"{name}.{node.name}", LONG_FUNCTION), node.name


def test_the_house_has_twelve_packages_and_few_modules():
    assert len(PACKAGES) == 12
    assert len(list((ROOT / "ft").glob("*.py"))) <= 7


@pytest.mark.parametrize("name", PACKAGES)
def test_a_face_shows_its_public_names_and_nothing_else(name):
    tree = ast.parse(MODULES[f"ft.{name}"].read_text())
    shown = {
        a.asname or a.name for n in tree.body if isinstance(n, ast.ImportFrom) for a in n.names
    }
    said = [ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign)]
    assert shown == set(FACES.get(name, "").split())
    assert [set(names) for names in said] == [shown] * bool(shown)


@pytest.mark.parametrize("name", [*PACKAGES, "config", "machine", "minigpt"])
def test_a_packages_first_sentence_is_its_line_in_the_architecture(name):
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    sentence = (ast.get_docstring(ast.parse(MODULES[f"ft.{name}"].read_text())) or "").split(
        "\n\n"
    )[0]
    line = " ".join(sentence.rstrip(".").split())
    assert f"| `{name}` | {line[0].lower()}{line[1:]} |" in text
