"""Conversations: what their prompts hold, what goes when there is no room, and what a template cannot say."""

import pytest
from support import tiny

from ft.chat.conversation import Conversation
from ft.errors import UserError
from ft.text import prompts, tokens
from ft.text.template import Template

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)
TALK = Conversation(CHAT).asked("a b").answered("c").asked("d")


def text(talk: Conversation) -> str:
    return TOKENIZER.decode(talk.ids(TOKENIZER))


def test_the_prompt_is_what_the_tokenizers_own_template_says():
    wanted = TOKENIZER.apply_chat_template(
        list(TALK.messages), tokenize=False, add_generation_prompt=True
    )
    assert text(TALK) == wanted


def test_the_prompt_is_what_training_had_at_that_place():
    row = {"messages": list(TALK.answered("e").messages)}
    trained = tokens.encode_rows([row], CHAT, TOKENIZER, max_length=400).examples[0]["input_ids"]
    ids = TALK.ids(TOKENIZER)
    assert trained[: len(ids)] == ids
    assert len(trained) > len(ids)


def test_changes_leave_the_old_value_as_it_was():
    before = TALK.messages
    assert TALK.answered("x") != TALK
    assert TALK.instructed("y").system == "y"
    assert TALK.messages == before


def test_the_system_message_stands_first_and_can_be_replaced_and_removed():
    nice = TALK.instructed("Be nice.")
    assert text(nice).index("Be nice.") < text(nice).index("a b")
    assert "Be nice." not in text(nice.instructed("Be brief."))
    assert nice.instructed("") == TALK
    assert nice.reset().messages == ({"role": "system", "content": "Be nice."},)
    assert TALK.reset().messages == ()


def test_the_oldest_exchanges_go_first_and_the_system_message_stays():
    talk = Conversation(CHAT).instructed("S")
    for number in range(5):
        talk = talk.asked(f"question {number}").answered(f"answer {number}")
    talk = talk.asked("last")
    whole = len(talk.ids(TOKENIZER))
    assert talk.fitted(TOKENIZER, whole) == (talk, 0)
    assert talk.fitted(TOKENIZER, None) == (talk, 0)
    shorter, dropped = talk.fitted(TOKENIZER, whole - 1)
    assert dropped == 1
    assert "question 0" not in text(shorter)
    assert "answer 1" in text(shorter)
    assert shorter.system == "S"
    last, dropped = talk.fitted(TOKENIZER, 1)
    assert dropped == 5
    assert last == Conversation(CHAT).instructed("S").asked("last")


def test_a_translation_takes_each_text_alone():
    template = prompts.translation("French")
    talk = Conversation(template).asked("one").answered("un").asked("two")
    assert not talk.remembers
    assert talk.ids(TOKENIZER) == Conversation(template).asked("two").ids(TOKENIZER)
    assert text(talk) == "<bos>Translate this into French:\ntwo\n"
    assert talk.fitted(TOKENIZER, 1) == (talk, 0)


def test_a_template_without_a_place_for_it_refuses_a_system_message():
    with pytest.raises(UserError, match="'translate into French' has no place for a system mess"):
        Conversation(prompts.translation("French")).instructed("Be nice.")


def test_a_template_of_several_fields_of_its_own_is_refused():
    template = Template("quiz", "{question} {hint}\n", "{answer}")
    with pytest.raises(UserError, match="'quiz' has the fields hint, question"):
        Conversation(template)


def test_a_control_token_in_a_question_is_refused():
    with pytest.raises(UserError, match="<end_of_turn>"):
        TALK.answered("e").asked("a <end_of_turn> b").ids(TOKENIZER)
