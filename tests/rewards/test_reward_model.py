"""A reward model learns which of two answers is better, and is refused where it cannot judge."""

import json

import pytest
from support import learner

from ft import __main__ as cli
from ft.errors import UserError
from ft.rewards import reward_model
from ft.runs import opened

pytestmark = learner.needs_trl
TRAINED = ["--learning-rate", "1e-2", "--epochs", "6", "--batch-size", "4", "--held-out", "0.2"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return learner.finished(tmp_path_factory.mktemp("start") / "run")


@pytest.fixture(scope="module")
def trained(start, tmp_path_factory):
    """A reward model that saw French preferred to English."""
    place = tmp_path_factory.mktemp("reward")
    rows = [
        {"source": f"the cat {i}", "chosen": f"le chat dort {i}", "rejected": f"the cat sleeps {i}"}
        for i in range(20)
    ]
    (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [str(place / "pairs.jsonl"), "--run", str(start), "--out", str(place / "model")]
    cli.main(["reward", *words, *TRAINED])
    return place


def test_it_learns_what_is_better(trained, start):
    record = json.loads((trained / "model" / reward_model.RECORD).read_text())
    assert record["accuracy"] == 1.0
    assert record["held_out"] == 4
    tokenizer = opened.load(opened.finished(start), "fp32").tokenizer
    reward = reward_model.named(str(trained / "model"), tokenizer)
    row = {"source": "the cat 99", "target": "unused"}
    assert reward("le chat dort 99", row) > reward("the cat sleeps 99", row)
    assert reward.batch(["le chat", "the cat"], [row] * 2)[0] == reward("le chat", row)
    assert reward_model.named("chrf", tokenizer)("a", {"target": "a"}) == 1.0


def test_one_of_another_tokenizer_is_refused(trained):
    from support import tiny

    other = tiny.tokenizer()
    other.add_tokens(["zwei"])
    with pytest.raises(
        UserError, match="has another tokenizer than the model that it should judge"
    ):
        reward_model.load(trained / "model", other)


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="is neither `chrf` nor a reward model's folder"):
        reward_model.named(str(tmp_path), None)


def test_a_base_without_such_a_head(folder, tmp_path):
    rows = [{"source": "a", "chosen": "b", "rejected": "c"}]
    from ft.text.prompts import translation

    with pytest.raises(UserError, match="is of type recurrent_gemma.*no model with a head"):
        reward_model.train(folder("recurrent_gemma"), translation(), rows, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_pairs_end_with_status_2(trained, start, tmp_path, capsys):
    file = tmp_path / "pairs.jsonl"
    row = {"source": "a", "chosen": "b", "rejected": "c"}
    words = ["reward", str(file), "--run", str(start), "--out", str(tmp_path / "out")]
    for lines, message in (
        ([row | {"rejected": "b"}], "chosen equals rejected"),
        ([{"source": "a", "chosen": "b"}], "no rejected; the columns are source, chosen, rejected"),
        ([row], "1 pairs are too few"),
    ):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
