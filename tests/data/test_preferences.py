"""Preferences and prompts in each format: what a row becomes, and what is refused by name."""

import json

import pytest

from ft.data.preferences import answered, preferences, prompts
from ft.errors import UserError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


ASKED = [user("Name a colour.")]
BLUE, SEVEN = [assistant("Blue.")], [assistant("Seven.")]
HH = "\n\nHuman: Name a colour.\n\nAssistant: "


def write(place, *rows):
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": ASKED, "chosen": BLUE, "rejected": SEVEN},
        {"prompt": ASKED, "chosen": "Blue.", "rejected": "Seven."},
        {"prompt": ASKED, "chosen": BLUE[0], "rejected": SEVEN[0]},
        {"messages": ASKED, "chosen": BLUE, "rejected": SEVEN},
        {"chosen": ASKED + BLUE, "rejected": ASKED + SEVEN},
        {"prompt": "Name a colour.", "chosen": ASKED + BLUE, "rejected": ASKED + SEVEN},
        {"messages": ASKED + BLUE, "chosen": ASKED + BLUE, "rejected": ASKED + SEVEN},
        {"chosen": f"{HH}Blue.", "rejected": f"{HH}Seven.", "label": None},
        {"prompt": "Name a colour.", "chosen": f"{HH}Blue.", "rejected": f"{HH}Seven."},
        {"source": "hh", "chosen": f"{HH}Blue.", "rejected": f"{HH}Seven."},
        {"source": "flan", "chosen": ASKED + BLUE, "rejected": ASKED + SEVEN},
        {"source": "flan", "prompt": ASKED, "chosen": BLUE, "rejected": SEVEN},
    ],
)
def test_each_way_to_write_a_conversation_is_the_same_row(row, tmp_path):
    (found,) = preferences(write(tmp_path, row))
    assert found == {"messages": ASKED, "chosen": "Blue.", "rejected": "Seven."}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a colour."},
        {"instruction": "Name a colour.", "input": ""},
        {"question": "Name a colour.", "context": None},
    ],
)
def test_each_way_to_write_a_text_is_the_same_row(row, tmp_path):
    (found,) = preferences(write(tmp_path, row | {"chosen": "Blue.", "rejected": ""}))
    assert found == {
        "instruction": "Name a colour.",
        "context": "",
        "chosen": "Blue.",
        "rejected": "",
    }


def test_what_goes_with_a_prompt_is_kept(tmp_path):
    answers = {"chosen": "Blue.", "rejected": "Seven."}
    rows = write(
        tmp_path,
        {"system": "Be brief.", "question": "A colour?", "input": "of the sky"} | answers,
        {"system": "Be brief.", "prompt": ASKED} | answers | {"score_chosen": 8.5, "id": 3},
    )
    found = preferences(rows)
    assert found[0]["system"] == "Be brief."
    assert found[0]["context"] == "of the sky"
    assert found[1]["messages"][0] == {"role": "system", "content": "Be brief."}
    assert found.ignored == ("score_chosen", "id")


def test_a_run_that_translates_is_asked_sources(tmp_path):
    answers = {"chosen": "Bleu.", "rejected": "Sept."}
    rows = [{"prompt": "Blue."}, {"source": "Blue."}, {"prompt": [user("Blue.")]}]
    found = preferences(write(tmp_path, *(row | answers for row in rows)), asked="source")
    assert list(found) == [{"source": "Blue."} | answers] * 3
    assert answered(found[0], "Bleu.") == {"source": "Blue.", "target": "Bleu."}


@pytest.mark.parametrize(("label", "wanted"), [(True, True), (0, False), ("False", False)])
def test_single_answers_have_a_label(label, wanted, tmp_path):
    text = {"prompt": "Name a colour.", "completion": "Blue.", "label": label}
    talk = {"prompt": ASKED, "completion": BLUE, "label": label}
    one, other = preferences(write(tmp_path, text, talk))
    assert one["label"] is other["label"] is wanted
    assert one["completion"] == other["completion"] == "Blue."
    assert answered(other, "Blue.") == {"messages": ASKED + BLUE}


PAIR = {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Seven."}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (PAIR | {"rejected": " Blue."}, "chosen equals rejected, 'Blue.': nothing is preferred"),
        (PAIR | {"chosen": " "}, "chosen is empty"),
        (PAIR | {"label": True}, "a label beside chosen and rejected"),
        (PAIR | {"prompt": None}, "no prompt: give it as a column prompt"),
        (PAIR | {"images": ["a.png"]}, "the column 'images' has no place"),
        (PAIR | {"tools": [{"name": "f"}]}, "the column 'tools' has no place"),
        (PAIR | {"context": "c", "input": "d"}, "both 'context' and 'input'"),
        (PAIR | {"prompt": ASKED, "context": "c"}, "the column 'context' has no place beside"),
        (
            PAIR | {"prompt": [{"role": "system", "content": "s"}, *ASKED], "system": "t"},
            "the system column is not the conversations' system message",
        ),
        (
            {"chosen": [*ASKED, BLUE[0] | {"weight": 0}], "rejected": ASKED + SEVEN},
            "chosen: message 2 has a weight of 0, which has no place",
        ),
        (PAIR | {"weight": 0.5}, "weight is 0.5: preferences have no weights"),
        (PAIR | {"sample_weight": 2}, "sample_weight is 2: preferences have no weights"),
        (PAIR | {"system_prompt": "s"}, "the column 'system_prompt' has no place"),
        (PAIR | {"System": "s"}, "the column 'System' has no place"),
        (PAIR | {"videos": ["v"]}, "the column 'videos' has no place"),
        (PAIR | {"instruction": "Sing."}, "here is 'prompt' and 'instruction'"),
        (
            {"prompt": "Sing.", "chosen": ASKED + BLUE, "rejected": ASKED + SEVEN},
            "prompt is not what the conversations ask, 'Name a colour.'",
        ),
        (
            {"chosen": ASKED + BLUE, "rejected": [user("Sing."), *SEVEN]},
            "chosen and rejected answer different conversations",
        ),
        ({"chosen": BLUE, "rejected": SEVEN}, "no prompt: chosen and rejected are answers alone"),
        ({"prompt": "a", "completion": "b", "label": 2}, "label is 2; allowed are true"),
        ({"prompt": "a", "completion": "b"}, "no label; a single answer has"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "one answer where earlier rows have two",
        ),
        ({"text": "a"}, "the columns 'text' are of no known format"),
    ],
)
def test_a_bad_row_is_named_or_skipped(row, said, tmp_path):
    file = write(tmp_path, PAIR, row)
    with pytest.raises(UserError, match=f"rows.jsonl:2: .*{said}"):
        preferences(file)
    assert preferences(file, on_bad_row="skip").skipped == 1


def test_prompts_keep_what_a_reward_reads(tmp_path):
    file = write(
        tmp_path,
        {"prompt": "2 + 2?", "solution": 4},
        {"messages": [*ASKED, *BLUE]},
        {"instruction": "Sing.", "output": "La."},
    )
    one, talk, song = prompts(file)
    assert one == {"instruction": "2 + 2?", "context": "", "solution": 4}
    assert talk == {"messages": ASKED, "response": "Blue."}
    assert song["response"] == "La."


def test_what_says_nothing_is_listed(tmp_path):
    row = {"source": "flan", "id": 3, "weight": 1}
    row |= {"chosen": ASKED + [BLUE[0] | {"model": "m", "weight": 1}], "rejected": ASKED + SEVEN}
    assert preferences(write(tmp_path, row)).ignored == ("source", "id", "chosen.model")
    assert (
        preferences(write(tmp_path, {"source": "Bleu.", "chosen": "a", "rejected": "b"})).ignored
        == ()
    )


def test_a_prompt_in_sharegpts_words_has_its_answer(tmp_path):
    talk = [{"from": "human", "value": "Name a colour."}, {"from": "gpt", "value": "Blue."}]
    (found,) = prompts(write(tmp_path, {"messages": talk, "source": "flan"}))
    assert found == {"messages": ASKED, "response": "Blue."}


def test_a_run_that_translates_is_not_asked_something_else_than_the_source(tmp_path):
    with pytest.raises(UserError, match="one column of a prompt is needed"):
        preferences(write(tmp_path, PAIR | {"source": "Blue."}), asked="source")


def test_cells_of_a_table_have_conversations_as_json(tmp_path):
    import csv

    file = tmp_path / "a.csv"
    wanted = {"messages": ASKED, "chosen": "Blue.", "rejected": "Seven."}
    texts = [json.dumps(turns) for turns in (ASKED, BLUE, SEVEN, ASKED + BLUE, ASKED + SEVEN)]
    for prompt, chosen, rejected in (texts[:3], [ASKED[0]["content"], *texts[3:]]):
        with file.open("w", newline="") as stream:
            rows = [["prompt", "chosen", "rejected"], [prompt, chosen, rejected]]
            csv.writer(stream).writerows(rows)
        assert preferences(file).rows == [wanted]
    plain = {"prompt": "Write JSON.", "chosen": texts[0], "rejected": "no"}
    (found,) = preferences(write(tmp_path, plain))
    assert found["chosen"] == texts[0]
