"""Each file of pairs that went wrong elsewhere is right here."""

from pathlib import Path

import pytest
from data.cases_pairs import CASES

FILES = Path(__file__).parents[1] / "fixtures" / "cases"


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    CASES[name](FILES / name)
