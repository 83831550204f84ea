"""Templates: sections, stripped fields, conversations turn by turn, and patterns that cannot be read."""

import pytest

from ft.errors import UserError
from ft.text.messages import exchanges
from ft.text.template import Template, from_record, to_record

ROW = {"instruction": "Add.", "context": "", "response": "3"}


def template(prompt="{instruction}", completion="{response}", **options):
    return Template("mine", prompt, completion, **options)


def say(*texts, system=None):
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return ([{"role": "system", "content": system}] if system is not None else []) + turns


@pytest.mark.parametrize(
    ("pattern", "empty", "full"),
    [
        ("{?context}In: {context}\n{/context}Q", "Q", "In: 1 2\nQ"),
        ("{!context}no {/context}Q", "no Q", "Q"),
        ("{?context}a{/context}{!context}b{/context}", "b", "a"),
        ("{{{instruction}}}", "{Add.}", "{Add.}"),
        ("{?context}{{x}}{/context}", "", "{x}"),
        ("", "", ""),
    ],
)
def test_a_section_vanishes_where_its_field_is_empty(pattern, empty, full):
    t = template(pattern)
    assert t.prompt_for(ROW) == empty
    assert t.prompt_for(ROW | {"context": " \n"}) == empty
    assert t.prompt_for(ROW | {"context": "1 2"}) == full


def test_system_and_context_may_be_missing_of_an_instruction_and_nothing_else():
    t = template("{?system}{system}: {/system}{?context}{context} {/context}{instruction}")
    assert t.prompt_for({"instruction": "go"}) == "go"
    with pytest.raises(UserError, match="'mine' uses the field 'system'.*it has source"):
        t.prompt_for({"source": "go"})


def test_named_fields_lose_the_white_space_at_their_ends():
    t = template("<{instruction}>", "<{response}>", strip=("response",))
    assert t.render({"instruction": " a ", "response": " b "}) == {
        "prompt": "< a >",
        "completion": "<b>",
    }


def test_text_of_a_row_is_never_read_as_a_pattern():
    row = {"instruction": "{?context}{response}{{", "response": "{"}
    assert template().render(row) == {"prompt": row["instruction"], "completion": "{"}


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{instruction", "single '{' at character 1"),
        ("a } b", "single '}' at character 3"),
        ("{}", "single '{' at character 1"),
        ("{a.b}", "single '{' at character 1"),
        ("{?context}x", "section 'context' is not closed"),
        ("{?context}{?system}{/system}{/context}", r"\{\?system\} does not fit, inside context"),
        ("x{/context}", r"\{/context\} does not fit, inside no section"),
        ("{?context}x{/system}", r"\{/system\} does not fit, inside context section"),
    ],
)
def test_a_pattern_that_cannot_be_read_says_where(prompt, message):
    with pytest.raises(UserError, match=f"'mine', prompt: .*{message}"):
        template(prompt)


def test_a_completion_without_a_field_is_refused():
    with pytest.raises(UserError, match="'mine': the completion has no field"):
        template(completion="always this")


def test_an_empty_stop_string_is_refused():
    with pytest.raises(UserError, match="stop string is empty"):
        template(stop=("x", ""))


def test_a_field_of_a_section_that_the_row_lacks_is_named():
    with pytest.raises(UserError, match="'contxt'.*Did you mean 'context'"):
        template("{?contxt}x{/contxt}").prompt_for(ROW)


def test_a_conversation_is_its_exchanges_and_the_system_message_stands_in_the_first():
    t = template("{?system}[{system}] {/system}U {instruction} A ", "{response}")
    row = {"messages": say("a", "b", "c", "d", system="s")}
    assert t.turns(row) == [
        {"prompt": "[s] U a A ", "completion": "b"},
        {"prompt": "U c A ", "completion": "d"},
    ]


def test_an_unanswered_question_has_an_empty_completion():
    assert template().turns({"messages": say("a", "b", "c")})[-1] == {
        "prompt": "c",
        "completion": "",
    }


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "not a list"),
        ("hi", "not a list"),
        (
            [{"role": "assistant", "content": "hi"}],
            "message 1: the conversation starts with assistant",
        ),
        (
            say("a", system="s")[:1] + [{"role": "assistant", "content": "b"}],
            "message 2: the conversation starts with assistant",
        ),
        (
            [{"role": "user", "content": "a"}] * 2,
            "message 2: the conversation has two user turns in a row",
        ),
        (say("a", "b") + say("a", "b")[1:], "message 3: .* two assistant turns in a row"),
        (say("a") + say(system="late"), "message 2 has role 'system'.*stands first"),
        (
            [{"role": "human", "content": "a"}],
            "message 1 has role 'human'; allowed are system, user",
        ),
        (say("a", " "), "message 2: the assistant's content is empty"),
        (say("a", "b\ud83d"), r"message 2: half a character \(U\+D83D\) at 1"),
        ([{"role": "user", "content": None}], "message 1: content is not a string but NoneType"),
        ([{"role": "user"}], "message 1 is not an object with role and content"),
        (say(system="s"), "a system message only"),
    ],
)
def test_a_conversation_out_of_order_is_refused(messages, message):
    with pytest.raises(UserError, match=message):
        exchanges(messages)


def test_a_record_gives_the_template_back():
    t = template(stop=("a", "b"), end="<e>", tail="\n", strip=("response",))
    assert from_record(to_record(t)) == t
    plain = {"name": "n", "prompt": "{a}", "completion": "{b}", "stop": ["\n"]}
    assert from_record(plain) == Template("n", "{a}", "{b}", ("\n",))
