"""How examples lie in rows: an epoch's order by seed alone, packing, padding, layout."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ft import data
from ft.text import batches
from ft.text.batches import Order, blank, is_blank


@given(st.lists(st.integers(1, 120), max_size=60), st.integers(1, 100))
def test_packing_keeps_each_example_once_and_within_the_row(lengths, capacity):
    rows = batches.pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
def test_best_fit_decreasing_is_within_its_proven_bound(lengths):
    rows = batches.pack(lengths, 50)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // 50) * 2
    assert len(rows) >= -(-sum(lengths) // 50)
    if len(rows) > 1:  # no two rows could have been one
        sizes = sorted(sum(lengths[i] for i in row) for row in rows)
        assert sizes[0] + sizes[1] > 50


EXAMPLES = [
    {"input_ids": [2, 5, 6, 1], "labels": [-100, -100, 6, 1]},
    {"input_ids": [2, 7, 1], "labels": [2, 7, 1]},
]


def test_a_packed_row_restarts_positions_and_masks_each_first_label():
    row = {key: value.tolist() for key, value in batches.packed_row(EXAMPLES).items()}
    # fmt: off
    assert row == {
        "input_ids":    [[2,    5,    6, 1, 2,    7, 1]],
        "position_ids": [[0,    1,    2, 3, 0,    1, 2]],
        "labels":       [[-100, -100, 6, 1, -100, 7, 1]],
    }
    # fmt: on


def test_a_padded_batch_has_the_same_keys_and_no_mask():
    batch = {key: value.tolist() for key, value in batches.padded_batch(EXAMPLES, 0).items()}
    assert batch == {
        "input_ids": [[2, 5, 6, 1], [2, 7, 1, 0]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 3]],
        "labels": [[-100, -100, 6, 1], [-100, 7, 1, -100]],
    }


def test_packed_layout_has_no_padding_and_padded_layout_one_batch():
    packed = batches.layout(EXAMPLES, packing=True, capacity=5, pad=0)
    assert sorted(row["input_ids"].shape[1] for row in packed) == [3, 4]
    assert len(batches.layout(EXAMPLES, packing=False, capacity=5, pad=0)) == 1


@pytest.mark.real
@pytest.mark.parametrize("kind", ["mtnt", "dolly"])
def test_less_than_one_percent_of_real_batches_is_padding(kind, shared):
    if kind == "mtnt":
        rows = data.mtnt("train", "en-fr", shared / "data" / "mtnt")
        lengths = [len(r["source"] + r["target"]) // 4 + 10 for r in rows]
    else:
        lines = (shared / "data/dolly/databricks-dolly-15k.jsonl").read_text().splitlines()
        lengths = [len("".join(json.loads(line).values())) // 4 for line in lines]
    lengths = [n for n in lengths if n <= 1024]
    for start in range(0, len(lengths), 8):
        batch = [{"input_ids": [5] * n, "labels": [5] * n} for n in lengths[start : start + 8]]
        rows = batches.layout(batch, packing=True, capacity=1024, pad=0)
        run = sum(row["input_ids"].numel() for row in rows)
        assert run == sum(len(e["input_ids"]) for e in batch)


def test_an_epoch_is_a_permutation_that_the_next_does_not_repeat():
    order = Order([5] * 40, seed=1)
    first = list(order)
    assert sorted(first) == list(range(40))
    assert list(order) == first
    order.epoch = 1
    assert list(order) != first
    assert list(Order([5] * 4, seed=1, shuffle=False)) == [0, 1, 2, 3]


def test_padded_batches_are_of_like_length():
    lengths = torch.randint(5, 300, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    order = list(Order(lengths, seed=1, group=8))
    assert sorted(order) == list(range(400))
    batches = [[lengths[i] for i in order[at : at + 8]] for at in range(0, 400, 8)]
    padded = sum(max(batch) * len(batch) for batch in batches)
    assert sum(lengths) / padded > 0.9


def test_the_last_batch_is_filled_with_blanks_and_the_examples_keep_their_order():
    plain, filled = Order([5] * 10, seed=1), Order([5] * 10, seed=1, multiple=4)
    assert list(filled) == [*plain, 10, 10]
    assert len(filled) == 12
    assert list(Order([5] * 8, seed=1, multiple=4)) == list(Order([5] * 8, seed=1))


def test_a_blank_supervises_nothing():
    assert is_blank(blank(0))
    assert not is_blank({"input_ids": [2, 7, 1], "labels": [-100, -100, 1]})


def test_a_packed_row_is_longer_on_a_gpu():
    assert batches.row_length("cpu") == batches.row_length("mps") == 512
    assert batches.row_length("cuda") == 8192
