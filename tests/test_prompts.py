"""Templates: what the prompt is to the letter, where an answer ends, and a field that is missing."""

import pytest

from ft import prompts
from ft.errors import UserError


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
