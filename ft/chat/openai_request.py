"""What a client of OpenAI's completion API may ask, checked key by key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ft.errors import UserError, nearest

PROMPTS, ANSWERS, STOPS, LIKELIEST = 64, 16, 16, 20  # how many a request may have of each
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "seed", "stop", "logit_bias")
SAMPLING += ("presence_penalty", "frequency_penalty", "repetition_penalty")
HEARD = ("model", "max_tokens", "n", "stream", "stream_options", "logprobs", *SAMPLING)
OF_CHAT = ("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice")
OF_CHAT += ("response_format", "chat_template_kwargs", "include_reasoning", "reasoning_effort")
OF_CHAT += ("parallel_tool_calls",)
OF_TEXT = ("prompt", "echo")
# keys that change nothing about an answer
UNHEARD = ("user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier")
UNHEARD += ("prompt_cache_retention", "prediction")
# keys for what cannot be had, and the values by which a client does not ask for it
ABSENT: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "suffix": ("",),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
}
# of a message: what templates read, and what clients send back of an answer
MESSAGE = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
MESSAGE += ("reasoning",)


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

    messages: tuple[dict[str, Any], ...]  # of a chat completion
    prompts: tuple[str | tuple[int, ...], ...]  # of a completion
    model: str  # empty: the one that there is
    temperature: float
    top_p: float
    top_k: int | None
    min_p: float
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    logit_bias: tuple[tuple[int, float], ...]
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    n: int
    stream: bool
    usage: bool  # whether a stream ends with the counts of tokens
    logprobs: int | None  # how many tokens beside the chosen ones are scored; none: not even those
    echo: bool = False
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str | None = None  # none, auto, required, or the name of the function to call
    parallel: bool = True  # whether an answer may have several calls
    schema: dict[str, Any] | None = field(default=None)  # of the JSON that the answer must be
    thinking: bool | None = None  # whether thoughts are asked for; none: as the template has it
    thoughts: bool = True  # whether they are shown

    @property
    def chat(self) -> bool:
        """Whether the turns of a conversation are given, and not a text to go on with."""
        return bool(self.messages)


def parse(body: bytes, *, chat: bool) -> Request:
    """A request's JSON. Raises ``Refused`` for the first key that is unknown, of the wrong type or out of range."""
    found = _object(body)
    known = {*HEARD, *(OF_CHAT if chat else OF_TEXT)}
    for key, value in found.items():
        if key not in {*known, *UNHEARD, *ABSENT}:
            key = key[:80]
            raise Refused(f"unknown parameter {key!r}.{nearest(key, known)}", key=key)
        if key in ABSENT and not any(_same(value, allowed) for allowed in ABSENT[key]):
            raise Refused(f"{key} = {json.dumps(value)[:80]} cannot be had here", key=key)
    if (subject := "messages" if chat else "prompt") not in found:
        raise Refused(f"the parameter {subject!r} is missing", key=subject)
    limit = "max_completion_tokens" if "max_completion_tokens" in found else "max_tokens"
    stop, echo = found.get("stop", []), _of(found, "echo", bool, False)
    options = _of(found, "stream_options", dict, {})
    tools, choice = _tools(found)
    request = Request(
        messages=_messages(found["messages"]) if chat else (),
        prompts=() if chat else _prompts(found["prompt"]),
        model=_of(found, "model", str, ""),
        temperature=_number(found, "temperature", 0, 2, 1.0),
        top_p=_number(found, "top_p", 0, 1, 1.0),
        top_k=_whole(found, "top_k", -1, 2**31, None),
        min_p=_number(found, "min_p", 0, 1, 0.0),
        presence_penalty=_number(found, "presence_penalty", -2, 2, 0.0),
        frequency_penalty=_number(found, "frequency_penalty", -2, 2, 0.0),
        repetition_penalty=_number(found, "repetition_penalty", 0.01, 100, 1.0),
        logit_bias=_bias(_of(found, "logit_bias", dict, {})),
        max_tokens=_whole(found, limit, 0 if echo else 1, 2**31, None),
        stop=_strings([stop] if isinstance(stop, str) else stop, "stop", STOPS),
        seed=_whole(found, "seed", -(2**63), 2**63 - 1, None),
        n=_whole(found, "n", 1, ANSWERS, 1) or 1,
        stream=_of(found, "stream", bool, False),
        usage=_of(options, "include_usage", bool, False),
        logprobs=_logprobs(found, chat),
        echo=echo,
        tools=tools,
        tool_choice=choice,
        parallel=_of(found, "parallel_tool_calls", bool, True),
        schema=_schema(_of(found, "response_format", dict, {"type": "text"})),
        thinking=_thinking(found),
        thoughts=_of(found, "include_reasoning", bool, True),
    )
    if other := set(options) - {"include_usage", "include_obfuscation"}:
        raise Refused(f"unknown parameter {min(other)!r} in stream_options", key="stream_options")
    _fit(request)
    return request


def _object(body: bytes) -> dict[str, Any]:
    """The keys of a request's JSON that are not null."""

    def no_number(text: str) -> float:
        raise ValueError(f"{text} is not JSON")

    try:
        found = json.loads(body, parse_constant=no_number)
        json.dumps(found, ensure_ascii=False).encode()  # "\ud83d" without its other half is no text
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"the body is a JSON {type(found).__name__}; expected an object")
    return {key: value for key, value in found.items() if value is not None}


def _fit(request: Request) -> None:
    """Raise ``Refused`` for what is right alone and not together."""
    if request.top_p == 0:
        raise Refused("top_p = 0; it must be above 0", key="top_p")
    if request.stream and request.echo:
        raise Refused("a prompt is not echoed in a stream", key="echo")
    if request.n > 1 and request.temperature == 0:
        raise Refused("n asks for several answers; at temperature 0 all are the same", key="n")
    if request.schema is not None and request.tool_choice not in (None, "none", "auto"):
        raise Refused("an answer cannot be a call and JSON of response_format", key="tool_choice")


def _messages(value: Any) -> tuple[dict[str, Any], ...]:
    """Messages as templates read them. Raises ``Refused`` for any that is not one."""
    from ft.text import messages

    for message in value if isinstance(value, list) else []:
        there = {k: v for k, v in message.items() if v} if isinstance(message, dict) else {}
        if other := there.keys() - set(MESSAGE):
            raise Refused(f"messages: {min(other)!r} cannot be had here", key="messages")
        content = there.get("content", "")
        parts = content if isinstance(content, list) else [{"text": content}]
        texts = all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts)
        if not texts and there.get("role") != "tool":
            raise Refused("messages: a content is a text, or parts of text", key="messages")
    try:
        found = messages.read(value)
        fault = messages.fault_of(found)
    except UserError as error:
        fault, found = str(error), []
    if fault:
        raise Refused(fault, key="messages")
    if found[-1]["role"] not in ("user", "tool"):
        raise Refused("messages: the last message must be the user's, or a tool's", key="messages")
    return tuple(found)


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


def _logprobs(found: Mapping[str, Any], chat: bool) -> int | None:
    if not chat:
        return _whole(found, "logprobs", 0, LIKELIEST, None)
    more = _whole(found, "top_logprobs", 0, LIKELIEST, None)
    wanted = _of(found, "logprobs", bool, False)
    if more and not wanted:
        raise Refused("top_logprobs needs logprobs = true", key="top_logprobs")
    return more or 0 if wanted else None


def _bias(found: dict[str, Any]) -> tuple[tuple[int, float], ...]:
    for key in found:
        if not (key.isascii() and key.isdigit()) or len(key) > 9:
            raise Refused(f"logit_bias: {key[:40]!r} is not the id of a token", key="logit_bias")
    return tuple((int(key), _number(found, key, -100, 100, 0, "logit_bias")) for key in found)


def _tools(found: Mapping[str, Any]) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """The functions that may be called, and which must be."""
    from ft.text.functions import tools_of

    try:
        tools = tuple(tools_of(found.get("tools", [])))
    except (UserError, ValueError) as error:
        raise Refused(f"tools: {error}", key="tools") from None
    for tool in tools:
        if tool.get("type") != "function" or tool["function"].get("strict"):
            raise Refused(
                "tools: other than functions, and strict, cannot be had here", key="tools"
            )
    names, choice = [tool["function"]["name"] for tool in tools], found.get("tool_choice")
    if isinstance(choice, dict):
        choice = choice.get("function")
        choice = choice.get("name") if isinstance(choice, dict) else choice
        if choice not in names:
            raise Refused("tool_choice names a function that tools lacks", key="tool_choice")
    elif choice not in (None, "none", "auto") and not (choice == "required" and tools):
        raise _wrong("tool_choice", choice, "none, auto, required, or a function of tools")
    return (() if choice == "none" else tools), choice


def _schema(wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The JSON schema of an answer; none for a text."""
    match wanted:
        case {"type": "text"}:
            return None
        case {"type": "json_object"}:
            return {"type": "object"}
        case {"type": "json_schema", "json_schema": {"schema": dict(schema)}}:
            return schema
    raise _wrong("response_format", wanted, "text, json_object, or json_schema with its schema")


def _thinking(found: Mapping[str, Any]) -> bool | None:
    """Whether thoughts are asked for; none: as the template has it, which OpenAI's default, medium, leaves alone."""
    options = _of(found, "chat_template_kwargs", dict, {})
    if other := set(options) - {"enable_thinking"}:
        raise Refused(
            f"chat_template_kwargs: {min(other)!r} cannot be had here", key="chat_template_kwargs"
        )
    asked = _of(options, "enable_thinking", bool, False) if options else None
    effort = _of(found, "reasoning_effort", str, "medium")
    if effort not in ("none", "medium") or (asked and effort == "none"):
        raise Refused(
            f"reasoning_effort = {json.dumps(effort)[:80]} cannot be had here; none goes without thoughts, and "
            'chat_template_kwargs = {"enable_thinking": true} asks for them',
            key="reasoning_effort",
        )
    return False if effort == "none" else asked


def _of(found: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = found.get(key, default)
    if type(value) is not kind:
        raise _wrong(key, value, {bool: "true or false", str: "a text", dict: "an object"}[kind])
    return value


def _number(
    found: Mapping[str, Any], key: str, low: float, high: float, default: float, at: str = ""
) -> float:
    value = found.get(key, default)
    if type(value) not in (int, float) or not low <= value <= high:
        raise _wrong(at or key, value, f"a number from {low} to {high}")
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
