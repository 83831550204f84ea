"""A run that learnt to reason: its chains, their votes and accuracy at n by hand, in `ft eval` and `ft solve`."""

import json
import random
from fractions import Fraction

import pytest
from support import finished_run, learner, recipe_runs, tiny

from ft import __main__ as cli
from ft.data import gsm8k
from ft.errors import UserError
from ft.generate.draft import Answer
from ft.runs import curves
from ft.score import reasoning, rewards
from ft.score.reasoning import Chain
from ft.text import prompts

ASK = "How many is 7 + 1?"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run whose model has learnt that every answer is 4, and its data."""
    place = tmp_path_factory.mktemp("gsm8k")
    # with larger weights than the other tests', so that logits can be as sure as an answer needs
    tiny.folder("gemma3_text", place / "base", max_position_embeddings=4096, initializer_range=0.5)
    flags = ["--max-steps", "20", "--learning-rate", "1e-2", "--lr-scheduler-type", "constant"]
    flags += ["--eval-steps", "20", "--per-device-train-batch-size", "4"]
    # such weights start worse than a guess
    recipe_runs.train("gsm8k_lora", place, *flags, "--accept-loss")
    return place


def ft(*words):
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    return stopped.value.code


def test_the_recipe_teaches_steps_and_a_number(place):
    found = json.loads((place / "run" / "run.json").read_text())["evaluation"]["test"]
    assert found["tuned"]["majority_4"]["score"] == 100
    assert found["tuned"]["answered"] > 0.5
    assert found["base"]["any_4"]["score"] == 0
    assert found["tuned"]["loss"] < 0.5 < found["base"]["loss"]
    assert found["samples"][0]["tuned"] == "2 + 2\nANSWER: 4"
    assert found["samples"][0]["base_votes"] == "no answer × 4"
    card = (place / "run" / "README.md").read_text()
    card = card.replace("\\", "")
    assert "| right (%), majority of 4 chains | 0.0 [0.0, 65.8] | 100.0 [34.2, 100.0] |" in card
    assert "chains for each question: 4" in card


def test_the_plot_is_a_picture_over_n(place):
    import matplotlib.image

    assert matplotlib.image.imread(place / "run" / "accuracy.png").shape[:2] == (600, 1050)


def test_eval_scores_as_the_run_did_and_draws_the_plot(place, tmp_path, capsys):
    words = ["eval", str(place / "run"), "--precision", "fp32"]
    out = ["--json", str(tmp_path / "a.json"), "--plot", str(tmp_path / "a.png")]
    cli.main([*words, "--n", "4", *out])
    said = capsys.readouterr().out
    record = json.loads((place / "run" / "run.json").read_text())["evaluation"]["test"]
    again = json.loads((tmp_path / "a.json").read_text())
    for values in (record, again):
        del values["seconds"]
    assert again["samples"] == record["samples"]
    assert again["tuned"]["majority_2"] == record["tuned"]["majority_2"]
    assert "test, 2 questions" in said
    assert "right, majority of 4" in said
    assert reasoning.LIKELIHOOD in said
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    cli.main([*words, "--split", "valid", "--n", "1", "--limit", "3"])
    said = capsys.readouterr().out
    assert "valid, 3 questions" in said
    assert "right, 1 chain" in said
    assert "majority of 2" not in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--n", "0"], "--n 0: it must be 1 or more"),
        (["--limit", "0"], "--limit 0: it must be 1 or more"),
        (["--batch-size", "2"], "--batch-size does not go without --tasks"),
        (["--num-fewshot", "2"], "--num-fewshot does not go without --tasks"),
        (["--tasks", "gsm8k", "--n", "4"], "--n does not go with --tasks"),
        (["--tasks", "gsm8k", "--split", "valid"], "--split does not go with --tasks"),
        (["--tasks", "gsm8k", "--max-new-tokens", "9"], "--max-new-tokens does not go with"),
        (["--data", "no.jsonl"], "no.jsonl"),
        (["--data", "no.jsonl", "--split", "valid"], "--split valid: other data"),
    ],
)
def test_options_that_do_not_fit_are_refused(words, said, place, capsys):
    assert ft("eval", str(place / "run"), *words) == 2
    assert said in capsys.readouterr().err


def test_eval_names_a_row_without_a_number(place, tmp_path, capsys):
    (tmp_path / "bad.jsonl").write_text('{"question": "1?", "answer": "1"}\n')
    assert ft("eval", str(place / "run"), "--data", str(tmp_path / "bad.jsonl")) == 2
    assert "bad.jsonl:1: answer has no ####" in capsys.readouterr().err


def test_solve_shows_the_vote_the_distribution_and_a_chain_for_each_answer(
    place, capsys, monkeypatch
):
    from ft.generate import answers

    texts = ["a\nANSWER: 9", "b\nANSWER: 1,200", "c", "d\nANSWER: 9 apples", "ANSWER: 9"]

    def written(*_, n, **__):
        return [[Answer(text, (1, 2), (-0.5, -1.5), "end") for text in texts[:n]]]

    monkeypatch.setattr(answers, "generate", written)
    words = ["solve", str(place / "run"), ASK, "--n", "5", "--precision", "fp32"]
    cli.main(words)
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:4]]
    assert rows == [
        ["9", "3", "60%", "█" * 24],
        ["1200", "1", "20%", "█" * 8],
        ["none", "1", "20%", "░" * 8],
    ]
    assert lines[lines.index("── 9, chain 1 of 5") + 1] == "a"
    assert lines[lines.index("── 1200, chain 2 of 5") + 1] == "b"
    assert lines[-1] == "ANSWER: 9  (3 of 5 chains)"
    cli.main([*words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["answer"], found["votes"]) == ("9", [["9", 3], ["1200", 1]])
    assert found["chains"][2] == {"text": "c", "number": None, "logprob": -1.0}


def test_solve_samples_the_run_and_its_base(place, capsys):
    words = ["solve", str(place / "run"), ASK, "--precision", "fp32", "--max-new-tokens", "24"]
    cli.main([*words, "--n", "6"])
    said = capsys.readouterr().out
    assert "ANSWER: 4  (" in said
    cli.main([*words, "--n", "6"])
    assert capsys.readouterr().out == said
    cli.main([*words, "--n", "2", "--base"])
    assert "no chain came to ANSWER: and a number" in capsys.readouterr().out
    cli.main(["solve", str(place / "base"), *words[2:], "--n", "2"])
    assert "no chain came to ANSWER: and a number" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--temperature", "0"], "temperature 0 writes the same chain each time"),
        (["--temperature", "-1"], "temperature = -1"),
        (["--n", "0"], "n = 0"),
        (["--max-new-tokens", "0"], "max_new_tokens = 0"),
    ],
)
def test_solve_refuses_what_cannot_vote(words, said, place, capsys):
    assert ft("solve", str(place / "run"), ASK, *words) == 2
    assert said in capsys.readouterr().err
    assert ft("solve", str(place / "run"), " ") == 2
    assert "the question is empty" in capsys.readouterr().err


def test_a_run_that_does_not_reason_is_refused(tmp_path, capsys):
    run = finished_run.write(tmp_path / "run")
    assert ft("solve", str(run), ASK) == 2
    assert "was not trained to write ANSWER:" in capsys.readouterr().err
    assert ft("eval", str(run), "--n", "4") == 2
    assert "--n is for a run of gsm8k_lora.py" in capsys.readouterr().err


def test_a_reward_chooses_the_best_and_is_named():
    short = rewards.Reward("short", lambda text, row: -len(text) - len(row["response"]))
    answer = Answer("ANSWER: 1", (5,), (-2.0,), "end")
    assert reasoning.chain(answer, {"response": "x"}, short).reward == -10
    assert reasoning.chain(answer, {"response": "x"}).reward == -2
    broken = rewards.Reward("broken", lambda text, row: float("nan"))
    with pytest.raises(UserError, match="'broken' is nan"):
        reasoning.chain(answer, {}, broken)


@learner.needs_trl
def test_a_reward_model_of_the_run_picks_the_best_chain(place, tmp_path, capsys, monkeypatch):
    from ft.generate import answers

    ask = "How many is {i} + 1?"
    rows = [
        {"instruction": ask.format(i=i), "chosen": "so\nANSWER: 8", "rejected": "no\nANSWER: 1"}
        for i in range(20)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, model = str(place / "run"), str(tmp_path / "reward")
    words = [str(tmp_path / "pairs.jsonl"), "--run", run, "--out", model, "--batch-size", "4"]
    cli.main(["reward", *words, "--learning-rate", "1e-3", "--epochs", "4"])
    assert f"use it: ft eval {run} --reward {model}" in capsys.readouterr().out

    texts = ["no\nANSWER: 1", "no\nANSWER: 1", "so\nANSWER: 8"]

    def written(*_, n, **__):
        return [[Answer(text, (1, 2), (-0.5, -1.5), "end") for text in texts[:n]]]

    with monkeypatch.context() as patched:
        patched.setattr(answers, "generate", written)
        words = ["solve", run, ASK, "--n", "3", "--precision", "fp32", "--reward", model]
        cli.main(words)
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "ANSWER: 1  (2 of 3 chains)",
            "best by the model reward: 8",
        ]
        cli.main([*words, "--json"])
        found = json.loads(capsys.readouterr().out)
        assert (found["answer"], found["best"]) == ("1", "8")
        assert found["chains"][2]["reward"] > found["chains"][0]["reward"]
    words = ["eval", run, "--reward", model, "--n", "2", "--precision", "fp32"]
    cli.main(words)
    assert "best: by the model reward" in capsys.readouterr().out
    assert ft("eval", run, "--reward", str(tmp_path)) == 2
    assert "it has no reward.json; `ft reward` makes one" in capsys.readouterr().err


@pytest.mark.real
def test_gsm8k_in_the_template_ends_with_its_number_and_stops_nowhere_before(shared):
    template = prompts.by_name("steps", tiny.tokenizer())
    for row in gsm8k.gsm8k(shared / "data" / "gsm8k", split="test"):
        pair = template.render(row)
        assert template.trim(pair["completion"]) == pair["completion"]
        assert gsm8k.final_number(pair["prompt"] + pair["completion"]) is not None


def test_the_plot_of_one_chain_is_a_point(tmp_path):
    value = {"score": 1.0, "low": 0.0, "high": 5.0}
    one = {f"{choice}_1": value for choice in reasoning.LABELS}
    result = {"sizes": [1], "n": 3, "temperature": 0.7, "base": one, "tuned": one}
    curves.accuracy(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def chains(*numbers, rewards=()):
    texts = [f"so.\nANSWER: {n}" if n is not None else "so." for n in numbers]
    rewards = rewards or [0.0] * len(texts)
    return [Chain(text, reward) for text, reward in zip(texts, rewards, strict=True)]


def test_votes_count_numbers_and_not_their_spelling():
    counted = reasoning.tally(chains("1,200", "7", "$1200.00", None, "7 apples", "1200"))
    assert counted == [(Fraction(1200), 3), (Fraction(7), 2)]


def test_of_equal_votes_the_first_written_wins_and_silence_has_none():
    assert reasoning.majority(chains("5", "3", "3", "5")) == 5
    assert reasoning.majority(chains(None, None, "4")) == 4
    assert reasoning.majority(chains(None)) is None
    assert reasoning.best(chains(None)) is None


def test_the_best_is_the_highest_reward_among_those_with_a_number():
    assert reasoning.best(chains("5", None, "3", rewards=(0.1, 9.0, 0.2))) == 3


def test_accuracy_at_n_by_hand():
    drawn = chains("1", "2", "1", "3", rewards=(0.1, 0.9, 0.2, 0.3))
    question = [(drawn, Fraction(1))]

    def score(choice, n):
        return reasoning.accuracy(question, choice, n)["score"]

    assert [score(choice, 1) for choice in reasoning.CHOICES] == [50, 50, 50]
    assert score("majority", 2) == 100  # 1 before 2, and 1 before 3
    assert score("best", 2) == 0
    assert score("any", 2) == 100
    assert [score(choice, 4) for choice in reasoning.CHOICES] == [100, 0, 100]
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
        choice: [reasoning.accuracy(questions, choice, n)["score"] for n in reasoning.sizes(16)]
        for choice in reasoning.CHOICES
    }
    assert found["any"] == sorted(found["any"])
    assert found["any"][0] == found["majority"][0] == found["best"][0]
    for choice in ("majority", "best"):
        assert all(a <= b for a, b in zip(found[choice], found["any"], strict=True))
    # by chance alone: 1 - (5/6)^n
    assert found["any"][2] == pytest.approx(100 * (1 - (5 / 6) ** 4), abs=6)


@pytest.mark.parametrize(
    ("n", "sizes"), [(1, [1]), (4, [1, 2, 4]), (10, [1, 2, 4, 8]), (16, [1, 2, 4, 8, 16])]
)
def test_sizes_are_powers_of_two(n, sizes):
    assert reasoning.sizes(n) == sizes


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
    assert reasoning.shown(number) == text
