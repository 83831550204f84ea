"""The text of a growing answer: whole characters, and nothing of a stop string or after it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from ft.generate.draft import Draft, End, end_ids

TOKENIZER = tiny.tokenizer()
EOS = 1


def encoded(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def grown(ids: list[int], *strings: str, most: int = 10_000) -> tuple[Draft, list[str]]:
    """A draft after as many of the ids as it takes, and its pieces."""
    draft, pieces = Draft(TOKENIZER, [2], End(frozenset({EOS}), strings, most)), []
    for i in ids:
        draft.add(i)
        pieces.append(draft.piece)
        if draft.reason:
            break
    return draft, pieces


def by_bytes(text: str) -> list[int]:
    """The ids of each byte, as a model writes what its vocabulary lacks."""
    return [TOKENIZER.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]


def test_a_character_of_several_tokens_comes_whole():
    ids = [*encoded("le "), *by_bytes("é€😀"), *encoded(" fin"), EOS]
    draft, pieces = grown(ids)
    assert draft.answer().text == "le é€😀 fin"
    assert [p for p in pieces if "�" in p] == []
    assert {"é", "€", "😀"} <= set(pieces)


def test_bytes_that_are_no_character_come_at_the_latest_with_the_end():
    draft, pieces = grown([*encoded("a"), *by_bytes("😀")[:2], EOS])
    assert draft.text == "".join(pieces) == "a��"
    draft, _ = grown([*encoded("a"), *by_bytes("😀")[:2], *encoded("b"), EOS])
    assert draft.text == "a��b"


def test_what_may_begin_a_stop_string_is_held_back_until_it_is_not():
    ids = by_bytes("x[en[end]y")
    draft, pieces = grown(ids, "[end]")
    assert pieces == ["x", "", "", "", "[en", "", "", "", ""]
    assert (draft.text, draft.reason, len(draft.ids)) == ("x[en", "stop", 9)


def test_what_was_held_back_comes_when_the_answer_ends_without_it():
    for most, tail, reason in ((10_000, [EOS], "end"), (4, [], "length")):
        draft, pieces = grown(by_bytes("x[en") + tail, "[end]", most=most)
        assert (draft.text, "".join(pieces), draft.reason) == ("x[en", "x[en", reason)


def test_the_first_of_several_stop_strings_cuts():
    draft, _ = grown(encoded("le chat dort sur la table"), "sur", "at do", "dort")
    assert (draft.text, draft.reason) == ("le ch", "stop")


def test_the_end_token_wins_over_a_stop_string_that_is_not_whole():
    draft, _ = grown([*encoded("a ###"), EOS, *encoded(" b")], "### ")
    assert (draft.text, draft.reason) == ("a ###", "end")


def test_a_copy_goes_its_own_way():
    draft, _ = grown(by_bytes("é")[:1])
    one, other = draft.extended(by_bytes("é")[1], -1.0), draft.extended(EOS, -2.0)
    assert (one.text, other.text, draft.text) == ("é", "�", "")
    assert (one.logprobs, other.reason, draft.reason) == ([0.0, -1.0], "end", None)


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet="ab é€\n#[]", max_size=30),
    st.lists(st.text(alphabet="ab#[]\né", min_size=1, max_size=4), max_size=3),
    st.booleans(),
)
def test_pieces_make_the_text_up_to_the_first_stop(text, stops, bytewise):
    draft, pieces = grown([*(by_bytes if bytewise else encoded)(text), EOS], *stops)
    assert "".join(pieces) == draft.text
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    # of two that begin at different places, the one that is whole first cuts
    assert text.startswith(draft.text)
    assert draft.reason == ("stop" if found else "end")
    if not found:
        assert draft.text == text
    elif len(stops) == 1:
        assert draft.text == text[: found[0]]
    assert not any(stop in draft.text for stop in stops)


def test_ids_that_end_an_answer():
    model = tiny.build("gemma")
    turn = TOKENIZER.convert_tokens_to_ids("<end_of_turn>")
    model.generation_config.eos_token_id = None
    assert end_ids(model, TOKENIZER) == {EOS}
    model.generation_config.eos_token_id = [EOS, 77]
    assert end_ids(model, TOKENIZER, "<end_of_turn>", "a", "\n") == {EOS, 77, turn}
    model.generation_config.eos_token_id = 78
    assert end_ids(model, TOKENIZER) == {EOS, 78}


def test_an_answer_without_an_end_is_none():
    draft, _ = grown(encoded("a"))
    with pytest.raises(AssertionError):
        draft.answer()


def test_a_thought_is_kept_apart_from_the_answer():
    from support import gemma_tokens

    from ft.generate.draft import Draft, End
    from ft.text import chat_template, forms

    jinja = gemma_tokens.of_trl()["gemma4_v5"].read_text()
    tokenizer = gemma_tokens.tokenizer_of(jinja)
    thought = forms.thought_ids(chat_template.read(tokenizer), tokenizer)
    written = "<|channel>thought\nadd them\n<channel|>It is 4.<turn|>"
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    draft = Draft(tokenizer, [2], End(frozenset({ids[-1]}), (), 99, thought))
    pieces = []
    for token in ids:
        draft.add(token)
        pieces.append(draft.piece)
    answer = draft.answer()
    assert "".join(pieces) == answer.text == "It is 4."
    assert (answer.thought, answer.reason, answer.ids) == ("add them", "end", tuple(ids))
