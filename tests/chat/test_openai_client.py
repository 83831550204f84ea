"""The official client on a real socket: what it sends is understood, and what it gets it can read."""

import contextlib
import json

import pytest
from support import tiny
from support.serving import serving

from ft.chat import partner
from ft.chat.conversation import Conversation
from ft.generate import answers
from ft.text import prompts

openai = pytest.importorskip("openai")

TOKENIZER = tiny.tokenizer()
CHAT = prompts.by_name("chat", TOKENIZER)
HI = [{"role": "user", "content": "hi"}]
ASK = {"model": "tiny", "messages": HI, "temperature": 0, "max_completion_tokens": 8}


@pytest.fixture(scope="module")
def model():
    return tiny.build("gemma3_text")


@pytest.fixture(scope="module")
def server(model):
    with serving(partner.Partner("tiny", model, TOKENIZER, CHAT), api_key="secret") as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    url = f"{server.url}/v1"
    with openai.OpenAI(base_url=url, api_key="secret", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def answer(model):
    ids = Conversation(CHAT).asked("hi").ids(TOKENIZER)
    return answers.generate(model, TOKENIZER, [ids], max_new_tokens=8, template=CHAT)[0][0]


def test_the_models(client):
    assert [each.id for each in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_a_chat_whole_and_streamed(client, answer):
    found = client.chat.completions.create(**ASK, user="me", store=False, metadata={"a": "b"})
    assert found.choices[0].message.content == answer.text.strip()
    assert found.usage.completion_tokens == 8
    options = {"include_usage": True}
    with client.chat.completions.create(**ASK, stream=True, stream_options=options) as stream:
        *chunks, last = stream
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.text.strip()
    assert chunks[-1].choices[0].finish_reason == "length"
    assert last.usage.total_tokens == found.usage.total_tokens


def test_the_clients_own_reader_of_streams(client, answer):
    with client.chat.completions.stream(**ASK) as stream:
        kinds = {event.type for event in stream}
        final = stream.current_completion_snapshot
    assert "content.delta" in kinds
    assert final.choices[0].message.content == answer.text.strip()


def test_several_answers_and_their_likelihood(client):
    options = ASK | {"temperature": 1, "n": 3, "seed": 1, "logprobs": True, "top_logprobs": 2}
    found = client.chat.completions.create(**options)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for choice in found.choices:
        assert all(len(place.top_logprobs) == 2 for place in choice.logprobs.content)


def test_the_likelihood_of_a_streamed_answer_is_that_of_the_whole_one(client):
    options = ASK | {"temperature": 1, "n": 2, "seed": 1, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    with client.chat.completions.stream(**options) as stream:
        assert list(stream)
        read = stream.current_completion_snapshot
    assert len(whole.choices) == 2
    for choice, streamed in zip(whole.choices, read.choices, strict=True):
        assert streamed.message.content == choice.message.content
        assert streamed.logprobs.content == choice.logprobs.content != []
    options = {"model": "tiny", "prompt": ["hi", "the cat"], "max_tokens": 4, "logprobs": 1}
    whole = client.completions.create(**options, seed=1)
    with client.completions.create(**options, seed=1, stream=True) as stream:
        ended = {c.choices[0].index: c.choices[0] for c in stream if c.choices[0].finish_reason}
    assert len(whole.choices) == 2
    for choice in whole.choices:
        assert ended[choice.index].logprobs == choice.logprobs


def test_a_completion_with_echo(client):
    found = client.completions.create(
        model="tiny", prompt="hi", max_tokens=0, echo=True, logprobs=1
    )
    assert found.choices[0].text == "hi"
    assert found.choices[0].logprobs.token_logprobs[0] is None


def test_json_by_a_class(client):
    pydantic = pytest.importorskip("pydantic")
    pytest.importorskip("llguidance")
    pet = pydantic.create_model("Pet", age=(int, ...), small=(bool, ...))
    options = ASK | {"response_format": pet, "max_completion_tokens": 300}
    found = client.chat.completions.parse(**options)
    assert isinstance(found.choices[0].message.parsed, pet)
    assert json.loads(found.choices[0].message.content).keys() == {"age", "small"}


def test_mistakes_are_the_clients_errors(client, server):
    with pytest.raises(openai.BadRequestError, match="from 0 to 2"):
        client.chat.completions.create(**ASK | {"temperature": 1.5}, extra_body={"temperature": 3})
    with pytest.raises(openai.NotFoundError, match="gpt-9"):
        client.chat.completions.create(**ASK | {"model": "gpt-9"})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_full_line_is_tried_again(server, monkeypatch):
    monkeypatch.setattr(server.line, "most", 0)
    url = f"{server.url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client,
        pytest.raises(openai.InternalServerError) as refused,
    ):
        client.chat.completions.create(**ASK)
    assert refused.value.status_code == 503
    assert refused.value.response.headers["retry-after"]


def test_a_stream_that_is_left(client, server):
    with contextlib.closing(client.chat.completions.create(**ASK, stream=True)) as stream:
        next(iter(stream))
    assert client.chat.completions.create(**ASK).choices
