"""English that every machine with Python has: what the standard library says of itself, read without importing it."""

import ast
import json
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError

EDITION = 1  # raise it when the choice of paragraphs changes
NOT_MEANT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}


def path() -> Path:
    """The text as jsonl in the user's cache, written on first use: 1.2 MB, in a few seconds."""
    file = files.cache_dir() / f"builtin-{EDITION}-python-{platform.python_version()}.jsonl"
    if not file.exists():
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in documents()]
        if not rows:
            raise UserError(
                "this Python comes without the source of its library, so there is no built-in text: "
                "name a corpus of your own with --data"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(file, "".join(f"{row}\n" for row in rows))
    return file


def documents() -> Iterator[str]:
    """The prose of docstrings and of the language reference that `help()` shows, a paragraph a line."""
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        if NOT_MEANT & set(file.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates, and tests of the parser
            continue
        for text in _reference(tree) if file.parent.name == "pydoc_data" else _docstrings(tree):
            paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
            new = [part for part in paragraphs if _is_prose(part) and part not in seen]
            seen.update(new)
            if new:
                yield "\n".join(new)


def _docstrings(node: Any) -> Iterator[str]:
    """Those of a module, its classes and their methods, and its functions."""
    yield ast.get_docstring(node) or ""
    for part in node.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(part)


def _reference(tree: ast.Module) -> Iterator[str]:
    """The values of the dictionary in ``pydoc_data/topics.py``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _is_prose(text: str) -> bool:
    """Whole sentences, and neither code nor a table."""
    plain = sum(c.isalpha() or c in " ,.'" for c in text)
    return len(text) >= 60 and text[-1] in ".!?:)" and plain > 0.93 * len(text)
