"""Codes of languages, the names that prompts have them by, and what else may be called so."""

import pytest

from ft.errors import UserError
from ft.text import languages


@pytest.mark.parametrize(
    ("pair", "names"),
    [
        ("en-de", ("English", "German")),
        ("eng-por", ("English", "Portuguese")),
        ("EN-DE", ("English", "German")),
        ("en-pt_BR", ("English", "Brazilian Portuguese")),
        ("zh_Hans-eng_Latn", ("Simplified Chinese", "English")),
        ("zho_Hant-srp_Cyrl", ("Traditional Chinese", "Serbian (Cyrillic)")),
        ("de_AT-yue", ("German (Austria)", "Cantonese")),
        ("en-tlh=Klingon", ("English", "Klingon")),
        ("qya=High-Elvish-en", None),
        ("en-qya=High Elvish", ("English", "High Elvish")),
    ],
)
def test_pairs_have_names(pair: str, names: tuple[str, str] | None) -> None:
    if names is None:
        with pytest.raises(UserError, match="not two codes"):
            languages.pair(pair)
        return
    assert tuple(language.name for language in languages.pair(pair)) == names


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("en", "not two codes with a dash"),
        ("en-", "not two codes with a dash"),
        ("en-zh-Hans", "en-pt_BR"),
        ("en-xx", r"'en-xx'.*'xx' is not a language that is known here.*en-tlh=Klingon"),
        ("en-deutsch", "'deutsch' is not the code"),
        ("en-de_QQ", r"'qq' of 'de_QQ' is not known here; name the language yourself: de_QQ=NAME"),
        ("eng-en", "the same language"),
        ("en-xx={target}", "not the code"),
    ],
)
def test_what_is_no_pair(pair: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        languages.pair(pair)


def test_what_may_be_called_a_language() -> None:
    german, brazilian = languages.pair("de-pt_BR")
    for name in ("de", "DE", "deu", "de-DE", "de_AT", " de "):
        assert german.is_called(name)
    for name in ("", "d", "den", "nl", "German"):
        assert not german.is_called(name)
    assert not german.is_called("de-AT", exactly=True)
    assert german.is_called("deu", exactly=True)
    assert brazilian.is_called("pt")
    assert brazilian.is_called("pt-br", exactly=True)
    assert not brazilian.is_called("pt_PT")


def test_no_code_stands_for_two_languages() -> None:
    assert languages.NAMES["de"] == languages.NAMES["deu"] == "German"
    assert len(languages.NAMES) > 400
    assert all(name == name.strip() and name for name in languages.NAMES.values())
