"""Templates: what the prompt is to the letter, where an answer ends, and a field that is missing."""

import pytest
from support import tiny

from ft.errors import UserError
from ft.text import prompts


def test_the_translation_prompt_is_the_tutorials():
    pair = prompts.translation("French").render({"source": "idk lol", "target": "jsp mdr"})
    assert pair == {"prompt": "Translate this into French:\nidk lol\n", "completion": "jsp mdr"}


def test_the_language_of_a_pair_is_that_of_its_target():
    assert (
        prompts.translation_of("en-ja")
        .prompt_for({"source": "a"})
        .startswith("Translate this into Japanese:")
    )


def test_an_unknown_language_is_named():
    with pytest.raises(UserError, match="'en-xx'.*en, fr, ja"):
        prompts.translation_of("en-xx")


def test_braces_in_a_row_are_text():
    row = {"source": "{target} {0} {{", "target": "x"}
    assert prompts.translation().prompt_for(row) == "Translate this into French:\n{target} {0} {{\n"


def test_a_missing_field_is_named_with_those_there_are():
    with pytest.raises(UserError, match=r"'source'.*it has sauce, target\. Did you mean 'sauce'"):
        prompts.translation().prompt_for({"sauce": "a", "target": "b"})


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Bonjour\nEnglish: more", "Bonjour"),
        (" Bonjour ", "Bonjour"),
        ("\nBonjour\n\nmore", "Bonjour"),
        ("", ""),
        ("\n\n", ""),
    ],
)
def test_text_behind_a_stop_string_never_leaks(text, kept):
    assert prompts.translation().trim(text) == kept


ROW = {"instruction": "Add 1 and 2.", "context": "", "response": "3"}


def test_the_books_template():
    assert prompts.INSTRUCTION["book"].render(ROW) == {
        "prompt": "[instruction]\nAdd 1 and 2.[end]\n[response]\n",
        "completion": "3[end]",
    }


def test_the_templates_of_the_authors_of_dolly_and_alpaca():
    dolly, alpaca = prompts.INSTRUCTION["dolly"], prompts.INSTRUCTION["alpaca"]
    task = "Below is an instruction that describes a task"
    write = "Write a response that appropriately completes the request."
    ask = "### Instruction:\nAdd 1 and 2.\n\n"
    assert dolly.render(ROW) == {
        "prompt": f"{task}. {write}\n\n{ask}### Response:\n",
        "completion": "3\n\n### End",
    }
    assert alpaca.prompt_for(ROW) == f"{task}. {write}\n\n{ask}### Response:"
    row = ROW | {"context": "Sum."}
    assert dolly.prompt_for(row) == f"{task}. {write}\n\n{ask}Input:\nSum.\n\n### Response:\n"
    assert alpaca.prompt_for(row) == (
        f"{task}, paired with an input that provides further context. {write}\n\n"
        f"{ask}### Input:\nSum.\n\n### Response:"
    )


def test_generated_text_ends_at_the_books_mark():
    assert prompts.INSTRUCTION["book"].trim("3[end]\n[instruction]") == "3"


def test_a_template_of_the_users_own(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        'prompt: "Q: {instruction}{?context} ({context}){/context}\\nA:"\n'
        'completion: " {response}"\nstop: ["\\nQ:"]\n'
    )
    t = prompts.by_name(str(file), tiny.tokenizer())
    assert (t.name, t.stop) == ("mine", ("\nQ:",))
    assert t.render(ROW) == {"prompt": "Q: Add 1 and 2.\nA:", "completion": " 3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt: '{instruction}'", "mine.yaml: it has no completion"),
        ("completion: '{response}'", "mine.yaml: it has no prompt"),
        ("promt: 'x'", "unknown key 'promt'.*Did you mean 'prompt'"),
        ("prompt: 3\ncompletion: '{response}'", "prompt is 3; expected a string"),
        ("prompt: a\ncompletion: '{response}'\nstop: x", "stop is 'x'; expected a list of strings"),
        ("prompt: a\ncompletion: b", "the completion has no field"),
        ("prompt: '{instruction'\ncompletion: '{response}'", "'mine', prompt: a single '{'"),
        ("- a", "expected a line `key: value`"),
        ("prompt: [", "mine.yaml: while parsing"),
        (
            "prompt: a\ncompletion: '{response}'\nend: <stop>",
            "its end '<stop>' is no token of this tokenizer",
        ),
        (
            "prompt: a\ncompletion: '{response}'\nstop: ['<end_of_turn>']",
            "stop string '<end_of_turn>' is one that this tokenizer cannot write",
        ),
    ],
)
def test_a_template_file_that_cannot_be_used(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.by_name(str(file), tiny.tokenizer())


def test_an_unknown_template_names_those_there_are(tmp_path):
    with pytest.raises(
        UserError, match="'doly'.*chat, book, dolly, alpaca, steps, plain.*mean 'dolly'"
    ):
        prompts.by_name("doly", tiny.tokenizer())
    with pytest.raises(UserError, match="gone.yaml: .*No such file"):
        prompts.by_name(str(tmp_path / "gone.yaml"), tiny.tokenizer())
