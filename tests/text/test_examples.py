"""Encoded examples in flat arrays: the same as lists of them, in memory and on disk."""

import os
import random

import pytest

from ft.errors import UserError
from ft.text import examples
from ft.text.examples import IGNORE, Examples, lengths_of


def some(n: int = 20) -> list[examples.Example]:
    drawn = random.Random(1)
    found = []
    for _ in range(n):
        ids = [drawn.randrange(2**18) for _ in range(drawn.randrange(1, 9))]
        found.append({"input_ids": ids, "labels": [drawn.choice((i, IGNORE)) for i in ids]})
    return found


@pytest.fixture(params=[examples.LARGE, 64, 4], ids=["memory", "both", "disk"])
def large(request, monkeypatch):
    monkeypatch.setattr(examples, "LARGE", request.param)
    return request.param


def test_they_are_the_examples_that_were_added(large):
    given = some()
    made = Examples(given)
    assert list(made) == given
    assert made == given
    assert made[3:9:2] == given[3:9:2]
    assert made[-1] == given[-1]
    assert list(lengths_of(made)) == list(lengths_of(given))
    assert made.supervised == sum(i != IGNORE for e in given for i in e["labels"])
    with pytest.raises(IndexError):
        made[len(given)]


def test_reading_and_adding_may_take_turns(large):
    given, made = some(), Examples()
    for n, example in enumerate(given):
        made.add(example["input_ids"], bytes(i != IGNORE for i in example["labels"]))
        assert made[n] == example
        assert made[0] == given[0]


def test_what_lies_on_disk_has_no_name_there(monkeypatch, tmp_path):
    monkeypatch.setattr(examples, "LARGE", 4)
    monkeypatch.setattr(examples.tempfile, "tempdir", str(tmp_path))
    made = Examples(some())
    assert made[0]
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told(monkeypatch):
    monkeypatch.setattr(examples, "LARGE", 4)

    def full():
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(examples.tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match=r"do not fit into .*: No space left.*TMPDIR"):
        Examples(some())
