"""A reward of the user's own: found, called as TRL calls its reward functions, and named where it is wrong."""

import pytest

from ft.errors import UserError
from ft.files import sha256
from ft.score import own

SOURCE = """
import torch

NUMBER = 3


def short(prompts, completions, **columns):
    return [-len(text) for text in completions]


def tensor(completions):
    return torch.tensor([float(len(text)) for text in completions])


def solved(completions, solution):
    return [float(str(wanted) in text) for text, wanted in zip(completions, solution)]


def fails(completions, **columns):
    return [1 / (len(text) - 2) for text in completions]


def none(completions, **columns):
    return [None for _ in completions]


def few(completions, **columns):
    return [1.0]


def one(completions, **columns):
    return 1.0


async def late(completions, **columns):
    return [1.0 for _ in completions]
"""
ROWS = [{"instruction": f"{i}?", "context": "", "solution": i} for i in range(2)]


@pytest.fixture
def file(tmp_path):
    place = tmp_path / "mine.py"
    place.write_text(SOURCE)
    return place


def test_it_is_called_with_the_columns_that_it_names(file):
    assert own.load(f"{file}:short").values(["a", "bb"], ROWS) == [-1.0, -2.0]
    assert own.load(f"{file}:tensor")("abc", ROWS[0]) == 3.0
    assert own.load(f"{file}:solved").batch(["0", "0"], ROWS) == [1.0, 0.0]
    assert own.described(own.load(f"{file}:short"))["sha256"] == sha256(file)


def test_a_module_is_found_in_the_working_directory(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    assert own.load("mine:short")("abc", {"source": "a"}) == -3.0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("fails", "fails' raised ZeroDivisionError: .*; it was asked of the answer 'bb' to '1.'"),
        ("none", "none' is None for the answer 'a' to '0.'; it must be a finite number"),
        ("few", "few' returned 1 values for 2 answers"),
        ("one", "one' returned float, wanted is a list of numbers"),
    ],
)
def test_a_bad_function_is_one_clear_error(name, said, file):
    with pytest.raises(UserError, match=said):
        own.load(f"{file}:{name}").values(["a", "bb"], ROWS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mine.py:shrt", "no function 'shrt'; it has .*short.*Did you mean 'short'"),
        ("mine.py:NUMBER", "no function 'NUMBER'"),
        ("mine.py:late", "is an async function"),
        ("other.py:short", "there is no file other.py"),
        ("no_such_module:f", "there is no module 'no_such_module'"),
        ("broken.py:f", "broken.py raised SyntaxError"),
    ],
)
def test_what_cannot_be_found(name, said, file, monkeypatch):
    (file.parent / "broken.py").write_text("def f(:\n")
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=said):
        own.load(name)


def test_a_column_that_is_not_there(file):
    with pytest.raises(UserError, match="asks for 'solution'; there are prompts, completions"):
        own.load(f"{file}:solved").values(["a"], [{"source": "b"}])
