"""Instructions and conversations: each format of users' data, bad rows with file and number, splits without overlap."""

import functools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from ft.data.doubles import asked, duplicates, overlap
from ft.data.instructions import dolly as open_dolly
from ft.data.instructions import instructions
from ft.data.instructions import splits as drawn
from ft.data.rows import Rows
from ft.errors import UserError
from ft.text import prompts, tokens

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
PLAIN = {"instruction": "hi", "context": "", "response": "yo"}


def jsonl(place, *rows):
    file = place / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


FUNCTION = {"name": "f", "description": "d"}
TWO_CALLS = {"tool_calls": [FUNCTION | {"arguments": {}}], "function_call": {"name": "g"}}
REFUSAL = {"role": "assistant", "content": None, "refusal": "no"}


def dolly(n=30):
    rows = [
        {"instruction": f"q{i % 25}", "context": "c" * (i % 3 == 0), "response": f"a{i}"}
        | {"category": ("open_qa", "closed_qa")[i % 2]}
        for i in range(n)
    ]
    return rows


@pytest.mark.parametrize(
    ("record", "row"),
    [
        ({"messages": TALK}, {"messages": TALK}),
        ({"messages": [m | {"weight": 1} for m in TALK]}, {"messages": TALK}),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]},
            {"messages": TALK},
        ),
        ({"prompt": "hi", "completion": "yo"}, PLAIN),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, {"messages": TALK}),
        (
            {"prompt": json.dumps(TALK[:1]), "completion": json.dumps(TALK[1:])},
            {"messages": TALK},
        ),
        (
            {"prompt": "hi", "completion": json.dumps(TALK[1:])},
            PLAIN | {"response": json.dumps(TALK[1:])},
        ),
        ({"instruction": "hi", "input": "", "output": "yo"}, PLAIN),
        ({"instruction": "hi", "input": "x", "output": "yo"}, PLAIN | {"context": "x"}),
        ({"instruction": "hi", "output": "yo", "system": "s"}, PLAIN | {"system": "s"}),
        ({"instruction": "hi", "context": None, "response": "yo"}, PLAIN),
        (
            {"instruction": "hi", "context": "x", "response": "yo", "category": "c"},
            PLAIN | {"context": "x", "category": "c"},
        ),
    ],
)
def test_every_format_of_users_data(record, row, tmp_path):
    assert instructions(jsonl(tmp_path, record)).rows == [row]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": "hi", "response": " "}, "response is empty"),
        ({"instruction": "", "output": "yo"}, "instruction is empty"),
        ({"instruction": "hi", "output": "\u200b \ufeff"}, "output has no character that can be"),
        (
            {"messages": [TALK[0], TALK[1] | {"content": "\u200b"}]},
            "message 2: .* content has no character that can",
        ),
        ({"prompt": "hi", "completion": 3}, "completion is not a string but int"),
        ({"instruction": "hi", "input": 4, "output": "yo"}, "input is not a string but int"),
        ({"messages": TALK[1:]}, "message 1: the conversation starts with assistant"),
        ({"messages": [TALK[0], TALK[0], TALK[1]]}, "message 2: .* two user turns in a row"),
        ({"messages": [*TALK, TALK[0]]}, "ends with a user turn"),
        ({"conversations": [{"from": "robot", "value": "hi"}]}, "message 1 has role 'robot'"),
        (
            {"conversations": [{"from": ["human"], "value": "hi"}]},
            r"message 1 has role \['human'\]",
        ),
        ({"conversations": [{"value": "hi"}]}, "message 1 is not an object with role and content"),
        ({"conversations": "hi"}, "not a list of {role, content}, and no JSON of one: 'hi'"),
        (
            {"messages": [TALK[0], TALK[1] | {"loss_weight": 0}]},
            "message 2: loss_weight = 0 is not",
        ),
        ({"messages": TALK, "sample_weight": 0.5}, "sample_weight is 0.5 for the whole row"),
        ({"messages": TALK, "Image": "a.png"}, "it has Image: "),
        ({"prompt": "hi", "completion": "no", "label": False}, "label is false, .*preference"),
        ({"messages": [TALK[0] | {"from": "gpt"}, TALK[1]]}, "message 1 has role and from, which"),
        (
            {"messages": [TALK[0] | {"value": "x"}, TALK[1]]},
            "message 1 has content and value, which",
        ),
        (
            {"messages": [TALK[0], TALK[1] | TWO_CALLS]},
            "message 2 has tool_calls and function_call",
        ),
        (
            {"messages": [TALK[0], TALK[1] | {"thought": "x"}]},
            "message 2 has thought; a thought stands",
        ),
        ({"messages": [TALK[0], REFUSAL]}, "message 2: refusal = 'no' is not followed"),
        (
            {"messages": TALK, "tools": [FUNCTION], "functions": [FUNCTION | {"name": "g"}]},
            "differ",
        ),
        ({"question": "hi", "answer": "yo"}, "'question', 'answer' are of no known format"),
    ],
)
def test_a_bad_row_is_named_with_file_and_number(record, message, tmp_path):
    file = jsonl(tmp_path, PLAIN, record)
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: .*{message}"):
        instructions(file)
    assert instructions(file, on_bad_row="skip").skipped == 1


def test_dolly_by_category_and_without_context(tmp_path):
    file = jsonl(tmp_path, *dolly())
    rows = open_dolly(tmp_path, categories=("open_qa",), no_context=True)
    assert {row["category"] for row in rows} == {"open_qa"}
    assert not any(row["context"] for row in rows)
    assert "of open_qa, without context" in rows.origin
    assert rows.sha256 != open_dolly(file).sha256


def test_an_unknown_category_is_named(tmp_path):
    with pytest.raises(UserError, match="'open_q'.*'closed_qa', 'open_qa'.*Did you mean"):
        open_dolly(jsonl(tmp_path, *dolly()), categories=("open_q",))
    with pytest.raises(UserError, match="no column 'category'"):
        open_dolly(jsonl(tmp_path, PLAIN), categories=("open_qa",))


def test_nothing_without_context_is_said(tmp_path):
    with pytest.raises(UserError, match="no row of .* is left: without context"):
        open_dolly(jsonl(tmp_path, PLAIN | {"context": "x"}), no_context=True)


def test_a_folder_must_hold_one_table(tmp_path):
    with pytest.raises(UserError, match="holds 0 tables; name a file itself"):
        open_dolly(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("# A copy of a dataset")
    (tmp_path / "data/train.csv").write_text("instruction,output\nhi,yo\n")
    assert open_dolly(tmp_path).rows == [PLAIN]
    (tmp_path / "data/test.csv").write_text("instruction,output\nhi,yo\n")
    with pytest.raises(
        UserError, match=r"2 tables \(data/test\.csv, data/train\.csv\); name a file"
    ):
        open_dolly(tmp_path)


def test_splits_are_drawn_by_seed_and_share_no_row(tmp_path):
    options = {"valid_rows": 4, "test_rows": 3}
    file = jsonl(tmp_path, *dolly())
    one, again, other = (drawn(file, **options, seed=s) for s in (1, 1, 2))
    assert [len(one[s]) for s in ("train", "valid", "test")] == [23, 4, 3]
    assert one == again
    assert one["test"].rows != other["test"].rows
    answers = [row["response"] for rows in one.values() for row in rows]
    assert sorted(answers) == sorted(f"a{i}" for i in range(30))


def test_duplicates_and_overlap_are_left_out_on_request(tmp_path):
    rows = [*dolly(), dolly()[0] | {"response": "A0 "}]  # the case and spaces of one row differ
    file = jsonl(tmp_path, *rows)
    found = open_dolly(file)
    assert duplicates(found) == [30]
    splits = drawn(file, valid_rows=8, test_rows=8, seed=1, drop_duplicates=True)
    assert sum(map(len, splits.values())) < 30
    assert overlap(splits["train"], splits["valid"], splits["test"]) == []
    assert all(duplicates(rows) == [] for rows in splits.values())
    assert "without 1 duplicates" in splits["train"].origin


@pytest.mark.parametrize(("n", "held"), [(3, 1), (30, 3), (999, 99), (1001, 100), (5000, 100)])
def test_a_small_file_is_held_out_of_by_tenths(tmp_path, n, held):
    found = drawn(jsonl(tmp_path, *dolly(n)), seed=1)
    assert [len(found[s]) for s in ("train", "valid", "test")] == [n - 2 * held, held, held]


def test_rows_that_cannot_be_held_out(tmp_path):
    with pytest.raises(UserError, match="30 rows are to be held out of the 30.*lower --valid-rows"):
        drawn(jsonl(tmp_path, *dolly()), valid_rows=20, test_rows=10, seed=0)


def test_what_a_conversation_asks_is_its_first_question():
    assert asked({"messages": [{"role": "system", "content": "s"}, *TALK]}) == "hi"
    talk = Rows([{"messages": TALK}], "a", "b")
    assert overlap(talk, Rows([{"instruction": "HI ", "response": "x"}], "a", "b")) == [0]


def check_mask(template, row, tokenizer):
    """ids are the text, what is supervised is each completion with its end, and there is one BOS."""
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=10**6).examples
    turns = template.turns(row)
    end = template.end or tokenizer.eos_token
    text = tokenizer.bos_token + "".join(
        turn["prompt"] + turn["completion"] + end + template.tail for turn in turns
    )
    if not template.end:  # nothing follows a last EOS
        text = text.removesuffix(template.tail)
    ids, labels = example["input_ids"], example["labels"]
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.bos_token_id) == 1
    assert all(label in (-100, i) for i, label in zip(ids, labels, strict=True))
    spans, open_span = [], False
    for i, label in zip(ids, labels, strict=True):
        if label != -100:
            spans = spans if open_span else [*spans, []]
            spans[-1].append(i)
        open_span = label != -100
    assert [tokenizer.decode(span) for span in spans] == [t["completion"] + end for t in turns]


@pytest.mark.parametrize("name", ["chat", *prompts.INSTRUCTION])
@given(
    texts=st.lists(st.text("abc {}.\n", min_size=1).filter(str.strip), min_size=2, max_size=6),
    system=st.none() | st.text("abc", min_size=1),
)
def test_the_mask_covers_every_completion_and_its_end_and_nothing_else(name, texts, system):
    tokenizer = tiny.tokenizer()
    template = prompts.by_name(name, tokenizer)
    roles = ("user", "assistant")
    texts = texts[: len(texts) // 2 * 2]
    talk = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    start = [{"role": "system", "content": system}] if system else []
    check_mask(template, {"messages": [*start, *talk]}, tokenizer)


@pytest.fixture(scope="module")
def gemma():
    """The embedded model's tokenizer."""
    from ft import models

    return models.load_tokenizer("embedded")


@pytest.mark.real
@pytest.mark.parametrize("name", ["chat", *prompts.INSTRUCTION])
def test_the_mask_of_every_row_of_dolly(name, shared, gemma):
    tokenizer, template = gemma, prompts.by_name(name, gemma)
    rows = open_dolly(shared / "data" / "dolly")
    assert len(rows) == 15_014
    if name not in ("chat", "dolly"):  # every row by the two that recipes use; the others' by seed
        rows = rows.sample(2_000, seed=0)
    encoded = tokens.encode_rows(rows, template, tokenizer, max_length=10**6)
    assert len(encoded.examples) == len(rows)
    end = tokenizer.convert_tokens_to_ids(template.end) if template.end else tokenizer.eos_token_id
    pairs = [template.render(row) for row in rows]
    decode = functools.partial(tokenizer.backend_tokenizer.decode_batch, skip_special_tokens=False)
    written = decode([e["input_ids"] for e in encoded.examples])
    told = decode([[i for i in e["labels"] if i != tokens.IGNORE] for e in encoded.examples])
    last = template.end + template.tail if template.end else tokenizer.eos_token
    for example, pair, text, completion in zip(encoded.examples, pairs, written, told, strict=True):
        assert text == tokenizer.bos_token + pair["prompt"] + pair["completion"] + last
        assert completion == pair["completion"] + (template.end or tokenizer.eos_token)
        assert example["input_ids"].count(tokenizer.bos_token_id) == 1
        supervised = [i for i, label in enumerate(example["labels"]) if label != tokens.IGNORE]
        assert example["labels"][supervised[-1]] == end
        assert supervised == list(range(supervised[0], supervised[-1] + 1))


@pytest.mark.real
def test_chat_has_the_ids_of_apply_chat_template_on_dolly(shared, gemma):
    tokenizer, template = gemma, prompts.by_name("chat", gemma)
    rows = open_dolly(shared / "data" / "dolly").sample(1000, seed=0)
    encoded = tokens.encode_rows(rows, template, tokenizer, max_length=10**6)
    for row, example in zip(rows, encoded.examples, strict=True):
        question = "\n\n".join(filter(None, (row["instruction"], row["context"])))
        talk = [{"role": "user", "content": question}]
        talk += [{"role": "assistant", "content": row["response"]}]
        ids = tokenizer.apply_chat_template(talk)["input_ids"]
        assert example["input_ids"] == ids


@pytest.mark.parametrize("name", ["systemPrompt", "System", "system_message", "chosen", "Thinking"])
def test_a_column_of_meaning_is_refused_whatever_its_spelling(tmp_path, name):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"instruction": "q", "response": "a", name: "x"}))
    with pytest.raises(UserError, match=f"the column '{name}' would change what is learnt"):
        instructions(file)


def test_tools_that_are_no_json_are_named(tmp_path):
    file = tmp_path / "a.jsonl"
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    file.write_text(json.dumps({"messages": talk, "tools": ["{x"]}))
    with pytest.raises(UserError, match=r"a\.jsonl:1: tool 1 is no JSON: '{x'"):
        instructions(file)


@pytest.mark.parametrize("column", ["messages", "conversations"])
def test_a_cell_of_a_table_has_a_conversation_as_json(column, tmp_path):
    import csv

    file = tmp_path / "a.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([[column, "id"], [json.dumps(TALK), 1], [str(TALK), 2]])
    with pytest.raises(
        UserError, match=r"(?s)1 bad row.*a\.csv:3: messages is not a list .*no JSON"
    ):
        instructions(file)
    assert instructions(file, on_bad_row="skip").rows == [{"messages": TALK}]


def test_a_cell_of_a_table_has_alpacas_history_as_json(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('instruction\toutput\thistory\nq\ta\t[["x", "y"]]\n')
    (row,) = instructions(file)
    assert [m["content"] for m in row["messages"]] == ["x", "y", "q", "a"]


def test_null_and_empty_values_of_a_turn_are_nothing(tmp_path):
    empty = {"refusal": "", "annotations": [], "from": None, "value": "", "function_call": {}}
    row = {"messages": [m | empty for m in TALK], "functions": [], "tools": ""}
    rows = instructions(jsonl(tmp_path, row))
    assert (rows.rows, rows.ignored) == ([{"messages": TALK}], ())
    call = {"tool_calls": [], "function_call": {"name": "f", "arguments": "{}"}, "content": None}
    result = {"role": "function", "name": "f", "content": None}
    (row,) = instructions(jsonl(tmp_path, {"messages": [TALK[0], TALK[1] | call, result, TALK[1]]}))
    assert row["messages"][1]["tool_calls"][0]["function"]["name"] == "f"
    assert row["messages"][2]["content"] == ""
