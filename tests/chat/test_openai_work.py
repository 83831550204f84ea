"""What a client may ask beyond a plain answer: samplers, likelihoods, JSON, tools, thoughts, the base."""

import contextlib
import json
import math
import types
from typing import Any

import pytest
import torch
from support import gemma_tokens, tiny
from support.serving import events, post, send, serving

from ft.chat import openai_request, openai_work, partner
from ft.chat.conversation import Conversation
from ft.generate import answers, constraints
from ft.generate.samplers import Beam, Chain, Greedy, MinP, TopK, TopP
from ft.score import logits
from ft.text import prompts

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)
ASK = {"messages": [{"role": "user", "content": "hi"}], "temperature": 0, "max_tokens": 8}
TEXT = {"prompt": "hi", "temperature": 0, "max_tokens": 8}
COMPLETIONS, CHATS = "/v1/completions", "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


IDS = [2, *TOKENIZER("hi", add_special_tokens=False)["input_ids"]]


def test_without_a_name_the_model_that_there_is_answers(server):
    assert post(server, COMPLETIONS, TEXT)["model"] == "tiny"


@pytest.mark.parametrize(
    ("asked", "sampler"),
    [
        ({"temperature": 0.9, "top_k": 5}, Chain((TopK(5, 0.9), TopP(1.0)))),
        ({"temperature": 0.9, "min_p": 0.2}, Chain((MinP(0.2, 0.9), TopP(1.0)))),
        (
            {"temperature": 0.5, "top_k": 9, "min_p": 0.1, "top_p": 0.9},
            Chain((TopK(9, 0.5), MinP(0.1), TopP(0.9))),
        ),
        ({"top_k": -1, "temperature": 0.7}, TopP(1.0, 0.7)),
        ({"presence_penalty": 1.5, "temperature": 0}, Chain((constraints.Penalty(1.5), Greedy()))),
        (
            {"frequency_penalty": 2, "temperature": 0},
            Chain((constraints.Penalty(frequency=2.0), Greedy())),
        ),
        (
            {"repetition_penalty": 1.8, "temperature": 0},
            Chain((constraints.RepetitionPenalty(1.8), Greedy())),
        ),
        (
            {"logit_bias": {"70": 100, "71": -100}, "temperature": 0},
            Chain((constraints.Bias(((70, 100.0), (71, -100.0))), Greedy())),
        ),
    ],
)
def test_each_way_of_choosing_is_the_samplers_own(asked, sampler, server, model):
    found = post(server, COMPLETIONS, TEXT | asked | {"seed": 3})["choices"][0]["text"]
    wanted = answers.generate(
        model, TOKENIZER, [IDS], sampler, max_new_tokens=8, template=CHAT, seed=3
    )
    assert found == wanted[0][0].text
    if "top_k" not in asked and "min_p" not in asked:
        assert found != post(server, COMPLETIONS, TEXT)["choices"][0]["text"]


def test_several_streamed_answers_are_the_whole_ones(server):
    body = TEXT | {"temperature": 1, "seed": 4, "n": 3, "prompt": ["hi", "ho"]}
    whole = [choice["text"] for choice in post(server, COMPLETIONS, body)["choices"]]
    texts = [""] * 6
    ends = {}
    for event in events(server, COMPLETIONS, body):
        (choice,) = event["choices"]
        assert choice["index"] not in ends
        texts[choice["index"]] += choice["text"]
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    assert texts == whole
    assert len(ends) == 6


def likelihoods(model, ids):
    """log p of each id after those before it, by the model alone."""
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits.log_softmax(-1)[0]
    return [float(found[at, token]) for at, token in enumerate(ids[1:])]


@pytest.mark.parametrize("most", [0, 1])
def test_an_echoed_prompt_has_the_likelihood_that_we_score(most, server, model):
    prompt = [2, *TOKENIZER("the capital of France", add_special_tokens=False)["input_ids"]]
    body = {"prompt": [prompt, IDS], "max_tokens": most, "logprobs": 1, "echo": True, "seed": 1}
    choices = post(server, COMPLETIONS, body | {"temperature": 0})["choices"]
    for ids, choice in zip([prompt, IDS], choices, strict=True):
        found = choice["logprobs"]
        assert len(found["tokens"]) == len(ids) + most
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        chances = found["token_logprobs"][1 : len(ids)]
        assert chances == pytest.approx(likelihoods(model, ids), abs=1e-4)
        ours = -logits.score(model, torch.tensor([ids]), mode="loss").sum().detach()
        assert sum(chances) == pytest.approx(float(ours), abs=1e-4)
        assert choice["text"].startswith(TOKENIZER.decode(ids, skip_special_tokens=True))
        for token, best in zip(found["tokens"][1:], found["top_logprobs"][1:], strict=True):
            assert len(best) == 1
            assert math.isfinite(*best.values())
            assert token  # lm-eval compares it with the likeliest
        assert found["text_offset"][:2] == [0, 0]  # BOS is no text


def test_the_likeliest_tokens_are_the_models(server, model):
    body = ASK | {"logprobs": True, "top_logprobs": 3}
    content = post(server, CHATS, body)["choices"][0]["logprobs"]["content"]
    for place in content:
        best = [each["logprob"] for each in place["top_logprobs"]]
        assert best == sorted(best, reverse=True)
        assert len(best) == 3
        assert place["logprob"] == best[0]  # it was chosen greedily
        assert place["token"] == place["top_logprobs"][0]["token"]
    plain = post(server, CHATS, ASK | {"logprobs": True})["choices"][0]["logprobs"]["content"]
    assert [each["logprob"] for each in plain] == [each["logprob"] for each in content]
    assert not any(each["top_logprobs"] for each in plain)
    text = post(server, COMPLETIONS, TEXT | {"logprobs": 2})["choices"][0]["logprobs"]
    assert all(
        token in best for token, best in zip(text["tokens"], text["top_logprobs"], strict=True)
    )


SCHEMA = {
    "type": "object",
    "properties": {"age": {"type": "integer"}, "kind": {"enum": ["cat", "dog"]}},
    "required": ["age", "kind"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("temperature", [0, 1])
def test_an_answer_is_json_of_its_schema(stream, temperature, server):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"name": "pet", "schema": SCHEMA}}
    body = ASK | {"response_format": form, "temperature": temperature, "max_tokens": 300, "seed": 2}
    if stream:
        deltas = [event["choices"][0]["delta"] for event in events(server, CHATS, body)]
        found = json.loads("".join(delta.get("content", "") for delta in deltas))
    else:
        choice = post(server, CHATS, body | {"n": 1 + temperature})["choices"][-1]
        assert choice["finish_reason"] == "stop"
        found = json.loads(choice["message"]["content"])
    assert found.keys() == {"age", "kind"}
    assert isinstance(found["age"], int)
    assert found["kind"] in ("cat", "dog")


def test_a_schema_that_cannot_be_followed_is_refused(server):
    pytest.importorskip("llguidance")
    form = {"type": "json_schema", "json_schema": {"schema": {"type": "no such"}}}
    status, answer = send(server, "POST", CHATS, ASK | {"response_format": form})
    error = json.loads(answer)["error"]
    assert (status, error["param"]) == (400, "response_format")
    assert "no such" in error["message"]


def test_without_its_library_a_schema_is_refused(server, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "llguidance", None)
    form = {"type": "json_object"}
    status, answer = send(server, "POST", CHATS, ASK | {"response_format": form})
    assert status == 400
    assert "[serve]" in json.loads(answer)["error"]["message"]


@contextlib.contextmanager
def writing(jinja: str, text: str, monkeypatch):
    """A server whose model writes ``text`` by a chat template, to the end token of a turn."""
    tokenizer = gemma_tokens.tokenizer_of(jinja)
    template = prompts.by_name("chat", tokenizer)
    ids = tokenizer(text + (template.end or "<eos>"), add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(openai_work, "sampler", lambda *_: constraints.Forced(tuple(ids)))
    model = tiny.build("gemma3_text", vocab_size=448, max_position_embeddings=2048)
    with serving(partner.Partner("tiny", model, tokenizer, template), max_new_tokens=200) as server:
        yield server


GEMMA4, GEMMA3 = (gemma_tokens.of_trl()[name].read_text() for name in ("gemma4_v5", "gemma3"))
CALL = '<|tool_call>call:get_weather{city:<|"|>Paris, "the" {city}<|"|>,days:3}<tool_call|>'
BY_PROMPT = '{"name": "get_weather", "parameters": {"city": "Paris, \\"the\\" {city}", "days": 3}}'
THOUGHT = "<|channel>thought\nHm, let me see.<channel|>"


def streamed(server, body) -> tuple[dict, str]:
    """A streamed message, put together as clients do it, and why it ended."""
    found, calls, reason = {"content": "", "reasoning_content": ""}, {}, ""
    for event in events(server, CHATS, body):
        (choice,) = event["choices"]
        reason = choice["finish_reason"] or reason
        for key in found:
            found[key] += choice["delta"].get(key) or ""
        for call in choice["delta"].get("tool_calls", []):
            calls[call["index"]] = call["function"]
    return found | {"calls": [calls[at] for at in sorted(calls)]}, reason


def test_a_run_answers_as_its_scores_were_made(model):
    """Whole, streamed and at a terminal; a temperature of one's own draws as ever."""
    run: Any = types.SimpleNamespace(sampler=Beam(3, no_repeat_ngram_size=2))
    who = partner.Partner("tiny", model, TOKENIZER, CHAT, run=run)
    ids = Conversation(CHAT).asked("hi").ids(TOKENIZER)
    options: Any = {"max_new_tokens": 8, "template": CHAT}
    ((best,),) = answers.generate(model, TOKENIZER, [ids], run.sampler, **options)
    ((plain,),) = answers.generate(model, TOKENIZER, [ids], **options)
    assert best.text.strip() != plain.text.strip()
    with serving(who) as server:
        found = post(server, CHATS, ASK)["choices"][0]["message"]["content"]
        assert found == best.text.strip() == streamed(server, ASK)[0]["content"]
        drawn = ASK | {"temperature": 0.5, "seed": 3, "top_p": 1}
        other = post(server, CHATS, drawn)["choices"][0]["message"]["content"]
        assert other == streamed(server, drawn)[0]["content"]
    pieces = who.answer(ids, who.likeliest, max_new_tokens=8, seed=0)
    assert "".join(pieces) == best.text


@pytest.mark.parametrize(("jinja", "call"), [(GEMMA4, CALL), (GEMMA3, BY_PROMPT)])
@pytest.mark.parametrize("said", ["", "I look. "])
def test_a_call_comes_back_as_a_call_whole_and_streamed(jinja, call, said, monkeypatch):
    body = {"messages": ASK["messages"], "tools": [WEATHER]}
    with writing(jinja, said + call, monkeypatch) as server:
        choice = post(server, CHATS, body)["choices"][0]
        (made,) = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert made["type"] == "function"
        assert made["function"]["name"] == "get_weather"
        wanted = {"city": 'Paris, "the" {city}', "days": 3}
        assert json.loads(made["function"]["arguments"]) == wanted
        assert choice["message"]["content"] == (said.strip() or None)
        found, reason = streamed(server, body)
        assert found["calls"] == [made["function"]]
        assert (found["content"], reason) == (said.strip(), "tool_calls")


@pytest.mark.parametrize(("jinja", "call"), [(GEMMA4, CALL), (GEMMA3, BY_PROMPT)])
def test_of_several_calls_a_client_may_want_the_first_alone(jinja, call, monkeypatch):
    body = {"messages": ASK["messages"], "tools": [WEATHER]}
    with writing(jinja, f"{call}\n{call}", monkeypatch) as server:
        for options, count in (({}, 2), ({"parallel_tool_calls": False}, 1)):
            (choice,) = post(server, CHATS, body | options)["choices"]
            assert len(choice["message"]["tool_calls"]) == count
            assert choice["message"]["content"] is None
            found, reason = streamed(server, body | options)
            assert (len(found["calls"]), found["content"], reason) == (count, "", "tool_calls")


def test_no_effort_goes_without_the_thoughts_that_a_run_asks_for():
    tokenizer = gemma_tokens.tokenizer_of(GEMMA4)
    template = prompts.by_name("chat", tokenizer, enable_thinking=True)
    who: Any = types.SimpleNamespace(template=template, tokenizer=tokenizer, context=2048)
    read = lambda **more: openai_work.prompts(  # noqa: E731
        who, openai_request.parse(json.dumps(ASK | more).encode(), chat=True)
    )
    off = read(chat_template_kwargs={"enable_thinking": False})
    assert read(reasoning_effort="none") == off != read(reasoning_effort="medium") == read()


def test_what_a_tool_said_is_read_as_the_chat_template_shows_it(monkeypatch):
    call = {"id": "c1", "type": "function"}
    call |= {"function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    seen = []
    with writing(GEMMA4, "ok", monkeypatch) as server:
        plain = openai_work.prompts
        monkeypatch.setattr(
            openai_work, "prompts", lambda *args: seen.append(plain(*args)) or seen[-1]
        )
        post(server, CHATS, {"messages": messages, "tools": [WEATHER]})
        tokenizer = server.partner.tokenizer
    parsed = json.loads(json.dumps(messages))
    parsed[1] |= {"content": ""}
    parsed[1]["tool_calls"][0]["function"]["arguments"] = {"city": "Paris"}
    text = tokenizer.apply_chat_template(
        parsed, tools=[WEATHER], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(seen[0][0]) == text


def test_a_call_that_cannot_be_read_is_text(monkeypatch):
    with writing(GEMMA4, "<|tool_call>nonsense<tool_call|>", monkeypatch) as server:
        choice = post(server, CHATS, {"messages": ASK["messages"], "tools": [WEATHER]})["choices"][
            0
        ]
        assert choice["message"]["content"] == "nonsense"
        assert "tool_calls" not in choice["message"]
        assert choice["finish_reason"] == "stop"


def test_thoughts_come_apart_from_the_answer_or_not_at_all(monkeypatch):
    with writing(GEMMA4, THOUGHT + "Bonjour.", monkeypatch) as server:
        for hidden in (False, True):
            body = {"messages": ASK["messages"], "include_reasoning": not hidden}
            message = post(server, CHATS, body)["choices"][0]["message"]
            assert message["content"] == "Bonjour."
            found, reason = streamed(server, body)
            assert (found["content"], reason) == ("Bonjour.", "stop")
            shown = "" if hidden else "Hm, let me see."
            assert message.get("reasoning_content", "") == found["reasoning_content"] == shown
        body = {"messages": ASK["messages"], "logprobs": True}
        content = post(server, CHATS, body)["choices"][0]["logprobs"]["content"]
        assert "".join(place["token"] for place in content) == "Bonjour."


@pytest.mark.parametrize(
    ("choice", "begin"),
    [
        ("required", "<|tool_call>"),
        ({"type": "function", "function": {"name": "get_weather"}}, CALL[:29]),
    ],
)
def test_a_call_can_be_required(choice, begin):
    tokenizer = gemma_tokens.tokenizer_of(GEMMA4)
    template = prompts.by_name("chat", tokenizer)
    model = tiny.build("gemma3_text", vocab_size=448, max_position_embeddings=2048)
    with serving(partner.Partner("tiny", model, tokenizer, template)) as server:
        body = ASK | {"tools": [WEATHER], "tool_choice": choice, "max_tokens": 40}
        message = post(server, CHATS, body)["choices"][0]["message"]
    assert CALL.startswith(begin)
    called = message.get("tool_calls")
    assert called or message["content"] is not None  # its arguments may be nonsense


def test_a_runs_base_answers_under_its_own_name(model):
    other = tiny.build("gemma3_text", seed=1)
    who = partner.Partner(
        "tiny", model, TOKENIZER, CHAT, run=types.SimpleNamespace(sampler=Greedy()), _base=other
    )  # pyright: ignore
    with serving(who) as server:
        names = [each["id"] for each in json.loads(send(server, "GET", "/v1/models")[1])["data"]]
        assert names == ["tiny", "tiny-base"]
        for name, answering in zip(names, (model, other), strict=True):
            wanted = answers.generate(answering, TOKENIZER, [IDS], max_new_tokens=8, template=CHAT)[
                0
            ][0].text
            found = post(server, COMPLETIONS, TEXT | {"model": name})
            assert (found["model"], found["choices"][0]["text"]) == (name, wanted)
