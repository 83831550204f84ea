"""The tokenizer without torch against transformers' on the same files."""

import json

import pytest
from support import tiny

from ft.data.rows import Rows
from ft.errors import UserError
from ft.models.load import load_tokenizer
from ft.models.tokenizer import read
from ft.text import chat_template, prompts, tokens

TALK = [
    {"role": "user", "content": " What is the capital of France? "},
    {"role": "assistant", "content": "Paris.\n"},
]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tiny.folder("gemma3_text", tmp_path_factory.mktemp("tokenizer"))
    return read(folder), load_tokenizer(str(folder))


def test_ids_and_text_are_transformers(both):
    ours, theirs = both
    texts = ["Hello, my name is Morgane.", "é\n\n漢字", "", "<start_of_turn>user\n"]
    assert ours(texts, add_special_tokens=False) == {
        "input_ids": theirs(texts, add_special_tokens=False)["input_ids"]
    }
    ids = ours(texts[0])["input_ids"]
    assert ids == theirs(texts[0])["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    assert ours.decode(ids, skip_special_tokens=True) == theirs.decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.parametrize("name", ["bos_token", "eos_token", "pad_token", "unk_token"])
def test_special_tokens_are_transformers(both, name):
    ours, theirs = both
    for attribute in (name, f"{name}_id"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert len(ours) == len(theirs)
    assert {i: t.content for i, t in ours.added_tokens_decoder.items() if t.special} == {
        i: t.content for i, t in theirs.added_tokens_decoder.items() if t.special
    }
    assert ours.convert_tokens_to_ids("no such token") == theirs.convert_tokens_to_ids("no such")


@pytest.mark.parametrize("ask", [False, True])
def test_a_conversation_reads_as_transformers_renders_it(both, ask):
    rendered = [
        t.apply_chat_template(TALK, tokenize=False, add_generation_prompt=ask) for t in both
    ]
    assert rendered[0] == rendered[1]


@pytest.mark.parametrize("name", ["chat", "dolly", "plain"])
def test_examples_are_the_same(both, name):
    rows = Rows([{"messages": TALK}, {"messages": TALK * 2}], "here", "0")
    found = [
        tokens.encode_rows(rows, prompts.by_name(name, t), t, max_length=500).examples for t in both
    ]
    assert found[0] == found[1]
    assert chat_template.read(both[0]) == chat_template.read(both[1])


def test_a_broken_file_is_named(tmp_path):
    folder = tiny.folder("gemma3_text", tmp_path)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer_config\.json is not valid JSON"):
        read(folder)
    (folder / "tokenizer.json").write_text(json.dumps({"model": 1}))
    with pytest.raises(UserError, match=r"tokenizer\.json cannot be read"):
        read(folder)
