"""Epochs are permutations by seed alone, of like lengths where padded, and fill whole batches with blanks."""

import torch

from ft.text.order import Order, blank, is_blank


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
