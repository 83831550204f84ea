"""GSM8K as rows: steps and the final number, its splits, and rows that have no number."""

import json
from fractions import Fraction

import pytest

from ft.data import gsm8k
from ft.data.gsm8k import final_number
from ft.errors import UserError


def write(file, *rows):
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows]
    file.write_text("".join(lines))
    return file


def test_an_answer_becomes_its_steps_and_the_final_number(tmp_path):
    file = write(
        tmp_path / "a.jsonl",
        (" How many? ", "48/2 = <<48/2=24>>24 clips.\n24*50=<<24*50=1200>>1200.\n#### 1,200"),
        ("And now?", "#### -0.5"),
    )
    first, second = gsm8k.gsm8k(file)
    assert first["instruction"] == "How many?"
    assert first["response"] == "48/2 = 24 clips.\n24*50=1200.\nANSWER: 1200"
    assert second["response"] == "ANSWER: -0.5"


@pytest.mark.parametrize(
    ("question", "answer", "said"),
    [
        ("q", "24 clips", r"a\.jsonl:2: answer has no #### with its final number behind"),
        ("q", "24 clips\n#### many", r"a\.jsonl:2: .* no number behind its ####, but 'many'"),
        ("q", "24 clips\n####", r"a\.jsonl:2: .* no number behind its ####, but ''"),
        ("q", "", r"a\.jsonl:2: answer is empty"),
        (" ", "1\n#### 1", r"a\.jsonl:2: question is empty"),
        (None, None, r"question is not a string but null; answer is not a string but null"),
    ],
)
def test_a_row_without_a_final_number_is_named(question, answer, said, tmp_path):
    file = write(tmp_path / "a.jsonl", ("1 + 1?", "2\n#### 2"), (question, answer))
    with pytest.raises(UserError, match=said):
        gsm8k.gsm8k(file)
    rows = gsm8k.gsm8k(file, on_bad_row="skip")
    assert (len(rows), rows.skipped) == (1, 1)


def test_other_columns_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"problem": "1 + 1?", "solution": "2"}\n')
    with pytest.raises(UserError, match="no column 'question'; no column 'answer'"):
        gsm8k.gsm8k(file)


def test_validation_questions_are_held_out_of_training(tmp_path):
    write(tmp_path / "train.jsonl", *[(f"{i} + 1?", f"#### {i + 1}") for i in range(20)])
    write(tmp_path / "test.jsonl", ("5 + 5?", "#### 10"))
    found = gsm8k.splits(tmp_path, valid_rows=4, seed=1)
    assert {split: len(rows) for split, rows in found.items()} == {
        "train": 16,
        "valid": 4,
        "test": 1,
    }
    asked = {split: {row["instruction"] for row in rows} for split, rows in found.items()}
    assert not asked["train"] & asked["valid"]
    assert asked["test"] == {"5 + 5?"}
    other = gsm8k.splits(tmp_path, valid_rows=4, seed=2)
    assert {row["instruction"] for row in other["valid"]} != asked["valid"]


def test_a_file_has_no_splits_and_a_folder_needs_both(tmp_path):
    file = write(tmp_path / "train.jsonl", ("1?", "#### 1"), ("2?", "#### 2"))
    with pytest.raises(UserError, match="is one file; name the folder"):
        gsm8k.splits(file, valid_rows=1, seed=0)
    with pytest.raises(UserError, match=r"test\.jsonl"):
        gsm8k.splits(tmp_path, valid_rows=1, seed=0)
    with pytest.raises(UserError, match="split is 'valid'"):
        gsm8k.gsm8k(tmp_path, split="valid")


@pytest.mark.real
def test_every_row_of_gsm8k_ends_in_its_own_number(shared):
    for split, count in (("train", 7473), ("test", 1319)):
        rows = gsm8k.gsm8k(shared / "data" / "gsm8k", split=split)
        assert len(rows) == count
        raw = (shared / "data" / "gsm8k" / f"{split}.jsonl").read_text().splitlines()
        for row, line in zip(rows, raw, strict=True):
            assert final_number(row["response"]) == final_number(json.loads(line)["answer"])
            assert "<<" not in row["response"]


NUMBERS = [
    ("ANSWER: 144", 144),
    ("12 dozen make 144.\n#### 144", 144),
    ("so 5 + 6\nANSWER: 11.", 11),
    ("answer:11", 11),
    ("**ANSWER:** 11", 11),
    ("ANSWER: **11**", 11),
    ("ANSWER:\n11\n", 11),
    ("ANSWER: 1,234", 1234),
    ("ANSWER: 1,234,567.50", Fraction(2469135, 2)),
    ("ANSWER: 1 234 567", 1234567),
    ("ANSWER: 1\u202f234", 1234),
    ("ANSWER: 1'234", 1234),
    ("ANSWER: 1{,}234", 1234),
    ("ANSWER: 12,34", Fraction("12.34")),
    ("ANSWER: 3,5", Fraction("3.5")),
    ("ANSWER: $18", 18),
    ("ANSWER: -$18", -18),
    ("ANSWER: $-18", -18),
    ("ANSWER: \\$18.00", 18),
    ("ANSWER: 18 dollars a day for 7 days", 18),
    ("ANSWER: 5km/h", 5),
    ("ANSWER: 50%", 50),
    ("ANSWER: −7", -7),
    ("ANSWER: 3/4", Fraction(3, 4)),
    ("ANSWER: 1 1/2 cups", Fraction(3, 2)),
    ("ANSWER: -1 1/2", Fraction(-3, 2)),
    ("ANSWER: 1½", Fraction(3, 2)),
    ("ANSWER: ½", Fraction(1, 2)),
    ("ANSWER: \\frac{3}{4}", Fraction(3, 4)),
    ("\\boxed{42}", 42),
    ("ANSWER: .5", Fraction(1, 2)),
    ("ANSWER: 1.5e3", 1500),
    ("ANSWER: 2e3", 2000),
    ("ANSWER: 12 * 12 = 144 eggs", 144),
    ("ANSWER: 007", 7),
    ("ANSWER: １４４", 144),
    ("ANSWER: about 30 or 40", 30),
    ("#### 5\nANSWER: 6", 6),
    ("ANSWER: 6\nANSWER: none", None),
    ("ANSWER: 1/0", None),
    ("ANSWER: " + "9" * 6000, None),
    ("ANSWER:", None),
    ("ANSWER: many", None),
    ("it is 144", None),
    ("", None),
    ("### 12", None),
]


@pytest.mark.parametrize(("text", "value"), NUMBERS)
def test_the_final_number(text, value):
    assert final_number(text) == value


def test_a_text_without_a_mark_answers_with_its_last_number_where_that_is_asked_for():
    assert final_number("2 and 3 make 5 apples.", anywhere=True) == 5
    assert final_number("ANSWER: 4. Is 5 right?", anywhere=True) == 4
    assert final_number("none", anywhere=True) is None
