"""Conversations with tools and thoughts: the ids of apply_chat_template, and only what the model writes is learnt."""

import dataclasses
import random

import pytest
from support import gemma_tokens

from ft.errors import UserError
from ft.text import calls, chat_template, forms, messages, tokens

TEMPLATES = gemma_tokens.of_trl()
NATIVE = [name for name in TEMPLATES if "gemma4" in name or "diffusion" in name]
BY_PROMPT = [name for name in TEMPLATES if name not in NATIVE]  # of Gemma 1 to 3
# FunctionGemma's shape: declarations in a developer's turn, results inside the model's
FUNCTION_GEMMA = """{{ bos_token }}{% set ns = namespace(open=false, rest=messages) %}
{%- if tools or messages[0]['role'] == 'system' %}{{ '<start_of_turn>developer\n' }}
{%- if messages[0]['role'] == 'system' %}{{ messages[0]['content'] | trim }}{% set ns.rest = messages[1:] %}{% endif %}
{%- for tool in tools or [] %}{{ '<start_function_declaration>declaration:' ~ tool['function']['name'] }}
{{- '{description:<escape>' ~ tool['function']['description'] ~ '<escape>}<end_function_declaration>' }}{% endfor %}
{{- '<end_of_turn>\n' }}{% endif %}
{%- for m in ns.rest %}
{%- if m['role'] == 'tool' %}
{{- ('' if ns.open else '<start_function_response>') ~ 'response:' ~ m['name'] ~ '{value:<escape>' }}
{{- m['content'] ~ '<escape>}<end_function_response>' }}{% set ns.open = none %}
{%- else %}
{%- if ns.open is not none %}{{ '<start_of_turn>' ~ ('model' if m['role'] == 'assistant' else m['role']) ~ '\n' }}{% endif %}
{{- m['content'] | trim }}{% set ns.open = false %}
{%- if m.get('tool_calls') %}{% for c in m['tool_calls'] %}{{ '<start_function_call>call:' ~ c['function']['name'] ~ '{' }}
{%- for k, v in c['function']['arguments'] | items %}{{ k ~ ':<escape>' ~ v ~ '<escape>' }}{% endfor %}
{{- '}<end_function_call>' }}{% endfor %}{{ '<start_function_response>' }}{% set ns.open = true %}
{%- else %}{{ '<end_of_turn>\n' }}{% endif %}{% endif %}{% endfor %}
{%- if add_generation_prompt and ns.open is not none %}{{ '<start_of_turn>model\n' }}{% endif %}"""
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def jinja_of(name):
    return FUNCTION_GEMMA if name == "function_gemma" else TEMPLATES[name].read_text()


def tokenizer_of(name):
    """As a run saves it: with tools by prompt where the template has no place for them."""
    tokenizer = gemma_tokens.tokenizer_of(jinja_of(name))
    template = chat_template.read(tokenizer)
    if name in BY_PROMPT:
        chat_template.install(tokenizer, template)
    else:
        assert chat_template.complete(tokenizer) == jinja_of(name)
    return tokenizer, template


def conversation(seed, *, tools, thinks):
    """A conversation of some rounds: questions, calls, results, thoughts, answers; its learnable texts."""
    draw = random.Random(seed)
    messages, written, read = [], [], []
    if draw.random() < 0.4:
        messages.append({"role": "system", "content": f"system {seed}"})
    for turn in range(draw.randint(1, 3)):
        messages.append({"role": "user", "content": f"question {turn}?"})
        read.append(f"question {turn}?")
        for step in range(draw.randint(0, 2) if tools else 0):
            call = {"name": "get_weather", "arguments": {"city": f"city{turn}{step}"}}
            messages.append(
                {"role": "assistant", "content": ""}
                | {"tool_calls": [{"id": f"{step}", "type": "function", "function": call}]}
                | ({"reasoning_content": f"thought {turn} {step}"} if thinks else {})
            )
            result = {"role": "tool", "name": "get_weather", "tool_call_id": f"{step}"}
            messages.append(result | {"content": f"result {turn} {step}"})
            written.append(f"city{turn}{step}")
            read.append(f"result {turn} {step}")
        messages.append({"role": "assistant", "content": f"answer {turn}."})
        written.append(f"answer {turn}.")
    return {"messages": messages} | ({"tools": [WEATHER]} if tools else {}), written, read


@pytest.mark.parametrize("name", [*TEMPLATES, "function_gemma"])
@pytest.mark.parametrize("seed", range(12))
def test_tools_have_the_ids_of_apply_chat_template_and_results_are_never_learnt(name, seed):
    tokenizer, template = tokenizer_of(name)
    shows = forms.form_of(tokenizer).thought is not None
    row, written, read = conversation(seed, tools=True, thinks=shows)
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=10**6).examples
    wanted = tokenizer.apply_chat_template(row["messages"], tools=row["tools"])["input_ids"]
    assert example["input_ids"] == wanted
    learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
    assert all(text in learnt for text in written)
    assert not any(text in learnt for text in [*read, "declaration", "turn>model"])
    masked = tokens.encode_rows(
        [row], template, tokenizer, max_length=10**6, supervise_thinking=False
    ).examples[0]
    assert masked["input_ids"] == wanted
    left = tokenizer.decode([i for i in masked["labels"] if i != tokens.IGNORE])
    assert "thought" not in left
    assert all(text in left for text in written)


@pytest.mark.parametrize("name", [*TEMPLATES, "function_gemma"])
@pytest.mark.parametrize("seed", range(6))
def test_a_prompt_asks_as_apply_chat_template_does(name, seed):
    tokenizer, template = tokenizer_of(name)
    row, *_ = conversation(seed, tools=True, thinks=False)
    for n, message in enumerate(row["messages"]):
        if message["role"] in ("user", "tool"):
            asked = row["messages"][: n + 1]
            wanted = tokenizer.apply_chat_template(
                asked, tools=row["tools"], add_generation_prompt=True
            )["input_ids"]
            found = tokens.prompt_ids(template, row | {"messages": asked}, tokenizer)
            assert found == wanted


ODD = {"na-me": 'Zürich "x" \\n', "deep": {"list": [1, None, True, {"a": "{"}]}, "n": 1.5e-7}


@pytest.mark.parametrize("name", BY_PROMPT)
def test_calls_by_prompt_are_read_back_from_what_is_learnt(name):
    tokenizer = gemma_tokens.tokenizer_of(jinja_of(name))
    template = chat_template.read(tokenizer)
    made = [
        {"type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in (("get_weather", ODD), ("other-one", {}))
    ]
    row = {
        "tools": [WEATHER],
        "messages": [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "I look.", "tool_calls": made},
            {"role": "tool", "content": "sunny"},
            {"role": "tool", "content": '{"name": "get_weather", "parameters": {}}'},
            {"role": "assistant", "content": "Sunny."},
        ],
    }
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=10**6).examples
    learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
    first, second, _ = learnt.split("<end_of_turn>")
    names = ("get_weather", "other-one")
    assert calls.read_back(first, names) == ("I look.", made)
    assert calls.read_back(second, names) == ("Sunny.", [])
    assert tokenizer.decode(example["input_ids"]).count("```tool_output\n") == 2


@pytest.mark.parametrize(
    ("text", "left", "found"),
    [
        ('```json\n[{"name": "f", "arguments": {"x": 1}}]\n```', "", [{"x": 1}]),
        ('{"name": "f", "parameters": {}}, {"name": "f"}', "", [{}, {}]),
        ('Well: {"name": "f", "parameters": {}}', "Well:", [{}]),
        ('{"name": "g", "parameters": {}}', '{"name": "g", "parameters": {}}', []),
        ('{"name": "f", "parameters": [1]}', '{"name": "f", "parameters": [1]}', []),
        ('{"name": "f", "parameters": {', '{"name": "f", "parameters": {', []),
        ("{" * 2000 + " ", "{" * 2000 + " ", []),
        ("no call {at} all", "no call {at} all", []),
    ],
)
def test_what_models_write_around_calls_is_read_too(text, left, found):
    rest, read = calls.read_back(text, ["f"])
    assert (rest, [call["function"]["arguments"] for call in read]) == (left, found)


def test_a_result_inside_a_call_is_refused_where_the_template_would_leave_it_out():
    tokenizer = gemma_tokens.tokenizer_of(jinja_of("gemma3"))
    template = chat_template.read(tokenizer)
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    inside = {"tool_calls": [call], "tool_responses": [{"name": "f", "response": "r"}]}
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", **inside}]
    with pytest.raises(UserError, match="message 2: .*no place for its result"):
        tokens.encode_rows([{"messages": talk}], template, tokenizer, max_length=999)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("seed", range(8))
def test_trls_templates_agree_on_texts_with_and_without_a_prompt_to_generate(name, seed):
    tokenizer = gemma_tokens.tokenizer_of(jinja_of(name))
    template = chat_template.read(tokenizer)
    row, *_ = conversation(seed, tools=False, thinks=False)
    messages = row["messages"]
    chat_template.install(tokenizer, template)  # a system message on Gemma 1 and 2 included
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=10**6).examples
    assert example["input_ids"] == tokenizer.apply_chat_template(messages)["input_ids"]
    asked = {"messages": messages[:-1]}
    wanted = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert tokens.prompt_ids(template, asked, tokenizer) == wanted
    assert example["input_ids"][: len(wanted)] == wanted


def test_gemma_1_keeps_folding_a_system_message_when_it_is_loaded_again(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = gemma_tokens.tokenizer_of(jinja_of("gemma"))
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " hi "}]
    template = chat_template.read(tokenizer)
    chat_template.install(tokenizer, template)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    wanted = loaded.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert tokens.prompt_ids(template, {"messages": talk}, tokenizer) == wanted
    assert chat_template.read(loaded) == template
    once = tokenizer.chat_template
    chat_template.install(loaded, template)
    assert loaded.chat_template == once


def test_with_thoughts_asked_for_every_row_has_the_models_mark():
    tokenizer = gemma_tokens.tokenizer_of(jinja_of("gemma4_v5"))
    template = chat_template.read(tokenizer)
    asking = dataclasses.replace(template, thinking=True)
    row = {"instruction": "2+2?", "response": "4"}
    talk = [{"role": "user", "content": "2+2?"}]
    wanted = tokenizer.apply_chat_template(talk, add_generation_prompt=True, enable_thinking=True)
    asked = tokens.prompt_ids(asking, {"instruction": "2+2?"}, tokenizer)
    assert asked == wanted["input_ids"]
    assert "<|think|>" in tokenizer.decode(asked)
    (example,) = tokens.encode_rows([row], asking, tokenizer, max_length=999).examples
    assert example["input_ids"][: len(asked)] == asked
    other = gemma_tokens.tokenizer_of(jinja_of("gemma3"))
    with pytest.raises(UserError, match="nothing that asks for thoughts"):
        tokens.prompt_ids(asking, {"instruction": "2+2?"}, other)


def test_a_turn_of_weight_0_among_calls_is_read_and_not_learnt():
    tokenizer = gemma_tokens.tokenizer_of(jinja_of("gemma4_v5"))
    template = chat_template.read(tokenizer)
    row, *_ = conversation(3, tools=True, thinks=False)
    last = row["messages"][-1]
    row["messages"][-1] = last | {"learn": False}
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=999).examples
    learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
    assert last["content"] not in learnt
    assert last["content"] in tokenizer.decode(example["input_ids"])
    assert learnt


def parallel_calls(with_ids, two_messages=False):
    """A conversation in which the first of two functions answers first."""
    made = [{"function": {"name": name, "arguments": {}}} for name in ("first", "second")]
    ids = [{"id": f"c{n}"} if with_ids else {} for n in range(2)]
    made = [{"type": "function"} | call | i for call, i in zip(made, ids, strict=True)]
    sides = [made[:1], made[1:]] if two_messages else [made]
    results = [{"tool_call_id": i["id"]} if i else {} for i in ids]
    return [
        {"role": "user", "content": "q"},
        *({"role": "assistant", "content": "", "tool_calls": calls} for calls in sides),
        *({"role": "tool", "content": "r"} | result for result in results),
        {"role": "assistant", "content": "a"},
    ]


@pytest.mark.parametrize("two_messages", [False, True])
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("name", ["gemma4_v5", "function"])
def test_a_result_has_the_name_of_its_call(name, with_ids, two_messages):
    """OpenAI's results have no names, ShareGPT's neither names nor ids, by which templates know their call."""
    jinja = FUNCTION_GEMMA if name == "function" else TEMPLATES[name].read_text()
    tokenizer = gemma_tokens.tokenizer_of(jinja)
    row = {"messages": parallel_calls(with_ids, two_messages), "tools": [WEATHER]}
    template = chat_template.read(tokenizer)
    (example,) = tokens.encode_rows([row], template, tokenizer, max_length=999).examples
    text = tokenizer.decode(example["input_ids"])
    assert 0 < text.index("response:first{") < text.index("response:second{")


def test_a_result_that_is_of_no_call_is_refused():
    talk = parallel_calls(with_ids=True)
    talk[2] = talk[2] | {"tool_call_id": "other"}
    wanted = "message 3: tool_call_id 'other' is of no call; those before it have 'c0', 'c1'"
    assert messages.fault_of(talk) == wanted
    assert messages.fault_of(parallel_calls(with_ids=True, two_messages=True)) == ""
