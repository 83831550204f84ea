"""Rows: a sequence that knows its origin, and what two splits share."""

import pytest

from ft.data.doubles import duplicates, overlap
from ft.data.rows import Rows, summary
from ft.errors import UserError

ROW = {"source": "idk lol", "target": "jsp mdr"}
OTHER = {"source": 'he said "hi', "target": 'il a dit "salut, ça va'}


def rows_of(*rows: dict[str, str]) -> Rows:
    return Rows(list(rows), "here", "0")


def test_rows_are_a_sequence_with_an_origin() -> None:
    rows = Rows([ROW, OTHER], "here", "0", 1)
    assert (len(rows), rows[1], rows[:1], list(rows)) == (2, OTHER, [ROW], [ROW, OTHER])
    assert ROW in rows
    first = rows.head(1)
    assert (first.rows, first.skipped) == ([ROW], 1)
    assert first.origin == "the first 1 rows of here"
    assert first.sha256 not in (rows.sha256, rows.head(0).sha256)
    assert rows.head(2) is rows
    both = rows + first
    assert (both.rows, both.skipped) == ([ROW, OTHER, ROW], 2)
    assert both.origin == "here + the first 1 rows of here"
    assert both.sha256 != (first + rows).sha256


def test_overlap_disregards_case_and_spaces() -> None:
    train = rows_of(ROW, OTHER, {"source": " IDK   Lol", "target": "x"})
    assert overlap(train, rows_of({"source": "idk lol", "target": "y"})) == [0, 2]
    assert overlap(train, rows_of(), rows_of(OTHER)) == [1]
    assert overlap(train) == []


def test_a_sample_is_of_its_seed_and_keeps_the_order():
    rows = Rows([{"source": str(i), "target": "x"} for i in range(50)], "numbers", "hash")
    some = rows.sample(10, seed=1)
    assert list(some) == list(rows.sample(10, seed=1))
    assert list(some) != list(rows.sample(10, seed=2))
    assert [int(row["source"]) for row in some] == sorted(int(row["source"]) for row in some)
    assert some.sha256 != rows.sample(10, seed=2).sha256
    assert "10 rows drawn by seed 1" in some.origin
    assert rows.sample(99, seed=1) is rows


def test_changed_targets_are_named_and_hashed():
    rows = Rows([{"source": "a", "target": "b"}], "letters", "hash").map_targets(str.upper)
    assert list(rows) == [{"source": "a", "target": "B"}]
    assert rows.origin == "letters (upper)"
    assert rows.sha256 != "hash"


def test_the_summary_counts_each_split_and_names_what_stands_twice():
    train = rows_of(ROW, OTHER, {"source": " IDK   Lol", "target": "x"}, OTHER)
    lines = summary({"train": train, "test": rows_of(ROW)}, "; mend it").splitlines()
    assert [line.split()[:3] for line in lines[:2]] == [
        ["train", "4", "rows"],
        ["test", "1", "rows"],
    ]
    assert lines[0].endswith(train.origin)
    assert lines[2:] == [
        "note: 1 training rows are there twice, 2 ask what a held-out row asks; mend it"
    ]
    assert "note" not in summary({"train": rows_of(ROW), "test": rows_of(OTHER)})


def test_rows_with_images_ask_by_image_and_prompt():
    one = {"images": ["a.png"], "prompt": "What is it?", "completion": "A cat.", "where": "1"}
    other = one | {"images": ["b.png"], "where": "2"}
    assert overlap(rows_of(one, other), rows_of(other | {"completion": "A dog."})) == [1]
    assert duplicates(rows_of(one, other, one | {"where": "3"})) == [2]


def test_bad_rows_count_once_among_splits():
    rows = Rows([{"source": str(i), "target": "x"} for i in range(9)], "numbers", "hash", skipped=2)
    train, held = rows.split(4, seed=1)
    valid, test = held.split(2, seed=1)
    assert [len(part) for part in (train, valid, test)] == [5, 2, 2]
    assert [part.skipped for part in (train, valid, test)] == [2, 0, 0]


def test_more_held_out_rows_than_there_are_name_what_to_lower() -> None:
    told = "9 rows are to be held out of the 2 of here; that must leave some to train on: give more rows, or lower --eval-limit"
    with pytest.raises(UserError, match=told):
        rows_of(ROW, OTHER).split(9, 0, "--eval-limit")
