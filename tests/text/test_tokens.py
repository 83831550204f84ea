"""Ids, labels, length policy, packing: exact columns, the tutorials' own ids, relations."""

import json
import shutil

import pytest
from support import tiny

from ft import data
from ft.errors import UserError
from ft.text import prompts, tokens
from ft.text.template import Template

PAIR = {"prompt": "Translate this into French:\nhi\n", "completion": "salut"}


def encode(pairs, **options):
    return tokens.encode(pairs, tiny.tokenizer(), **{"max_length": 100, **options})


def test_prompt_and_completion_stand_in_aligned_columns():
    tokenizer = tiny.tokenizer()
    prompt = tokenizer(PAIR["prompt"], add_special_tokens=False)["input_ids"]
    completion = tokenizer(PAIR["completion"], add_special_tokens=False)["input_ids"]
    (example,) = encode([PAIR]).examples
    # fmt: off
    assert example["input_ids"] == [2,   *prompt,                 *completion, 1]
    assert example["labels"] == [-100, *([-100] * len(prompt)), *completion, 1]
    # fmt: on


def test_seed_parity_has_a_second_supervised_bos():
    (plain,) = encode([PAIR]).examples
    (parity,) = encode([PAIR], seed_parity=True).examples
    at = plain["labels"].index(next(i for i in plain["labels"] if i != -100))
    assert parity["input_ids"] == [*plain["input_ids"][:at], 2, *plain["input_ids"][at:]]
    assert parity["labels"] == [*plain["labels"][:at], 2, *plain["labels"][at:]]


@pytest.fixture(scope="session")
def gemma1(tmp_path_factory):
    from conftest import SHARED

    model = SHARED / "data" / "tokenizers" / "gemma1_tokenizer.model"
    if not model.exists():
        pytest.skip(f"no tokenizer at {model}")
    from transformers import GemmaTokenizer

    folder = tmp_path_factory.mktemp("gemma1")
    shutil.copy(model, folder / "tokenizer.model")
    return GemmaTokenizer.from_pretrained(folder)


@pytest.mark.real
def test_the_tutorials_first_example(gemma1):
    source = (
        "The group of “eastern conference potential all stars but not making it in the West” group."
    )
    pair = prompts.translation().render({"source": source, "target": "Le groupe de"})
    (example,) = tokens.encode([pair], gemma1, max_length=64, seed_parity=True).examples
    prompt = "2 49688 736 1280 6987 235292 108 651 2778 576 1080 104745 11982 5736 832 8995 901 780 3547 665 575 573 4589 235369 2778 235265 108"
    completion = [2, 2025, 29653, 581, 1]
    assert example["input_ids"] == [*map(int, prompt.split()), *completion]
    assert example["labels"] == [-100] * len(prompt.split()) + completion


@pytest.mark.real
def test_the_tutorials_rows_ids_and_masks(gemma1, shared):
    golden = json.loads((shared / "reference" / "golden.json").read_text())["gemma_sgd"]
    rows = data.mtnt("train", "en-fr", shared / "data" / "mtnt", reading="tfds")
    pairs = [prompts.translation().render(row) for row in rows]
    encoded = tokens.encode(pairs, gemma1, max_length=25, seed_parity=True)
    assert len(encoded.examples) == golden["n_train"]
    for example, (ids, mask) in zip(encoded.examples, golden["first_rows"], strict=False):
        padding = [0] * (25 - len(example["input_ids"]))
        assert example["input_ids"] + padding == ids
        assert [int(label != -100) for label in example["labels"]] + padding == mask


LONG = {"prompt": "Translate\n", "completion": "salut " * 30}


def test_the_default_policy_drops_and_counts():
    encoded = encode([PAIR, LONG, PAIR], max_length=60)
    assert (len(encoded.examples), encoded.rows, encoded.dropped) == (2, [0, 2], 1)
    assert "1 dropped (longer than 60 tokens)" in encoded.summary(60)


def test_truncation_leaves_no_end_token_to_learn():
    encoded = encode([LONG], max_length=60, policy="truncate")
    (example,) = encoded.examples
    assert len(example["input_ids"]) == 60
    assert encoded.truncated == 1
    assert 1 not in example["input_ids"]
    assert "1 lost their ending" in encoded.summary(60)


def test_truncation_drops_an_example_whose_prompt_fills_it():
    encoded = encode([{"prompt": "x" * 200, "completion": "y"}, PAIR], policy="truncate")
    assert (len(encoded.examples), encoded.dropped) == (1, 1)


def test_policy_error_names_the_row_and_its_length():
    with pytest.raises(UserError, match="1 of 2 rows .* max_length=60 .* row 2 with"):
        encode([PAIR, LONG], max_length=60, policy="error")


def test_all_rows_too_long_is_an_error_that_tells_the_shortest():
    with pytest.raises(UserError, match="all 2 rows .* max_length=5 .*the shortest has"):
        encode([PAIR, LONG], max_length=5)


def test_no_pairs_is_an_error():
    with pytest.raises(UserError, match="no pairs"):
        encode([])


def test_a_control_token_in_the_data_is_named_with_its_row():
    with pytest.raises(UserError, match="row 2: .*'<bos>'"):
        encode([PAIR, {"prompt": "a <bos> b", "completion": "c"}])


def test_the_view_marks_what_is_supervised():
    (example,) = encode([PAIR]).examples
    shown = tokens.show(example, tiny.tokenizer(), colour=False)
    assert shown == "<bos>Translate this into French:\nhi\n⟦salut<eos>⟧"
    assert "\x1b[32msalut<eos>\x1b[0m" in tokens.show(example, tiny.tokenizer(), colour=True)


def test_the_histogram_counts_every_example_once():
    bars = tokens.histogram([1, 5, 9, 30, 31, 200], 100).splitlines()
    counts = [int(bar.split("tokens")[1].split()[0]) for bar in bars]
    assert sum(counts) == 6
    assert bars[-1].split()[0] == ">100"


def test_a_conversation_is_its_turns_end_to_end_with_the_tail_between():
    t = Template("t", "Q {instruction} A ", "{response}", end="<end_of_turn>", tail="\n")
    tokenizer = tiny.tokenizer()
    talk = [("user", "hi"), ("assistant", "yo"), ("user", "chat"), ("assistant", "cat")]
    messages = [{"role": role, "content": content} for role, content in talk]
    (example,) = tokens.encode_rows([{"messages": messages}], t, tokenizer, max_length=99).examples
    text = "Q hi A yo<end_of_turn>\nQ chat A cat<end_of_turn>\n"
    assert tokenizer.decode(example["input_ids"]) == "<bos>" + text
    assert tokens.show(example, tokenizer, colour=False) == (
        "<bos>Q hi A ⟦yo<end_of_turn>⟧\nQ chat A ⟦cat<end_of_turn>⟧\n"
    )


@pytest.mark.parametrize("end", ["", "<end_of_turn>"])
def test_a_prompt_has_the_ids_that_training_had_there(end):
    t = Template("t", "Q {instruction} A ", "{response}", end=end, tail="\n")
    tokenizer = tiny.tokenizer()
    talk = [("user", "hi"), ("assistant", "yo"), ("user", "chat"), ("assistant", "cat")]
    messages = [{"role": role, "content": content} for role, content in talk]
    (example,) = tokens.encode_rows([{"messages": messages}], t, tokenizer, max_length=99).examples
    prompt = tokens.prompt_ids(t, {"messages": messages[:3]}, tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt
    answer = tokenizer("cat" + (end or "<eos>"), add_special_tokens=False)["input_ids"]
    assert example["input_ids"][len(prompt) :][: len(answer)] == answer
    row = {"instruction": "chat", "response": "cat"}
    (example,) = tokens.encode_rows([row], t, tokenizer, max_length=99).examples
    prompt = tokens.prompt_ids(t, {"instruction": "chat"}, tokenizer)
    assert example["input_ids"][: len(prompt)] == prompt
    assert example["labels"][: len(prompt)] == [-100] * len(prompt)
    assert example["labels"][len(prompt)] != -100


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "a<end_of_turn>b", "response": "x"},
            "row 2, instruction.*'<end_of_turn>'",
        ),
        ({"instruction": "a", "response": "<bos>"}, "row 2, response.*'<bos>'"),
        (
            {"messages": [{"role": "user", "content": "<start_of_turn>model"}]},
            r"row 2, message 1 \(user\).*'<start_of_turn>'",
        ),
    ],
)
def test_a_control_token_in_a_rows_own_text_is_refused(row, message):
    t = Template("t", "<start_of_turn>{instruction}", "{response}", end="<end_of_turn>")
    good = {"instruction": "a", "response": "b"}
    with pytest.raises(UserError, match=message + ".*; remove it from the data"):
        tokens.encode_rows([good, row], t, tiny.tokenizer(), max_length=99)
    asked = message.removeprefix("row 2, ")
    with pytest.raises(UserError, match=f"^{asked}.*control token; ask without it$"):
        tokens.prompt_ids(t, row, tiny.tokenizer())


def test_a_long_conversation_is_cut_or_dropped_or_named():
    t = Template("t", "{instruction}", "{response}", end="<end_of_turn>", tail="\n")
    row = {"instruction": "a b c", "response": "d e f g h"}
    tokenizer = tiny.tokenizer()

    def encode(policy, most):
        return tokens.encode_rows([row, SHORT], t, tokenizer, max_length=most, policy=policy)

    SHORT = {"instruction": "a", "response": "b"}
    whole = encode("drop", 99)
    assert (whole.dropped, whole.truncated) == (0, 0)
    limit = len(whole.examples[0]["input_ids"]) - 3
    assert encode("drop", limit).rows == [1]
    cut = encode("truncate", limit)
    assert cut.examples[0]["input_ids"] == whole.examples[0]["input_ids"][:limit]
    assert cut.truncated == 1
    with pytest.raises(UserError, match="1 of 2 rows have more than max_length"):
        encode("error", limit)


def test_splits_are_encoded_alike_and_each_is_said(capsys):
    t = Template(name="t", prompt="{source} ", completion="{target}")
    splits = {
        "train": [{"source": "a", "target": "b"}] * 2,
        "valid": [{"source": "c", "target": "d"}],
    }
    rows, found = tokens.encode_splits(splits, t, tiny.tokenizer(), max_length=100)
    alone = {
        name: tokens.encode_rows(rows, t, tiny.tokenizer(), max_length=100)
        for name, rows in splits.items()
    }
    assert (rows, found) == (splits, alone)
    said = capsys.readouterr().out.splitlines()
    assert said == [f"{name}: {encoded.summary(100)}" for name, encoded in alone.items()]


def test_splits_are_encoded_by_another_function_with_its_options():
    asked = []

    def encode(rows, template, tokenizer, **options):
        asked.append((rows, options))
        return tokens.encode_rows(rows, template, tokenizer, **options)

    t = Template(name="t", prompt="{source} ", completion="{target}")
    rows = [{"source": "a", "target": "b"}, {"source": "a", "target": "b " * 50}]
    options = {"max_length": 20, "policy": "truncate"}
    _, found = tokens.encode_splits({"test": rows}, t, tiny.tokenizer(), encode=encode, **options)
    assert asked == [(rows, options)]
    assert found["test"].truncated == 1
