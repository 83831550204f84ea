"""Rewards: tables of cases, the ugly ones included, and what must stop a run."""

import math

import pytest

from ft.errors import UserError
from ft.score import rewards
from ft.score.rewards import Reward


@pytest.mark.parametrize(
    ("text", "reference", "value"),
    [
        ("ANSWER: $1,200.00", "steps\n#### 1200", 1.0),
        ("ANSWER: 0.75", "3/4", 1.0),
        ("ANSWER: 75%", "0.75", 0.0),
        ("1200", "#### 1200", 0.0),
        ("ANSWER: 1201", "#### 1,200", 0.0),
    ],
)
def test_the_same_number_however_it_is_written(text, reference, value):
    assert rewards.same_number(text, reference) == value


def test_a_reference_without_a_number():
    with pytest.raises(UserError, match="'many' holds no final number"):
        rewards.same_number("ANSWER: 3", "many")


@pytest.mark.parametrize(
    ("text", "reference", "low", "high"),
    [
        ("le chat dort", "le chat dort", 1.0, 1.0),
        ("", "le chat dort", 0.0, 0.0),
        ("xyz", "le chat dort", 0.0, 0.0),
        ("le chat", "le chat dort", 0.3, 0.9),
        ("le chat dort " * 20, "le chat dort", 0.05, 0.7),
        ("LE CHAT DORT", "le chat dort", 0.0, 0.05),
        ("😀", "😀", 1.0, 1.0),
    ],
)
def test_chrf(text, reference, low, high):
    assert low <= rewards.chrf(text, reference) <= high


def test_chrf_is_that_of_sacrebleu():
    import sacrebleu

    pair = ("je ne sais pas trop", "je sais pas vraiment, lol")
    wanted = sacrebleu.sentence_chrf(pair[0], [pair[1]]).score
    assert rewards.chrf(*pair) == pytest.approx(wanted / 100)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Thought: so\nANSWER: 3", 1.0),
        ("ANSWER: 3", 0.0),
        ("Thought: so\nANSWER: 3\nand more", 0.0),
        ("", 0.0),
    ],
)
def test_a_format(text, value):
    assert rewards.matches(text, r"Thought: .+\nANSWER: \d+") == value


def test_a_format_that_is_none():
    with pytest.raises(UserError, match="'\\(' is no regular expression"):
        rewards.matches("a", "(")


@pytest.mark.parametrize(
    ("text", "value"),
    [("abc", 1.0), ("ab", 1.0), ("abcd", 1.0), ("a", 0.5), ("", 0.0), ("   ", 0.0), ("a" * 8, 0.5)],
)
def test_length(text, value):
    assert rewards.length(text, 2, 4) == value


def test_lengths_that_cannot_be():
    with pytest.raises(UserError, match="length 5 to 4"):
        rewards.length("abc", 5, 4)


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("", 1.0, 1.0),
        ("oui", 1.0, 1.0),
        ("Je ne sais pas ce que tu veux dire, mais c'est drôle.", 0.95, 1.0),
        ("je ne sais pas " * 20, 0.0, 0.06),
        ("ha" * 30, 0.0, 0.05),
        ("!" * 60, 0.0, 0.03),
        ("私は猫です" * 12, 0.0, 0.12),
        ("non non non non", 0.4, 0.7),
    ],
)
def test_repetition(text, low, high):
    assert low <= rewards.no_repetition(text) <= high


@pytest.mark.parametrize(
    ("text", "code", "low", "high"),
    [
        ("Je ne sais pas ce que tu veux dire.", "fr", 0.99, 1.0),
        ("Je ne sais pas ce que tu veux dire.", "en", 0.0, 0.01),
        ("I don't know what you mean by that", "en", 0.99, 1.0),
        ("I don’t know what you mean by that", "fr", 0.0, 0.01),
        ("C'EST PAS POSSIBLE", "fr", 0.99, 1.0),
        ("Il m’a dit “get lost” and he left", "fr", 0.2, 0.8),
        ("これは猫です", "ja", 0.99, 1.0),
        ("これは猫です", "fr", 0.0, 0.01),
        ("Réponse", "fr", 0.99, 1.0),
        ("lol", "fr", 0.5, 0.5),
        ("😀 42 !!!", "en", 0.5, 0.5),
        ("https://t.co/x1", "fr", 0.5, 0.5),
        ("", "fr", 0.0, 0.0),
        ("  \n", "fr", 0.0, 0.0),
    ],
)
def test_language(text, code, low, high):
    assert low <= rewards.language(text, code) <= high


def test_a_language_that_is_not_known():
    with pytest.raises(UserError, match="language 'fre': one of en, fr, ja. Did you mean 'fr'"):
        rewards.language("a", "fre")


def test_a_weighted_sum():
    short = Reward("short", lambda text, _: rewards.length(text, 1, 4))
    both = rewards.weighted({rewards.chrf_of(): 2.0, short: -0.5})
    assert both.name == "2 chrf + -0.5 short"
    assert both("chat", {"target": "chat"}) == pytest.approx(1.5)
    with pytest.raises(UserError, match="not all 0"):
        rewards.weighted({short: 0.0})
    with pytest.raises(UserError, match="finite"):
        rewards.weighted({short: math.nan})


def test_rewards_that_read_the_row():
    assert rewards.chrf_of()("le chat", {"target": "le chat"}) == 1.0
    assert rewards.number_of()("ANSWER: 4", {"answer": "#### 4"}) == 1.0
    with pytest.raises(UserError, match="'target', which the row does not have; it has targets"):
        rewards.chrf_of()("le chat", {"targets": "le chat"})


def test_a_reward_that_raises():
    def bad(text, row):
        return 1 / len(text)

    with pytest.raises(UserError, match="reward 'bad' raised ZeroDivisionError.*answer was ''"):
        Reward("bad", bad)("", {"source": "a"})


@pytest.mark.parametrize("value", [math.nan, math.inf, None, "1"])
def test_a_reward_that_is_no_number(value):
    with pytest.raises(UserError, match="reward 'bad' is .* for the answer 'x'.*finite"):
        Reward("bad", lambda *_: value)("x", {})


def test_a_reward_may_answer_with_whole_numbers():
    assert Reward("right", lambda text, _: text == "x")("x", {}) == 1.0
    assert Reward("count", lambda text, _: len(text))("abc", {}) == 3.0


def test_rewards_of_a_batch_that_are_all_the_same():
    same = Reward("same", lambda *_: 0.25)
    with pytest.raises(
        UserError, match=r"'same' is 0.25 for all 3 answers of a batch, such as 'a'"
    ):
        same.batch(["a", "b", "c"], [{}] * 3)
    assert same.batch(["a"], [{}]) == [0.25]
    assert rewards.chrf_of().batch(["a", "b"], [{"target": "a"}] * 2) == [1.0, 0.0]


def test_trl_calls_a_reward_with_columns():
    function = rewards.chrf_of().for_trl(lambda text: text.partition("\n")[0].strip())
    columns = {"prompts": ["p", "q"], "target": ["a cat", "a dog"], "trainer_state": object()}
    assert function(completions=[" a cat\nmore", "a"], **columns)[0] == 1.0
    assert function.__name__ == "chrf"
