"""What a chat template has places for, and the control tokens around turns, thoughts and results: its form.

It is found once for a template, by rendering conversations with marks in them.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ft.errors import UserError
from ft.text import bounded, chat_template
from ft.text.messages import THOUGHTS
from ft.text.template import Template

# of characters that no text has and that JSON leaves as they are
_MARK = {key: f"\ue000{key}\ue000" for key in ("user", "call", "result", "thought", "answer")}
_USER = {"role": "user", "content": _MARK["user"]}
_ANSWER = {"role": "assistant", "content": _MARK["answer"]}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {
            "id": "1",
            "type": "function",
            "function": {"name": "f", "arguments": {"x": _MARK["call"]}},
        }
    ],
}
_RESULT = {"role": "tool", "name": "f", "tool_call_id": "1", "content": _MARK["result"]}


@dataclass(frozen=True)
class Form:
    """What a chat template has places for, and the texts that its turns begin and end with."""

    jinja: str  # the template, completed by places for what it had none for
    turn: str  # opens the model's turn, behind which it writes
    end: str  # ends it
    openings: tuple[str, str]  # what a prompt has behind that, without and with thoughts asked for
    tools: bool  # whether tools that may be called have a place
    thinks: bool  # whether it can ask for thoughts
    result: tuple[str, str] | None  # control tokens around a tool's result in the model's turn
    thought: tuple[str, str] | None  # around a thought
    label: str = ""  # what stands in it before its text
    call: tuple[str, str] | None = None  # around a call
    quote: str = ""  # around a string in it


def form_of(tokenizer: Any) -> Form:
    """The ``Form`` of a tokenizer's chat template. Raises ``UserError`` where it has none of turns."""
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer has no chat template, which alone has places for tools and thoughts: give the "
            "-it model, or data without them"
        )
    return _form(_Known(tokenizer))


class _Known:
    """A tokenizer that a cache tells by its chat template and its control tokens."""

    def __init__(self, tokenizer: Any) -> None:
        special = (t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        self.tokenizer, self.key = tokenizer, (tokenizer.chat_template, tuple(special))

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Known) and self.key == other.key


def own_form(template: Template | None, tokenizer: Any) -> Form | None:
    """The form that a model's answers have by a template; none where that is not its own chat template."""
    own = template is not None and template.name == "chat" and tokenizer.chat_template
    try:
        return form_of(tokenizer) if own else None
    except (
        UserError
    ):  # of a stranger's chat template, in which neither thoughts nor calls are known
        return None


def thought_ids(template: Template | None, tokenizer: Any) -> tuple[int, int, str] | None:
    """The ids around a thought in what the model writes, and its label; none where it has none."""
    form = own_form(template, tokenizer)
    if form is None or form.thought is None:
        return None
    opens, closes = tokenizer.convert_tokens_to_ids(list(form.thought))
    return opens, closes, form.label


@functools.lru_cache(maxsize=16)
def _form(known: "_Known") -> Form:
    jinja = chat_template.complete(known.tokenizer)
    tried = functools.partial(_tried, known.tokenizer, jinja)
    control = re.compile("|".join(map(re.escape, sorted(known.key[1], key=len, reverse=True))))
    plain = tried([_USER, _ANSWER])
    asked = [tried([_USER], ask=True, thinking=thinking) for thinking in (False, True)]
    if plain is None or None in asked:
        raise UserError("the tokenizer's chat template refuses a user's turn with an answer")
    between = plain.partition(_MARK["user"])[2].partition(_MARK["answer"])[0]
    opened = [found.start() for found in control.finditer(between)]
    ends = control.search(plain.partition(_MARK["answer"])[2])
    if not opened or ends is None:
        raise UserError("the tokenizer's chat template has no control tokens around a turn")
    turn, end = between[opened[-1] :], ends.group()
    tools = tried([_USER, _ANSWER], [chat_template.TOOL])
    thought = dict.fromkeys(THOUGHTS, _MARK["thought"])
    talks = [[_USER, _ANSWER | thought], [_USER, _CALL | thought, _RESULT, _ANSWER]]
    around = [_around(tried(t), _MARK["thought"], control, turn, end) for t in talks]
    called = tried([_USER, _CALL, _RESULT, _ANSWER])
    responses = {"tool_responses": [{"name": "f", "response": _MARK["result"]}]}
    embedded, inside = [_USER, _CALL | responses, _ANSWER], (_MARK["result"], control, turn, end)
    return Form(
        jinja=jinja,
        turn=turn,
        end=end,
        openings=tuple(text.rpartition(turn)[2] for text in asked),  # pyright: ignore
        tools=chat_template.TOOL["function"]["name"] in (tools or ""),
        thinks=asked[0] != asked[1] or plain != tried([_USER, _ANSWER], thinking=True),
        result=_around(called, *inside) or _around(tried(embedded), *inside),
        thought=around[0] or around[1],
        label=_label(tried, talks, around),
        call=_around(called, _MARK["call"], control, turn, end),
        quote=next((t for t in known.key[1] if f"{t}{_MARK['call']}{t}" in (called or "")), ""),
    )


def _around(
    rendered: str | None, mark: str, control: re.Pattern[str], turn: str, end: str
) -> tuple[str, str] | None:
    """The control tokens before and behind a mark in the model's turn; none where it is not in one."""
    before, found, after = (rendered or "").partition(mark)
    inside = before.rpartition(turn)[2]
    if not found or turn not in before or end in inside:
        return None
    first, last = control.findall(inside), control.findall(after)
    if first and last and first[-1] == last[0]:  # quotes around a string
        first.pop()
        last.pop(0)
    return (first[-1], last[0]) if first and last and last[0] != end else None


def _label(
    tried: Callable[..., str | None], talks: list[Any], around: list[tuple[str, str] | None]
) -> str:
    """``"thought\\n"``: what stands between a thought's first token and its text."""
    for talk, tokens in zip(talks, around, strict=True):
        if tokens:
            before = (tried(talk) or "").partition(_MARK["thought"])[0]
            return before.rpartition(tokens[0])[2]
    return ""


def render(
    tokenizer: Any,
    jinja: str,
    messages: list[dict[str, Any]],
    tools: Any = None,
    *,
    ask: bool = False,
    thinking: bool = False,
) -> str:
    """What a chat template makes of messages; with ``ask`` a prompt. Raises what Jinja raises."""
    shown = [_shown(message) for message in messages]
    options = {"chat_template": jinja} | ({"enable_thinking": True} if thinking else {})
    bounded.prove(tokenizer)
    return tokenizer.apply_chat_template(
        shown, tools=tools or None, tokenize=False, add_generation_prompt=ask, **options
    )


def _tried(
    tokenizer: Any, jinja: str, messages: Any, tools: Any = None, **options: Any
) -> str | None:
    """What a chat template makes of a conversation; nothing where it refuses it."""
    from jinja2 import TemplateError

    try:
        return render(tokenizer, jinja, messages, tools, **options)
    except (TemplateError, TypeError, ValueError, KeyError):
        return None


def _shown(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message as a chat template takes it: a thought under each of the names that templates know."""
    found = {key: value for key, value in message.items() if key != "learn"}
    if thought := found.get("reasoning_content"):
        found |= dict.fromkeys(THOUGHTS, thought)
    return found
