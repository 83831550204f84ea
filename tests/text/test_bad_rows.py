"""Bad rows are an error that names them, or are left out and counted, whatever is made of rows."""

import pytest
from support import tiny

from ft.data.places import Places
from ft.data.rows import Rows
from ft.errors import UserError
from ft.rewards import drawn, start
from ft.text import documents, prompts, tokens

T, DOLLY = prompts.translation_of("en-fr"), prompts.INSTRUCTION["dolly"]
MADE = {  # what encodes rows, the template, and a row of a text
    "pairs": (tokens.encode_rows, T, lambda text: {"source": "a", "target": text}),
    "instructions": (
        tokens.encode_rows,
        DOLLY,
        lambda text: {"instruction": text, "response": "b"},
    ),
    "documents": (documents.encode, documents.TEMPLATE, lambda text: {"text": text}),
    "prompts": (start.encode, T, lambda text: {"source": text}),
    "preferences": (
        drawn.encode_preferences,
        DOLLY,
        lambda text: {"instruction": "q", "context": "", "chosen": "a", "rejected": text},
    ),
    "labels": (
        drawn.encode_preferences,
        DOLLY,
        lambda text: {"instruction": "q", "context": "", "completion": text, "label": True},
    ),
}


def rows_of(row, texts, policy):
    places = Places(("own.jsonl:",))
    places.file.extend([0] * len(texts))
    places.number.extend(range(10, 10 + len(texts)))
    return Rows([*map(row, texts)], "own", "hash", 2, places=places, on_bad_row=policy)


@pytest.mark.parametrize("kind", MADE)
def test_a_control_token_is_named_by_its_place_or_skipped(kind):
    encode, template, row = MADE[kind]
    texts, tokenizer = ["one", "two <eos> more", "three", "<bos>"], tiny.tokenizer()
    options = {"max_length": 400, "encode": encode}
    with pytest.raises(
        UserError, match=r"own\.jsonl:11, .*'<eos>'.*--on-bad-row skip \(and 1 more"
    ):
        tokens.encode_splits(
            {"train": rows_of(row, texts, "error")}, template, tokenizer, **options
        )
    given = rows_of(row, texts, "skip")
    splits, encoded = tokens.encode_splits({"train": given}, template, tokenizer, **options)
    left, found = splits["train"], encoded["train"]
    assert [left.place(i) for i in found.rows] == ["own.jsonl:10", "own.jsonl:12"]
    assert (left.skipped, found.skipped) == (2, 2)  # those of reading, and those of encoding
    good = rows_of(row, [texts[0], texts[2]], "error")
    alone = encode(good, template, tokenizer, max_length=400)
    assert list(left) == list(good)
    assert (found.examples, found.lengths) == (alone.examples, alone.lengths)
    bad = {"train": rows_of(row, texts[1::2], "skip")}
    with pytest.raises(UserError, match=r"all 2 rows are bad; the first is own\.jsonl:10"):
        tokens.encode_splits(bad, template, tokenizer, **options)


@pytest.mark.parametrize("kind", ["pairs", "instructions", "preferences", "labels"])
def test_a_longer_row_is_skipped_where_it_would_be_an_error(kind):
    encode, template, row = MADE[kind]
    rows, tokenizer = (
        [rows_of(row, ["x", "x " * 400], p) for p in ("error", "skip")],
        tiny.tokenizer(),
    )
    with pytest.raises(UserError, match="1 of 2 rows have .*more than max_length=300 tokens"):
        encode(rows[0], template, tokenizer, max_length=300, policy="error")
    found = encode(rows[1], template, tokenizer, max_length=300, policy="error")
    assert (found.rows, found.skipped, found.dropped) == ([0], 1, 0)


def test_a_conversation_that_is_masked_whole_is_skipped_too():
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "learn": False},
    ]
    rows = rows_of(
        lambda text: {"messages": [talk[0], talk[1] | {"learn": text == "good"}]},
        ["bad", "good"],
        "skip",
    )
    found = tokens.encode_rows(rows, DOLLY, tiny.tokenizer(), max_length=200)
    assert (found.rows, found.bad, found.skipped) == ([1], (0,), 1)
