"""Kinds of noise and loops, on texts that people and models write."""

import pytest

from ft.text.noise import kinds, loops


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("This is a calm sentence about NATO's budget.", {"caps"}),
        ("The USA and the EU agreed on $1,000 at 8 o'clock: it went well (mostly).", set()),
        ("I think that I am right.", set()),
        ("i think so", {"typos"}),
        ("STOP doing that 😂", {"caps", "emoji"}),
        ("nice one :) <3", {"emoji"}),
        ("see http://x.org/a, or 3:30", set()),
        ("idk what ur talking about lol", {"slang"}),
        ("i dont know, definately not", {"typos"}),
        ("sooooo good", {"typos"}),
        ("L'ÉCOLE EST FINIE", {"caps"}),
        ("Ils sont là.", set()),
    ],
)
def test_kinds_of_noise(text, expected):
    assert kinds(text) == expected


def test_a_loop_is_four_words_that_come_four_times():
    assert loops("bon, " * 7)
    assert not loops("bon, " * 6)  # three times four words, each one on
    assert loops("je ne sais pas " * 4)
    assert not loops("je ne sais pas " * 3)
    assert not loops("")
    assert loops("私は猫です。" * 5)
    assert not loops("私は猫です。" * 4)  # three times eight characters, each one on
    assert not loops("Noooooooon")
    assert not loops("a sentence that says something once, and then stops")
