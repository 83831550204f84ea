"""What is right of the files of tests/fixtures/cases that concern sources of rows: file name -> check."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ft.data.instructions import dolly
from ft.data.texts import texts
from ft.errors import UserError


def raw_text(file: Path) -> None:
    """Text is learnt by the recipe for it, which the recipe for instructions names."""
    with pytest.raises(UserError, match=r"raw_text.jsonl:1: .*'text'.*recipes/text_lora.py"):
        dolly(file)
    first, second = texts(str(file))
    assert first["text"].startswith("Notes from the workshop")
    assert second["text"] == "Second note: oil the vise."


CASES: dict[str, Callable[[Path], None]] = {"raw_text.jsonl": raw_text}
