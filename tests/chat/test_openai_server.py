"""The server: answers as OpenAI's clients read them, whole and streamed, and every mistake as one JSON error."""

import contextlib
import dataclasses
import http.client
import json
import re
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import tiny
from support.serving import JSON, events, post, send, serving, until

from ft import __main__ as cli
from ft.chat import openai_server, partner
from ft.chat.conversation import Conversation
from ft.chat.openai_server import Server
from ft.generate import answers, growing, together
from ft.generate.samplers import Greedy, TopP
from ft.text import prompts

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)
HI = [{"role": "user", "content": "hi"}]
ASK = {"model": "tiny", "messages": HI, "temperature": 0, "max_tokens": 8}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
TEXT = {"model": "tiny", "prompt": "hi", "temperature": 0, "max_tokens": 8}


def wanted(model, prompt, sampler=Greedy(), n: int = 1, seed: int = 0, **options):  # noqa: B008
    options = {"max_new_tokens": 8, "template": CHAT} | options
    return answers.generate(model, TOKENIZER, [prompt], sampler, n=n, seed=seed, **options)[0]


CHAT_IDS = Conversation(CHAT).asked("hi").ids(TOKENIZER)


def test_a_chat_completion_is_the_models_answer(server, model):
    found = post(server, "/v1/chat/completions", ASK)
    (answer,) = wanted(model, CHAT_IDS)
    assert found["object"] == "chat.completion"
    assert found["model"] == "tiny"
    assert found["id"].startswith("chatcmpl-")
    assert abs(found["created"] - time.time()) < 60
    (choice,) = found["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"] == answer.text.strip()
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "length", None)
    assert found["usage"] == {
        "prompt_tokens": len(CHAT_IDS),
        "completion_tokens": 8,
        "total_tokens": len(CHAT_IDS) + 8,
    }


def test_a_completion_goes_on_with_a_text_or_with_ids(server, model):
    ids = [2, *TOKENIZER("hi", add_special_tokens=False)["input_ids"]]
    (answer,) = wanted(model, ids)
    several = TEXT | {"prompt": ["hi", "<bos>hi"]}
    for body, count in ((TEXT, 1), (TEXT | {"prompt": ids}, 1), (several, 2)):
        found = post(server, "/v1/completions", body)
        assert found["object"] == "text_completion"
        assert found["usage"]["prompt_tokens"] == count * len(ids)
        assert found["choices"][0]["text"] == answer.text
        assert [c["index"] for c in found["choices"]] == list(range(count))
    both = post(server, "/v1/completions", TEXT | {"prompt": [ids, [2, 70]]})
    assert both["choices"][1]["text"] == wanted(model, [2, 70])[0].text


def test_a_stream_is_the_same_answer_in_pieces(server):
    for path, body in (("/v1/chat/completions", ASK), ("/v1/completions", TEXT)):
        whole = post(server, path, body)["choices"][0]
        found = events(server, path, body | {"stream_options": {"include_usage": True}})
        assert len({(e["id"], e["created"], e["model"], e["object"]) for e in found}) == 1
        *pieces, last, counts = found
        choices = [event["choices"][0] for event in pieces]
        if "chat" in path:
            assert found[0]["object"] == "chat.completion.chunk"
            assert choices[0]["delta"]["role"] == "assistant"
            assert not any("role" in c["delta"] for c in choices[1:])
            assert last["choices"][0]["delta"] == {}
            text = "".join(c["delta"]["content"] for c in choices)
            assert text == whole["message"]["content"]
        else:
            assert "".join(c["text"] for c in choices) == whole["text"]
        assert {c["finish_reason"] for c in choices} == {None}
        assert last["choices"][0]["finish_reason"] == whole["finish_reason"]
        assert counts["choices"] == []
        assert counts["usage"] == post(server, path, body)["usage"]
        assert "usage" not in events(server, path, body)[-1]


def test_draws_follow_seed_temperature_and_top_p(server, model):
    body = ASK | {"temperature": 0.9, "top_p": 0.8, "seed": 5, "n": 3}
    found = post(server, "/v1/chat/completions", body)
    answers = wanted(model, CHAT_IDS, TopP(0.8, 0.9), n=3, seed=5)
    assert [c["message"]["content"] for c in found["choices"]] == [a.text.strip() for a in answers]
    assert len({a.text for a in answers}) > 1
    assert found["usage"]["completion_tokens"] == sum(len(a.ids) for a in answers)
    free = ASK | {"temperature": 1}
    texts = [str(post(server, "/v1/chat/completions", free)["choices"]) for _ in range(3)]
    assert len(set(texts)) > 1  # without a seed


def test_a_stop_string_ends_the_answer_and_does_not_come(server):
    whole = post(server, "/v1/completions", TEXT)["choices"][0]["text"]
    stop = whole[3:5]
    for given in (stop, ["never", stop]):
        choice = post(server, "/v1/completions", TEXT | {"stop": given})["choices"][0]
        assert choice["text"] == whole[: whole.index(stop)]
        assert choice["finish_reason"] == "stop"
        pieces = events(server, "/v1/completions", TEXT | {"stop": given})
        assert "".join(e["choices"][0]["text"] for e in pieces) == choice["text"]
        assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_templates_own_stop_ends_an_answer_too(model):
    text = wanted(model, CHAT_IDS)[0].text
    stop = next(letter for letter in text.strip()[1:] if letter.strip())
    template = dataclasses.replace(CHAT, stop=(stop,))
    with serving(partner.Partner("tiny", model, TOKENIZER, template)) as server:
        choice = post(server, "/v1/chat/completions", ASK)["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["content"] == text[: text.index(stop)].strip()


def test_log_probabilities_are_the_models_own(server, model):
    (answer,) = wanted(model, CHAT_IDS)
    body = ASK | {"logprobs": True}
    choice = post(server, "/v1/chat/completions", body)["choices"][0]
    content = choice["logprobs"]["content"]
    assert [c["logprob"] for c in content] == pytest.approx(list(answer.logprobs), abs=1e-5)
    assert [c["token"] for c in content] == [TOKENIZER.decode([i]) for i in answer.ids]
    spelled = bytes(byte for c in content for byte in c["bytes"])
    assert spelled.decode(errors="replace") == answer.text
    choice = post(server, "/v1/completions", TEXT | {"logprobs": 0})["choices"][0]
    found = choice["logprobs"]
    for token, at, following in zip(
        found["tokens"], found["text_offset"], [*found["text_offset"][1:], None], strict=True
    ):
        if "\N{REPLACEMENT CHARACTER}" not in token:
            assert choice["text"][at:following] == token
    assert len(found["token_logprobs"]) == len(found["tokens"]) == 8


def test_without_max_tokens_an_answer_has_the_servers(server):
    body = {key: value for key, value in ASK.items() if key != "max_tokens"}
    found = post(server, "/v1/chat/completions", body)
    assert found["usage"]["completion_tokens"] == server.options.max_new_tokens == 12


def test_what_asks_for_nothing_is_allowed(server):
    quiet = {"presence_penalty": 0, "logit_bias": {}, "tools": [], "user": "me", "stop": None}
    quiet |= {"model": None, "top_k": -1, "min_p": 0, "store": True, "prompt_cache_key": "k"}
    quiet |= {"parallel_tool_calls": True, "tool_choice": "auto", "safety_identifier": "s"}
    quiet |= {"response_format": {"type": "text"}, "metadata": {"a": "b"}, "top_logprobs": None}
    quiet |= {"reasoning_effort": "medium"}
    assert (
        post(server, "/v1/chat/completions", ASK | quiet)["choices"]
        == post(server, "/v1/chat/completions", ASK)["choices"]
    )


def test_contents_in_parts_and_the_newer_name_of_a_system_message(server):
    old = [{"role": "system", "content": "Be nice."}, *HI]
    new = [
        {"role": "developer", "content": "Be nice."},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
    ]
    one, other = (
        post(server, "/v1/chat/completions", ASK | {"messages": messages})["choices"]
        for messages in (old, new)
    )
    assert one == other


def test_a_translation_takes_the_last_message_and_no_system_message(model):
    template = prompts.translation("French")
    with serving(partner.Partner("tiny", model, TOKENIZER, template)) as server:
        talk = [*HI, {"role": "assistant", "content": "salut"}, {"role": "user", "content": "bye"}]
        found = post(server, "/v1/chat/completions", ASK | {"messages": talk})
        ids = Conversation(template).asked("bye").ids(TOKENIZER)
        answer = wanted(model, ids, template=template)[0]
        assert found["choices"][0]["message"]["content"] == answer.text.strip()
        body = ASK | {"messages": [{"role": "system", "content": "Be nice."}, *HI]}
        status, answer = send(server, "POST", "/v1/chat/completions", body)
        assert status == 400
        assert "no place for a system message" in json.loads(answer)["error"]["message"]


def test_the_model_has_a_name(server):
    status, answer = send(server, "GET", "/v1/models")
    assert status == 200
    (listed,) = json.loads(answer)["data"]
    assert listed["id"] == "tiny"
    assert json.loads(send(server, "GET", "/v1/models/tiny")[1]) == listed
    assert send(server, "GET", "/v1/models/other")[0] == 404


def refused(server: Server, path: str, body: Any) -> tuple[int, dict[str, Any]]:
    status, answer = send(server, "POST", path, body)
    error = json.loads(answer)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    return status, error


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"messages": [{"role": "user", "content": 5}]}, "messages", "a content is a text"),
        ({"messages": [{"role": "system", "content": 5}, *HI]}, "messages", "a content is a text"),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": "{"}]},
            "messages",
            "JSON",
        ),
        ({"temperatur": 1}, "temperatur", "unknown parameter 'temperatur'.*'temperature'"),
        ({"temperature": "hot"}, "temperature", 'temperature = "hot"; expected a number'),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"temperature": True}, "temperature", "temperature = true"),
        ({"top_p": 0}, "top_p", "top_p = 0"),
        ({"top_p": 1.5}, "top_p", "from 0 to 1"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens = 0; expected a whole number from 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "1.5"),
        ({"n": 17}, "n", "n = 17"),
        ({"n": 2}, "n", "at temperature 0 all are the same"),
        ({"top_k": 1.5}, "top_k", "top_k = 1.5; expected a whole number"),
        ({"min_p": 2}, "min_p", "from 0 to 1"),
        ({"seed": "x"}, "seed", 'seed = "x"'),
        ({"stop": ""}, "stop", 'stop = \\[""\\]'),
        ({"stop": ["a"] * 17}, "stop", "16 at most"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"chunk": 1}}, "stream_options", "unknown parameter 'chunk'"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs needs logprobs = true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"presence_penalty": 2.5}, "presence_penalty", "from -2 to 2"),
        ({"logit_bias": {"five": 100}}, "logit_bias", "'five' is not the id of a token"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "from -100 to 100"),
        ({"logit_bias": {"400": 1}}, None, "id 400"),
        ({"tools": [{"type": "function"}]}, "tools", "tools"),
        ({"tools": [TOOL | {"type": "web_search"}]}, "tools", "other than functions"),
        ({"tool_choice": "required"}, "tool_choice", "a function of tools"),
        ({"tool_choice": {"function": {"name": "g"}}}, "tool_choice", "that tools lacks"),
        ({"parallel_tool_calls": 0}, "parallel_tool_calls", "true or false"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "cannot be had.*enable_thinking"),
        (
            {"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": True}},
            "reasoning_effort",
            "none goes without thoughts",
        ),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs", "'x' cannot be had"),
        ({"chat_template_kwargs": {"enable_thinking": True}}, "messages", "asks for thoughts"),
        ({"response_format": {"type": "xml"}}, "response_format", "text, json_object, or"),
        ({"messages": []}, "messages", "messages"),
        ({"messages": "hi"}, "messages", "messages"),
        ({"messages": None}, "messages", "'messages' is missing"),
        ({"messages": [5]}, "messages", "message 1"),
        ({"messages": [*HI, *HI]}, "messages", "two user turns in a row"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "messages", "starts with"),
        ({"messages": [*HI, {"role": "assistant", "content": "a"}]}, "messages", "the user's"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages", "empty"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages", "follows no call"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "text"),
        ({"messages": [HI[0] | {"audio": {"data": "a"}}]}, "messages", "'audio'"),
        ({"messages": [{"role": "user", "content": "a<eos>"}]}, "messages", "<eos>"),
        ({"messages": [{"role": "user", "content": "x" * 600}]}, "messages", "context of 512"),
        ({"model": 5}, "model", "a text"),
        ({"prompt": "x"}, "prompt", "unknown parameter 'prompt'"),
    ],
)
def test_a_mistake_in_a_chat_names_its_key(change, key, message, server):
    status, error = refused(server, "/v1/chat/completions", ASK | change)
    assert status == 400
    assert error["type"] == "invalid_request_error"
    assert error["param"] == key
    assert re.search(message, error["message"])


@pytest.mark.parametrize(
    ("change", "key", "message"),
    [
        ({"prompt": ""}, "prompt", "expected a text"),
        ({"prompt": [1, "a"]}, "prompt", "expected a text"),
        ({"prompt": [True]}, "prompt", "expected a text"),
        ({"prompt": ["a"] * 65}, "prompt", "64 are allowed"),
        ({"echo": True, "stream": True}, "echo", "not echoed in a stream"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"prompt": [2] * 512}, "prompt", "512 tokens leave no room"),
        ({"prompt": [2, 400]}, None, "id 400; the model's go from 0 to 399"),
        ({"logprobs": 21}, "logprobs", "from 0 to 20"),
        ({"echo": "yes"}, "echo", "true or false"),
        ({"suffix": "x"}, "suffix", "suffix"),
        ({"best_of": 2}, "best_of", "best_of = 2"),
    ],
)
def test_a_mistake_in_a_completion_names_its_key(change, key, message, server):
    status, error = refused(server, "/v1/completions", TEXT | change)
    assert (status, error["param"]) == (400, key)
    assert message in error["message"]


def test_another_model_is_not_found(server):
    status, error = refused(server, "/v1/chat/completions", ASK | {"model": "gpt-9"})
    assert (status, error["param"], error["code"]) == (404, "model", "model_not_found")
    assert "'gpt-9' here; there is 'tiny'" in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "message"),
    [
        ("POST", "/v1/embeddings", b"{}", 404, "there is no POST /v1/embeddings"),
        ("GET", "/nothing", None, 404, "there is no GET /nothing"),
        ("POST", "/", b"{}", 405, "there is no POST /"),
        ("GET", "/v1/completions", None, 405, "there is no GET /v1/completions"),
        ("DELETE", "/v1/models", None, 405, "DELETE"),
        ("POST", "/v1/completions", b"{", 400, "not valid JSON"),
        ("POST", "/v1/completions", b"\xff\xfe", 400, "not valid JSON"),
        ("POST", "/v1/completions", b'{"temperature": NaN}', 400, "NaN is not JSON"),
        ("POST", "/v1/completions", b"[" * 200_000, 400, "not valid JSON"),
        ("POST", "/v1/completions", b'{"seed": ' + b"9" * 5000 + b"}", 400, "not valid JSON"),
        ("POST", "/v1/completions", b'{"prompt": "a\\ud83d"}', 400, "not valid JSON"),
        ("POST", "/v1/completions", b"[1]", 400, "a JSON list; expected an object"),
        ("POST", "/v1/completions", b" " * (2**20 + 1), 413, "more than the 1048576 bytes"),
    ],
)
def test_what_is_no_request_of_ours(method, path, body, status, message, server):
    found, answer = send(server, method, path, body)
    assert found == status
    assert message in json.loads(answer)["error"]["message"]


def test_our_own_fault_is_a_500_without_its_traceback(server, monkeypatch, capfd):
    def broken(*_, **__):
        raise RuntimeError("secret path")

    monkeypatch.setattr(growing, "steps", broken)
    status, error = refused(server, "/v1/completions", TEXT)
    assert (status, error["type"]) == (500, "server_error")
    assert "secret" not in error["message"]
    assert "RuntimeError: secret path" in capfd.readouterr().err


class Piece:
    """As much of a draft as a stream reads."""

    piece, thought_piece, reason = "a" * 10_000, "", None


def test_a_fault_in_a_stream_ends_it_with_an_error(server, monkeypatch, capfd):
    def broken(*_, **__):
        yield {0: Piece}
        raise RuntimeError("secret path")

    monkeypatch.setattr(growing, "steps", broken)
    _, answer = send(server, "POST", "/v1/completions", TEXT | {"stream": True})
    *_, last, end = answer.decode().split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"
    assert b"DONE" not in answer
    assert b"secret" not in answer
    assert "secret path" in capfd.readouterr().err


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_leaves_the_model_to_the_next(stream, server, monkeypatch, capfd):
    started, closed = threading.Event(), threading.Event()

    def endless(*_, **__):
        try:
            while True:
                yield {0: Piece}
                started.set()
        finally:
            closed.set()

    monkeypatch.setattr(growing, "steps", endless)
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(TEXT | {"stream": stream}), JSON)
    if stream:
        response = connection.getresponse()
        assert response.read(100)
        response.close()
    assert started.wait(60)
    connection.close()
    assert closed.wait(60)
    monkeypatch.undo()
    assert post(server, "/v1/completions", TEXT)["choices"]
    until(lambda: server.line.there == 0)
    assert "Traceback" not in capfd.readouterr().err


def test_a_client_that_takes_nothing_is_given_up(server, monkeypatch):
    closed = threading.Event()

    def endless(*_, **__):
        try:
            while True:
                yield {0: Piece}
        finally:
            closed.set()

    monkeypatch.setattr(openai_server, "PATIENCE", 0.2)
    monkeypatch.setattr(growing, "steps", endless)
    with socket.create_connection(server.address, timeout=60) as connection:
        body = json.dumps(TEXT | {"stream": True}).encode()
        head = f"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        connection.sendall(f"POST /v1/completions HTTP/1.1\r\n{head}\r\n\r\n".encode() + body)
        assert closed.wait(60)
    monkeypatch.undo()
    assert post(server, "/v1/completions", TEXT)["choices"]


def held(server: Server) -> threading.Event:
    """Hold the model's thread until the event that is returned."""
    free = threading.Event()
    server.line._thread.submit(free.wait, 60)
    return free


def test_clients_at_once_get_one_answer_after_the_other(server, monkeypatch):
    at_work, most, plain = [], [], growing.steps

    def watched(*args, **options):
        def steps():
            at_work.append(1)
            most.append(len(at_work))
            found = yield from grown
            at_work.pop()
            return found

        grown = plain(*args, **options)
        return steps()

    monkeypatch.setattr(growing, "steps", watched)
    with ThreadPoolExecutor(50) as clients:
        found = [clients.submit(post, server, "/v1/completions", TEXT) for _ in range(50)]
        assert send(server, "GET", "/v1/models")[0] == 200  # without waiting for a turn
        texts = {each.result()["choices"][0]["text"] for each in found}
    assert len(texts) == 1
    assert set(most) == {1}
    assert len(most) == 50


def test_the_line_of_waiting_requests_has_an_end(server, monkeypatch):
    monkeypatch.setattr(server.line, "most", 2)
    free = held(server)
    with ThreadPoolExecutor(2) as clients:
        found = [clients.submit(post, server, "/v1/completions", TEXT) for _ in range(2)]
        until(lambda: server.line.there == 2)
        connection = http.client.HTTPConnection(*server.address, timeout=60)
        connection.request("POST", "/v1/completions", json.dumps(TEXT), JSON)
        refused = connection.getresponse()
        assert refused.status == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert json.loads(refused.read())["error"]["type"] == "server_error"
        connection.close()
        free.set()
        assert all(each.result()["choices"] for each in found)
    assert post(server, "/v1/completions", TEXT)["choices"]


def test_a_client_that_hung_up_while_it_waited_costs_no_answer(server, monkeypatch, capfd):
    answered, plain = [], together.grow

    def watched(model, tokenizer, drafts, *args, **options):
        answered.append([draft.prompt for draft in drafts])
        return plain(model, tokenizer, drafts, *args, **options)

    monkeypatch.setattr(together, "grow", watched)
    free = held(server)
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(TEXT), JSON)
    until(lambda: server.line.there == 1)
    connection.close()
    until(lambda: server.line.there == 0)
    free.set()
    assert post(server, "/v1/completions", TEXT | {"prompt": [2, 70]})["choices"]
    assert answered == [[[2, 70]]]
    assert "Traceback" not in capfd.readouterr().err


def test_a_connection_serves_several_requests(server):
    connection = http.client.HTTPConnection(*server.address, timeout=60)
    with contextlib.closing(connection):
        for _ in range(2):
            connection.request("POST", "/v1/completions", json.dumps(TEXT), JSON)
            assert json.loads(connection.getresponse().read())["choices"]


def test_ctrl_c_ends_a_stream_and_waits_for_it(model):
    with serving(partner.Partner("tiny", model, TOKENIZER, CHAT)) as server:
        started = threading.Event()

        def endless(*_, **__):
            while True:
                started.set()
                yield {0: Piece}

        found = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(growing, "steps", endless)
            body = TEXT | {"stream": True}
            thread = threading.Thread(
                target=lambda: found.append(send(server, "POST", "/v1/completions", body)[1])
            )
            thread.start()
            assert started.wait(60)
            server.stop()
            thread.join(60)
    assert b"the server is stopping" in found[0]


def test_this_machine_alone_by_default():
    for host, local in (("localhost", True), ("0.0.0.0", False)):
        server = Server(host, 0)
        assert server.is_local == local
        assert server.url.startswith("http://")
        server.close()


@pytest.mark.parametrize(
    ("host", "port", "message"),
    [
        ("127.0.0.1", None, "it is in use; choose another --port"),
        ("127.0.0.1", 99999, "port 99999"),
        ("127.0.0.1", -1, "port -1"),
        ("no.such.host.invalid", 0, "cannot listen at no.such.host.invalid"),
        ("", 0, "cannot listen at"),
    ],
)
def test_a_place_where_it_cannot_listen(host, port, message, server, capfd):
    port = server.address[1] if port is None else port
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "nothing", "--host", host, "--port", str(port)])
    assert ended.value.code == 2
    assert message in capfd.readouterr().err


def test_the_command_says_where_it_is_and_stops_with_ctrl_c(model, monkeypatch, capfd):
    who = partner.Partner("tiny", model, TOKENIZER, CHAT, note="a note")
    monkeypatch.setattr(partner, "load", lambda name, **_: who)

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "run", interrupted)
    cli.main(["serve", "tiny", "--port", "0", "--host", "0.0.0.0", "--served-model-name", "mine"])
    out, _ = capfd.readouterr()
    assert "a note\nmine at http://0.0.0.0:" in out
    assert "no --api-key" in out
    assert "stopped" in out


def test_without_its_packages_the_command_names_the_extra(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ft.chat.openai_server", None)
    with pytest.raises(SystemExit):
        cli.main(["serve", "tiny"])
    assert "[serve]" in capfd.readouterr().err


def test_a_server_without_a_model_to_serve(capfd):
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", "no-such-model", "--port", "0"])
    assert ended.value.code == 2
    assert "'no-such-model' is neither" in capfd.readouterr().err
