"""What a client of OpenAI's completion API may ask, checked key by key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ft.errors import UserError, nearest

PROMPTS, ANSWERS, STOPS = 64, 16, 16  # how many a request may have of each
HEARD = ("model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed")
HEARD += ("n", "stream", "stream_options", "logprobs")
UNHEARD = ("user", "metadata", "store", "service_tier")  # keys that change nothing about an answer
# keys for what cannot be had, and the values by which a client does not ask for it
ABSENT: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
}


class Refused(UserError):
    """A mistake in a request: with the HTTP status, the key at fault and a code, as clients know them."""

    def __init__(
        self, message: str, *, key: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.key, self.status, self.code = key, status, code


@dataclass(frozen=True)
class Request:
    """What a client asks for, checked."""

    messages: tuple[dict[str, str], ...]  # of a chat completion
    prompts: tuple[str | tuple[int, ...], ...]  # of a completion
    model: str
    temperature: float
    top_p: float
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    n: int
    stream: bool
    usage: bool  # whether a stream ends with the counts of tokens
    logprobs: bool

    @property
    def chat(self) -> bool:
        """Whether the turns of a conversation are given, and not a text to go on with."""
        return bool(self.messages)


def parse(body: bytes, *, chat: bool) -> Request:
    """A request's JSON. Raises ``Refused`` for the first key that is unknown, of the wrong type or out of range."""

    def no_number(text: str) -> float:
        raise ValueError(f"{text} is not JSON")

    try:
        found = json.loads(body, parse_constant=no_number)
        json.dumps(found, ensure_ascii=False).encode()  # "\ud83d" without its other half is no text
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"the body is a JSON {type(found).__name__}; expected an object")
    found = {key: value for key, value in found.items() if value is not None}
    subject = "messages" if chat else "prompt"
    for key, value in found.items():
        if key not in {subject, *HEARD, *UNHEARD, *ABSENT}:
            key = key[:80]
            raise Refused(f"unknown parameter {key!r}.{nearest(key, [subject, *HEARD])}", key=key)
        if key in ABSENT and not any(_same(value, allowed) for allowed in ABSENT[key]):
            raise Refused(f"{key} = {json.dumps(value)[:80]} cannot be had here", key=key)
    for key in ("model", subject):
        if key not in found:
            raise Refused(f"the parameter {key!r} is missing", key=key)
    limit = "max_completion_tokens" if "max_completion_tokens" in found else "max_tokens"
    stop = found.get("stop", [])
    options = _of(found, "stream_options", dict, {})
    request = Request(
        messages=_messages(found["messages"]) if chat else (),
        prompts=() if chat else _prompts(found["prompt"]),
        model=_of(found, "model", str, ""),
        temperature=_number(found, "temperature", 0, 2, 1.0),
        top_p=_number(found, "top_p", 0, 1, 1.0),
        max_tokens=_whole(found, limit, 1, 2**31, None),
        stop=_strings([stop] if isinstance(stop, str) else stop, "stop", STOPS),
        seed=_whole(found, "seed", -(2**63), 2**63 - 1, None),
        n=_whole(found, "n", 1, ANSWERS, 1) or 1,
        stream=_of(found, "stream", bool, False),
        usage=_of(options, "include_usage", bool, False),
        logprobs=_logprobs(found, chat),
    )
    if other := set(options) - {"include_usage", "include_obfuscation"}:
        raise Refused(f"unknown parameter {min(other)!r} in stream_options", key="stream_options")
    if request.top_p == 0:
        raise Refused("top_p = 0; it must be above 0", key="top_p")
    for key, several in (("n", request.n > 1), ("prompt", len(request.prompts) > 1)):
        if request.stream and several:
            raise Refused(f"a stream has one answer to one prompt; {key} asks for more", key=key)
    if request.stream and request.logprobs:
        raise Refused("logprobs cannot be streamed", key="logprobs")
    if request.n > 1 and request.temperature == 0:
        raise Refused("n asks for several answers; at temperature 0 all are the same", key="n")
    return request


def _messages(value: Any) -> tuple[dict[str, str], ...]:
    """Messages with texts as their contents. Raises ``Refused`` for any that is not one."""
    from ft.text.messages import fault_of

    messages = []
    for message in value if isinstance(value, list) else []:
        message = dict(message) if isinstance(message, dict) else message
        if isinstance(message, dict):
            message = {k: v for k, v in message.items() if v is not None}
            if message.get("role") == "developer":  # the newer name
                message["role"] = "system"
            content = message.get("content")
            if isinstance(content, list) and content:
                if not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
                    raise Refused("messages: a content may have parts of text only", key="messages")
                message["content"] = "".join(part["text"] for part in content)
            if other := message.keys() - {"role", "content", "name"}:
                raise Refused(f"messages: {min(other)!r} cannot be had here", key="messages")
        messages.append(message)
    if fault := fault_of(messages):
        raise Refused(fault, key="messages")
    if messages[-1]["role"] != "user":
        raise Refused("messages: the last message must be the user's", key="messages")
    return tuple({"role": m["role"], "content": m["content"]} for m in messages)


def _prompts(value: Any) -> tuple[str | tuple[int, ...], ...]:
    """The prompts of a completion: a text or its ids, or several."""
    several = isinstance(value, list) and value and isinstance(value[0], str | list)
    found = []
    for prompt in value if several else [value]:
        if isinstance(prompt, list) and prompt and all(type(i) is int for i in prompt):
            found.append(tuple(prompt))
        elif isinstance(prompt, str) and prompt:
            found.append(prompt)
        else:
            raise Refused("prompt: expected a text, a list of token ids, or several", key="prompt")
    if len(found) > PROMPTS:
        raise Refused(f"prompt: {len(found)} of them; {PROMPTS} are allowed", key="prompt")
    return tuple(found)


def _logprobs(found: Mapping[str, Any], chat: bool) -> bool:
    if chat:
        return _of(found, "logprobs", bool, False)
    if (wanted := _whole(found, "logprobs", 0, 100, None)) not in (None, 0):
        raise Refused(
            f"logprobs = {wanted}: those of other tokens cannot be had; 0 gives the chosen ones'",
            key="logprobs",
        )
    return wanted == 0


def _of(found: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = found.get(key, default)
    if type(value) is not kind:
        raise _wrong(key, value, {bool: "true or false", str: "a text", dict: "an object"}[kind])
    return value


def _number(found: Mapping[str, Any], key: str, low: float, high: float, default: float) -> float:
    value = found.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise _wrong(key, value, f"a number from {low} to {high}")
    return float(value)


def _whole(found: Mapping[str, Any], key: str, low: int, high: int, default: Any) -> int | None:
    value = found.get(key, default)
    if key in found and (type(value) is not int or not low <= value <= high):
        raise _wrong(key, value, f"a whole number from {low} to {high}")
    return value


def _strings(value: Any, key: str, most: int) -> tuple[str, ...]:
    strings = isinstance(value, list) and all(isinstance(s, str) and s for s in value)
    if not strings or len(value) > most:
        raise _wrong(key, value, f"a text that is not empty, or a list of {most} at most")
    return tuple(value)


def _wrong(key: str, value: Any, expected: str) -> Refused:
    return Refused(f"{key} = {json.dumps(value)[:80]}; expected {expected}", key=key)


def _same(value: Any, other: Any) -> bool:
    """Equal, where 0 is not false and 1 is not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)
