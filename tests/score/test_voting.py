"""Votes, choices among chains and their accuracy at n, against numbers worked out by hand."""

import random
from fractions import Fraction

import pytest

from ft.score import voting
from ft.score.voting import Chain


def chains(*numbers, rewards=()):
    texts = [f"so.\nANSWER: {n}" if n is not None else "so." for n in numbers]
    rewards = rewards or [0.0] * len(texts)
    return [Chain(text, reward) for text, reward in zip(texts, rewards, strict=True)]


def test_votes_count_numbers_and_not_their_spelling():
    counted = voting.tally(chains("1,200", "7", "$1200.00", None, "7 apples", "1200"))
    assert counted == [(Fraction(1200), 3), (Fraction(7), 2)]


def test_of_equal_votes_the_first_written_wins_and_silence_has_none():
    assert voting.majority(chains("5", "3", "3", "5")) == 5
    assert voting.majority(chains(None, None, "4")) == 4
    assert voting.majority(chains(None)) is None
    assert voting.best(chains(None)) is None


def test_the_best_is_the_highest_reward_among_those_with_a_number():
    assert voting.best(chains("5", None, "3", rewards=(0.1, 9.0, 0.2))) == 3


def test_accuracy_at_n_by_hand():
    drawn = chains("1", "2", "1", "3", rewards=(0.1, 0.9, 0.2, 0.3))
    question = [(drawn, Fraction(1))]

    def score(choice, n):
        return voting.accuracy(question, choice, n)["score"]

    assert [score(choice, 1) for choice in voting.CHOICES] == [50, 50, 50]
    assert score("majority", 2) == 100  # 1 before 2, and 1 before 3
    assert score("best", 2) == 0
    assert score("any", 2) == 100
    assert [score(choice, 4) for choice in voting.CHOICES] == [100, 0, 100]
    assert score("any", 3) == 100  # the fourth is left over


def test_any_is_the_bound_of_every_choice_and_grows_with_n():
    draws = random.Random(0)
    questions = [
        (
            chains(*draws.choices("123456", k=16), rewards=[draws.random() for _ in range(16)]),
            Fraction(1),
        )
        for _ in range(60)
    ]
    found = {
        choice: [voting.accuracy(questions, choice, n)["score"] for n in voting.sizes(16)]
        for choice in voting.CHOICES
    }
    assert found["any"] == sorted(found["any"])
    assert found["any"][0] == found["majority"][0] == found["best"][0]
    for choice in ("majority", "best"):
        assert all(a <= b for a, b in zip(found[choice], found["any"], strict=True))
    # by chance alone: 1 - (5/6)^n
    assert found["any"][2] == pytest.approx(100 * (1 - (5 / 6) ** 4), abs=6)


@pytest.mark.parametrize(
    ("share", "trials", "low", "high"),
    [  # Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1 / 29, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_wilsons(share, trials, low, high):
    assert voting.wilson(share, trials) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"), [(0, 10, 0, 27.8), (5, 10, 23.7, 76.3), (100, 100, 96.3, 100)]
)
def test_a_share_in_per_cent(right, n, low, high):
    found = voting.per_cent(right / n, n)
    assert (found["low"], found["high"]) == (
        pytest.approx(low, abs=0.05),
        pytest.approx(high, abs=0.05),
    )


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (4, [1, 2, 4]), (10, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])]
)
def test_sizes_are_powers_of_two(n, sizes):
    assert voting.sizes(n) == sizes


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (Fraction(72), "72"),
        (Fraction(-5, 2), "-2.5"),
        (Fraction(1, 3), "0.333333"),
        (Fraction(10**400), "1" + "0" * 19 + "…"),
        (Fraction(10**400 + 1, 3), "3.33333e+399"),
    ],
)
def test_numbers_for_people(number, text):
    assert voting.shown(number) == text
