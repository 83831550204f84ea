"""Conversations with tools, calls and thoughts, as the model's own chat template renders them.

The ids are those of ``apply_chat_template(messages, tools=…)``. A row's own text holds no control
token (it is refused), so the control tokens of what is rendered are the template's, and tell who
speaks: between what opens the model's turn and what ends it the model writes, but for the results of
tools.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ft.errors import UserError
from ft.text.forms import Form, form_of, render
from ft.text.messages import beyond_text, fault_of
from ft.text.template import Pair, Template

# marks are of characters that no text has and that JSON leaves as they are
_NUMBER = re.compile("\ue000(\\d+) (?:content|thought|call)\ue000")
_LOST = re.compile("\ue000\\d+ \\w+\ue000")


def reads(template: Template, row: Mapping[str, Any]) -> bool:
    """Whether the model's own chat template must render a row: it has more than texts of turns."""
    return template.name == "chat" and bool(template.thinking or beyond_text(row))


def prompt(template: Template, row: Mapping[str, Any], tokenizer: Any) -> str:
    """The text that the model is given for its next message, with BOS.

    Raises ``UserError`` where the chat template refuses it or has no place for what it holds.
    """
    return _text(template, row, messages_of(row), tokenizer, ask=True)


def pairs(
    template: Template, row: Mapping[str, Any], tokenizer: Any, *, thoughts: bool = True
) -> list[Pair]:
    """What is read and what the model writes, in turn; without ``thoughts`` these are only read.

    A turn with ``"learn": False`` is only read too. Raises ``UserError`` as ``prompt`` does, and for
    a thought, a call or a text that the chat template would leave out; but the thoughts before the
    last question, which the model never sees again either, may be.
    """
    form, messages = form_of(tokenizer), messages_of(row)
    rendered = _text(template, row, messages, tokenizer)
    marked = _text(template, row, [_with_marks(m, i) for i, m in enumerate(messages)], tokenizer)
    _refuse_lost(marked, messages)
    spans, seen = (list(_spans(t, form, thoughts)) for t in (rendered, marked))
    assert len(spans) == len(seen)
    found: list[Pair] = []
    read, learn = "", True
    for (piece, written), (marks, _) in zip(spans, seen, strict=True):
        if not written:
            read += piece
            continue
        kinds = {messages[int(i)].get("learn", True) for i in _NUMBER.findall(marks)}
        if len(kinds) == 2:
            raise UserError(
                "messages of weight 0 and of weight 1 stand in one turn of the model's chat template: "
                "give them one weight"
            )
        learn = kinds.pop() if kinds else learn
        found.append({"prompt": read, "completion": piece, "ended": True, "learn": learn})
        read = ""
    opening = form.openings[template.thinking]
    last = max((i for i, p in enumerate(found) if p["prompt"].endswith(form.turn)), default=-1)
    begins = found[last]["completion"] if last >= 0 else ""
    if opening and begins and not (form.thought and begins.startswith(form.thought[0])):
        found[last]["prompt"] += opening
    found[0]["prompt"] = found[0]["prompt"].removeprefix(tokenizer.bos_token)
    return [*found, {"prompt": read, "completion": "", "ended": True}] if read else found


def _spans(rendered: str, form: Form, thoughts: bool) -> Iterator[tuple[str, bool]]:
    """The pieces of a rendering, and whether the model wrote each."""
    names = {form.turn: "turn", form.end: "end"}
    if form.result:
        names |= {form.result[0]: "result", form.result[1]: "answer"}
    if form.thought and not thoughts:
        names |= {form.thought[0]: "thought", form.thought[1]: "thought's end"}
    marks = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    start, state = 0, "read"
    for found in marks.finditer(rendered):
        name, at = names[found.group()], found.end()
        match state, name:
            case "read", "turn":
                new = "write"
            case "write", "end":
                new = "read"
            case (
                "write",
                "turn",
            ):  # a result ended what was written before, and the turn opens again
                if found.start() > start:
                    yield rendered[start : found.start()], True
                    start = found.start()
                yield rendered[start:at], False
                start = at
                continue
            case "write", "result":  # it ends what the model writes: a call
                new = "result"
            case "write", "thought":
                new, at = "thought", found.start()
            case "result", "answer":
                new = "write"
            case "result", "end" | "turn":
                new = "read" if name == "end" else "write"
            case "thought", "thought's end":
                new = "write"
            case _:
                continue
        if at > start:
            yield rendered[start:at], state == "write"
        start, state = at, new
    if start < len(rendered):
        yield rendered[start:], state == "write"


def _text(
    template: Template,
    row: Mapping[str, Any],
    messages: list[dict[str, Any]],
    tokenizer: Any,
    *,
    ask: bool = False,
) -> str:
    from jinja2 import TemplateError

    form, tools = form_of(tokenizer), row.get("tools")
    if tools and not form.tools:
        raise UserError(
            "the model's chat template has no place for tools: use a model that has one, such as "
            "Gemma 4 or FunctionGemma, or describe the functions in the system message"
        )
    if template.thinking and not form.thinks:
        raise UserError("the model's chat template has nothing that asks for thoughts")
    try:
        return render(tokenizer, form.jinja, messages, tools, ask=ask, thinking=template.thinking)
    except (TemplateError, TypeError, ValueError, KeyError) as error:
        raise UserError(f"the model's chat template refuses it: {error}") from None


def messages_of(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row as messages that any chat template reads."""
    if "messages" in row:
        messages = list(row["messages"])
    else:
        texts = [row["instruction"], row.get("context", "")]
        messages = [{"role": "user", "content": "\n\n".join(t for t in texts if t.strip())}]
        if row.get("system", "").strip():
            messages.insert(0, {"role": "system", "content": row["system"]})
        if "response" in row:
            messages.append({"role": "assistant", "content": row["response"]})
    if fault := fault_of(messages):
        raise UserError(fault)
    return _linked(messages)


def _linked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with each tool's result told by its call's id and name, which chat templates ask for.

    Its call is that of its id, else the next of its name, else the next: without ids templates take the last.
    """
    found, waiting = [], []
    for number, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            calls = [{"id": f"call_{number}_{n}"} | call for n, call in enumerate(calls)]
            message = message | {"tool_calls": calls}
            waiting = [*(waiting if found[-1].get("tool_calls") else []), *calls]
        elif message["role"] == "tool":
            own, name = message.get("tool_call_id"), message.get("name")
            named = [call for call in waiting if name in (None, call["function"]["name"])]
            for call in [*(call for call in waiting if call["id"] == own), *named][:1]:
                waiting.remove(call)
                name = name or call["function"]["name"]
                message = message | {"tool_call_id": call["id"], "name": name}
        found.append(message)
    return found


def _with_marks(message: dict[str, Any], number: int) -> dict[str, Any]:
    """A message with marks in place of what must not get lost, which tell its number too."""
    found = dict(message)
    if message["role"] == "assistant":
        if message["content"].strip():
            found["content"] = f"\ue000{number} content\ue000"
        if message.get("reasoning_content"):
            found["reasoning_content"] = f"\ue000{number} thought\ue000"
        found["tool_calls"] = [
            call | {"function": call["function"] | {"name": f"\ue000{number} call\ue000"}}
            for call in message.get("tool_calls", ())
        ]
        found["tool_responses"] = [
            found | {"response": f"\ue000{number} result\ue000"}
            for found in message.get("tool_responses", ())
        ]
    elif message["role"] == "tool" and isinstance(message["content"], str):
        found["content"] = f"\ue000{number} result\ue000"
    return {key: value for key, value in found.items() if value != []}


def _refuse_lost(marked: str, messages: list[dict[str, Any]]) -> None:
    """Raise ``UserError`` for what a chat template leaves out of a conversation."""
    asked = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for number, message in enumerate(messages):
        left = _with_marks(message, number)
        calls = [call["function"]["name"] for call in left.get("tool_calls", ())]
        parts = {"thought": left.get("reasoning_content"), "call": "".join(calls)}
        if "tool_responses" in left:
            parts["result"] = left["tool_responses"][0]["response"]
        for what, value in (parts | {"text": left["content"]}).items():
            mark = _LOST.match(value) if isinstance(value, str) else None
            if mark and mark.group() not in marked and (what != "thought" or number > asked):
                raise UserError(
                    f"message {number + 1}: the model's chat template has no place for its {what} "
                    "here; leave that out of the data, or train a model that has one"
                )
