"""Chat templates: read from Jinja and written as Jinja, they give the text that apply_chat_template gives."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny

from ft.errors import UserError
from ft.text import calls, chat_template, prompts, tokens

TURN = "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else 'user') + '\n' }}"
CHECK = "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}"
    + CHECK
    + TURN
    + "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (
    "{{ bos_token }}{% set ns = namespace(first='', turns=messages) %}{% if messages[0]['role'] == 'system' %}"
    "{% set ns.first = messages[0]['content'] + '\n\n' %}{% set ns.turns = messages[1:] %}{% endif %}"
    "{% for m in ns.turns %}" + CHECK + TURN + "{{ ns.first if loop.first else '' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
# Gemma 4's shape, with the control tokens that the tiny tokenizer has
GEMMA4 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\n' }}"
    "{{ m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
KINDS = {"gemma2": GEMMA2, "gemma3": GEMMA3, "gemma4": GEMMA4}
SYSTEM = {"gemma2": False, "gemma3": True, "gemma4": True}
TEXTS = st.text(st.sampled_from("ab {}'\\\n\t"), max_size=12).filter(str.strip)


def tokenizer_of(jinja):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = jinja
    return tokenizer


def conversation(texts, system=None):
    turns = [
        {"role": role, "content": text}
        for role, text in zip(itertools.cycle(("user", "assistant")), texts, strict=False)
    ]
    return ([{"role": "system", "content": system}] if system else []) + turns


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=2, max_size=6), system=st.none() | TEXTS)
def test_every_conversation_is_rendered_as_the_tokenizer_does(kind, texts, system):
    tokenizer = tokenizer_of(KINDS[kind])
    template = chat_template.read(tokenizer)
    messages = conversation(texts[: len(texts) // 2 * 2], system if SYSTEM[kind] else None)
    wanted = tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat_template.text(template, messages, tokenizer.bos_token) == wanted


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), system=st.none() | TEXTS)
def test_a_prompt_has_the_ids_of_the_tokenizers_own(kind, texts, system):
    tokenizer = tokenizer_of(KINDS[kind])
    template = chat_template.read(tokenizer)
    texts = texts[: (len(texts) - 1) // 2 * 2 + 1]
    messages = conversation(texts, system if SYSTEM[kind] else None)
    wanted = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    found = tokens.prompt_ids(template, {"messages": messages}, tokenizer)
    assert tokenizer.decode(found) == tokenizer.decode(wanted)


def test_gemma_2_gets_the_system_message_in_front_of_the_users_text():
    template = chat_template.read(tokenizer_of(GEMMA2))
    (turn,) = template.turns({"messages": conversation(["hi", "yo"], system="Be brief.")})
    assert turn["prompt"] == (
        "<start_of_turn>user\nBe brief.\n\nhi<end_of_turn>\n<start_of_turn>model\n"
    )
    assert (template.end, template.tail) == ("<end_of_turn>", "\n")


def test_a_context_stands_below_the_instruction():
    template = chat_template.read(tokenizer_of(GEMMA3))
    row = {"instruction": "Sum up.", "context": "Long text.", "response": "Text."}
    assert "user\nSum up.\n\nLong text.<end_of_turn>" in template.prompt_for(row)


def test_without_a_chat_template_the_control_tokens_tell():
    tokenizer = tokenizer_of(None)
    template = chat_template.read(tokenizer)
    messages = conversation(["a ", "b", "c", " d"], "s")
    tokenizer.chat_template = GEMMA3
    wanted = tokenizer.apply_chat_template(messages, tokenize=False)
    assert chat_template.text(template, messages, tokenizer.bos_token) == wanted


@pytest.mark.parametrize("name", [*prompts.INSTRUCTION, "chat"])
@given(texts=st.lists(TEXTS, min_size=1, max_size=5), system=st.none() | TEXTS)
def test_written_as_jinja_a_template_gives_the_text_of_training(name, texts, system):
    tokenizer = tokenizer_of(GEMMA3)
    template = prompts.by_name(name, tokenizer)
    tokenizer.chat_template = chat_template.write(template, tokenizer.eos_token)
    messages = conversation(texts, system)
    turns = template.turns({"messages": messages})
    ends = [template.end or tokenizer.eos_token] * len(turns)
    wanted = tokenizer.bos_token
    for turn, end in zip(turns, ends, strict=True):
        wanted += turn["prompt"]
        wanted += turn["completion"] + end + template.tail
    if len(texts) % 2:
        wanted = wanted.removesuffix(turns[-1]["completion"] + ends[-1] + template.tail)
    assert tokenizer.apply_chat_template(messages, tokenize=False) == wanted


def test_a_tokenizer_asks_as_was_trained_and_its_own_chat_stays():
    tokenizer = tokenizer_of(GEMMA3)
    chat_template.install(tokenizer, prompts.by_name("chat", tokenizer))
    assert tokenizer.chat_template == calls.JINJA + GEMMA3  # which shows tools alone otherwise
    dolly = prompts.INSTRUCTION["dolly"]
    chat_template.install(tokenizer, dolly)
    assert tokenizer.chat_template == chat_template.write(dolly, tokenizer.eos_token)


def test_jinja_refuses_turns_out_of_order():
    tokenizer = tokenizer_of(GEMMA3)
    tokenizer.chat_template = chat_template.write(prompts.INSTRUCTION["dolly"], "<eos>")
    with pytest.raises(Exception, match="turns must be"):
        tokenizer.apply_chat_template([{"role": "assistant", "content": "a"}], tokenize=False)
    with pytest.raises(Exception, match="two user turns"):
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}] * 2, tokenize=False)


@pytest.mark.parametrize(
    ("jinja", "message"),
    [
        ("{{ raise_exception('never') }}", "refuses a user's turn"),
        ("{{ bos_token }}{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "control token"),
        (GEMMA4.replace("{% for", "{{ messages | length }}{% for"), "more than join turns"),
    ],
)
def test_a_template_that_is_not_one_of_turns_is_refused(jinja, message):
    with pytest.raises(UserError, match=message):
        chat_template.read(tokenizer_of(jinja))


def test_a_tokenizer_without_turns_is_refused():
    tokenizer = tokenizer_of(None)
    tokenizer.get_vocab = lambda: {"a": 0}
    with pytest.raises(UserError, match="no chat template and no tokens for turns"):
        chat_template.read(tokenizer)


def test_a_translations_last_question_stands_alone_in_every_program():
    tokenizer, template = tiny.tokenizer(), prompts.translation("French")
    chat_template.install(tokenizer, template)
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "salut"},
        {"role": "user", "content": "bye"},
    ]
    for question, messages in (("hi", talk[:1]), ("bye", talk)):
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert found == "<bos>" + template.prompt_for({"source": question})
    learnt = template.render({"source": "hi", "target": "salut"})
    found = tokenizer.apply_chat_template(talk[:2], tokenize=False)
    assert found == "<bos>" + learnt["prompt"] + learnt["completion"] + "<eos>"
    with pytest.raises(Exception, match="no place for a system message"):
        tokenizer.apply_chat_template([{"role": "system", "content": "s"}, *talk], tokenize=False)


def test_a_template_whose_questions_stand_alone_is_read_back_so():
    """As a merged translation run has it."""
    tokenizer, written = tiny.tokenizer(), prompts.translation()
    chat_template.install(tokenizer, written)
    found = chat_template.read(tokenizer)
    assert found.fields == {"question"}
    for text in ("le chat", " deux\nlignes "):
        assert found.prompt_for({"question": text}) == written.prompt_for({"source": text})
    assert (found.end or tokenizer.eos_token) == (written.end or tokenizer.eos_token)
