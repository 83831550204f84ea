"""GSM8K as rows: steps and the final number, its splits, and rows that have no number."""

import json

import pytest

from ft.data import gsm8k
from ft.errors import UserError
from ft.score.rewards import final_number


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
