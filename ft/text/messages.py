"""A conversation's messages in one form, whatever names their source gave them: texts, calls, thoughts, results."""

import json
from collections.abc import Mapping
from typing import Any, TypeAlias

from ft.errors import UserError
from ft.text import functions
from ft.text.functions import without_nulls
from ft.text.meaning import IMAGES, blank, is_one, shows, weighs

Message: TypeAlias = dict[str, Any]
"""``{"role", "content"}``: system, user, assistant or tool, and a text. An assistant's may have
``tool_calls`` and ``reasoning_content``, a tool's ``name`` and ``tool_call_id``; ``"learn": False``
stands on a turn that is read and not learnt."""

ROLES = {"human": "user", "user": "user", "prompter": "user", "system": "system"}
ROLES |= dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt"), "assistant")
ROLES |= {"developer": "system", "tool": "tool", "function": "tool", "observation": "tool"}
ROLES |= dict.fromkeys(("tool_response", "function_response", "ipython"), "tool")
ROLES |= dict.fromkeys(("function_call", "tool_call"), "assistant")  # the value is the call
CALLS = ("function_call", "tool_call")
THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # one thing under three names
WEIGHTS = ("weight", "loss", "train")
# keys of a turn that would change what is learnt, and that nothing here follows
UNFOLLOWED = ("mask", "masked", "train_on_turn", "training", "trainable", "train_detail")
UNFOLLOWED += ("training_detail", "refusal")
OTHER_THOUGHTS = ("thought", "thoughts", "think", "reasoning_details", "thinking_blocks")
_NAMES = (("role", "from"), ("content", "value"))
_NOTHING = ("", [], {})
VISION = "a recipe of text learns nothing from images: use recipes/vision_lora.py"


def read(turns: Any, ignored: dict[str, None] | None = None) -> list[Message]:
    """``[{role, content}]`` or ``[{from, value}]`` as messages; keys that say nothing to ``ignored``.

    A cell of a table has them as JSON. Null values are nothing, and so is an empty system message. Raises
    ``UserError`` for a message that cannot be read; the order of turns is left to ``fault_of``.
    """
    turns = in_cell(turns)
    if not isinstance(turns, list) or not turns:
        told = f", and no JSON of one: {turns[:60]!r}" if isinstance(turns, str) else ""
        raise UserError(f"messages is not a list of {{role, content}}{told}")
    found = [_message(turn, number, ignored) for number, turn in enumerate(turns, 1)]
    if found[0]["role"] == "system" and not found[0]["content"].strip():
        del found[0]
    return found


def in_cell(value: Any) -> Any:
    """What the cell of a table holds as JSON; any other value as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def talks_in(values: list[Any]) -> list[Any]:
    """Values of which each is a conversation as JSON, read; as they are where one is not, and so is a text."""
    found = [in_cell(v) if isinstance(v, str) and v.lstrip().startswith("[") else v for v in values]
    turns = [turn for value in found for turn in (value if isinstance(value, list) else [None])]
    return (
        found if all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in turns) else values
    )


def _message(turn: Any, number: int, ignored: dict[str, None] | None) -> Message:
    if not isinstance(turn, Mapping):
        raise UserError(f"message {number} is not an object with role and content")
    there = {key: value for key, value in turn.items() if value is not None}
    role, content = (_one_of(there, names, number) for names in _NAMES)
    kind = ROLES.get(role.strip().lower(), role) if isinstance(role, str) else role
    calls = _one_of(there, ("tool_calls", "function_call"), number) or None
    if content is None and kind == "tool" and "content" in turn:
        content = ""  # a function that gave nothing back
    if role is None or (content is None and not calls and "tool_responses" not in there):
        _refuse(there, number)
        raise UserError(f"message {number} is not an object with role and content")
    message: Message = {"role": kind}
    if isinstance(role, str) and role.strip().lower() in CALLS:
        calls, content = content, ""
    text, thoughts = _content(content, number, tool=kind == "tool")
    message["content"] = text
    thoughts += [there.pop(key) for key in THOUGHTS if there.get(key)]
    if thoughts:
        message["reasoning_content"] = _thought(thoughts, kind, number)
    if calls:
        try:
            message["tool_calls"] = [functions.call_of(call) for call in functions.listed(calls)]
        except UserError as error:
            raise UserError(f"message {number}: {error}") from None
    if _masked(there, number):
        message["learn"] = False
    for key in ("name", "tool_call_id", "tool_responses"):
        if kind == ("assistant" if key == "tool_responses" else "tool") and key in there:
            message[key] = without_nulls(there.pop(key))
    _refuse(there, number)
    for key, value in there.items():
        if ignored is not None and value not in _NOTHING and not weighs(key):
            ignored[f"messages.{key}"] = None
    return message


def _one_of(there: dict[str, Any], names: tuple[str, str], number: int) -> Any:
    """What stands under one of two names, both taken out. Raises ``UserError`` where each says something else."""
    found = [there.pop(name) for name in names if name in there]
    says = [value for value in found if value not in _NOTHING]
    if says[1:] and len({ROLES.get(str(value), str(value)) for value in says}) > 1:
        raise UserError(f"message {number} has {names[0]} and {names[1]}, which differ; give one")
    return next(iter([*says, *found]), None)


def _content(content: Any, number: int, *, tool: bool) -> tuple[Any, list[Any]]:
    """The text of a content, its parts joined, and the thoughts among these. A tool's object is JSON."""
    if content is None:
        return "", []
    as_json = json.dumps(content, ensure_ascii=False, default=str)
    if not isinstance(content, list):
        return as_json if tool and not isinstance(content, str) else content, []
    texts, thoughts = [], []
    for part in content:
        there = {k: v for k, v in part.items() if v is not None} if isinstance(part, dict) else {}
        kind = there.get("type", "text")
        if isinstance(part, str) and not tool:
            texts.append(part)
        elif kind in ("text", "input_text", "output_text") and isinstance(there.get("text"), str):
            texts.append(there["text"])
        elif kind in THOUGHTS and isinstance(there.get(kind, there.get("text")), str):
            thoughts.append(there.get(kind, there.get("text")))
        elif kind in IMAGES or any(there.get(key) for key in IMAGES):
            raise UserError(f"message {number} has a part {kind!r}: {VISION}")
        elif tool:  # a result that is a list of objects
            return as_json, []
        else:
            raise UserError(
                f"message {number} has a part of type {kind!r} in its content; allowed are text"
            )
    return "".join(texts), thoughts


def _thought(thoughts: list[Any], role: Any, number: int) -> str:
    if role != "assistant":
        raise UserError(f"message {number} is the {role}'s and has a thought; the assistant thinks")
    if not all(isinstance(thought, str) for thought in thoughts):
        raise UserError(f"message {number}: its thought ({', '.join(THOUGHTS)}) is not a string")
    if len(set(thoughts)) > 1:
        raise UserError(f"message {number} has two thoughts that differ; give one")
    return thoughts[0]


def _masked(there: dict[str, Any], number: int) -> bool:
    """Whether a turn is not to be learnt; its weights are taken out."""
    masked = False
    for key in WEIGHTS:
        value = there.pop(key, True)
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise UserError(f"message {number}: {key} is {value!r}; allowed are 0, 1, false, true")
        masked = masked or not value
    return masked


def _refuse(there: Mapping[str, Any], number: int) -> None:
    """Raise ``UserError`` for a key that changes what should be learnt and that nothing follows."""
    for key, value in there.items():
        if value in _NOTHING:
            continue
        if shows(key):
            raise UserError(f"message {number} has {key}: {VISION}")
        if key in OTHER_THOUGHTS:
            raise UserError(
                f"message {number} has {key}; a thought stands under {', '.join(THOUGHTS)}"
            )
        if key in UNFOLLOWED or (weighs(key) and not is_one(value)):
            allowed = f"a turn is left out of what is learnt by {', '.join(WEIGHTS)} 0 or false"
            raise UserError(f"message {number}: {key} = {value!r} is not followed; {allowed}")
        if key == "tool_responses":
            raise UserError(f"message {number} has a second text under {key!r}")


def beyond_text(row: Mapping[str, Any]) -> str:
    """What of a row is more than texts of turns, in words: ``tools``, ``tool_calls (message 2)``; or nothing."""
    if row.get("tools"):
        return "tools"
    for number, message in enumerate(row.get("messages", ()), 1):
        for key in ("tool_calls", "tool_responses", "reasoning_content"):
            if message.get(key):
                return f"{key} (message {number})"
        if message["role"] == "tool":
            return f"the result of a tool (message {number})"
    return ""


def exchanges(messages: list[Message]) -> list[Message]:
    """``{"system", "instruction", "response"}`` of each exchange; the system message stands in the first.

    One whose answer is not to be learnt has ``"learn": False``. Raises ``UserError`` for a
    conversation that is not [system,] user, assistant, user, …
    """
    if fault := fault_of(messages):
        raise UserError(fault)
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = messages[bool(system or messages[0]["role"] == "system") :]
    turns = [*turns, *[{"content": ""}] * (len(turns) % 2)]
    return [
        {
            "system": "" if at else system,
            "instruction": turns[at]["content"],
            "response": turns[at + 1]["content"],
        }
        | ({"learn": False} if turns[at + 1].get("learn") is False else {})
        for at in range(0, len(turns), 2)
    ]


def fault_of(messages: Any) -> str:
    """What is wrong with the messages of a conversation; an empty string for nothing."""
    if not isinstance(messages, list) or not messages:
        return "messages is not a list of {role, content}"
    before: Message = {"role": "system"}
    calls: list[Message] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is not an object with role and content"
        role, content = message["role"], message["content"]
        if role == "system" and number == 1:
            pass
        elif role not in ("user", "assistant", "tool"):
            where = "; a system message stands first" if role == "system" else ""
            return f"message {number} has role {role!r}; allowed are system, user, assistant{where}"
        elif fault := _out_of_order(role, before, messages[0]["role"] == "system", number):
            return f"message {number}: {fault}"
        if role == "assistant":
            calls = [*(calls if before.get("tool_calls") else []), *message.get("tool_calls", [])]
        if fault := _unasked(message, calls):
            return f"message {number}: {fault}"
        if role != "tool" and not isinstance(content, str):
            return f"message {number}: content is not a string but {type(content).__name__}"
        if not _says(message) and not (role == "system" and number == 1):
            unseen = isinstance(content, str) and content.strip()
            why = "has no character that can be seen" if unseen else "is empty"
            return f"message {number}: the {role}'s content {why}"
        try:
            json.dumps(message, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:  # JSON may say "\ud83d" without its other half
            at = _half(content) if isinstance(content, str) else -1
            code = ord(error.object[error.start])
            return f"message {number}: half a character (U+{code:04X})" + f" at {at}" * (at >= 0)
        before = message
    if before["role"] == "system":
        return "the conversation has a system message only"
    return ""


def _out_of_order(role: str, before: Message, system: bool, number: int) -> str:
    """Why a message may not follow the one before it; an empty string where it may."""
    if role == "tool":
        follows = before.get("tool_calls") or before["role"] == "tool"
        return "" if follows else "a message of role 'tool' follows no call"
    if role == before["role"]:
        return (
            f"the conversation has two {role} turns in a row; user and assistant alternate"
            if not before.get("tool_calls") and not before.get("tool_responses")
            else ""
        )
    if role == "assistant" and number == 1 + system:
        return f"the conversation starts with {role}; user and assistant alternate"
    return "a user's turn stands where the call's result is to be read" * (
        role == "user" and before["role"] == "tool"
    )


def _unasked(message: Message, calls: list[Message]) -> str:
    """Why a result is not one of the calls before it, by its id; an empty string where it is."""
    own, known = message.get("tool_call_id"), [call.get("id") for call in calls]
    if message["role"] != "tool" or own is None or own in known or None in known:
        return ""
    return f"tool_call_id {own!r} is of no call; those before it have {', '.join(map(repr, known))}"


def _says(message: Message) -> bool:
    """Whether a message has anything in it: text, a call, a tool's result even if that is empty."""
    content = message["content"]
    text = not blank(content) if isinstance(content, str) else content
    return bool(text or message["role"] == "tool" or message.get("tool_calls")) or bool(
        message.get("tool_responses")
    )


def _half(text: str) -> int:
    return next((i for i, c in enumerate(text) if 0xD800 <= ord(c) <= 0xDFFF), -1)
