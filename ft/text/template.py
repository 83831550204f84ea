"""A template: the fields of a row, or of each turn of a conversation, as a prompt and the completion to write."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ft.errors import UserError, nearest

OPTIONAL = {"system": "", "context": ""}  # what a row with an instruction may lack

Pair: TypeAlias = dict[str, str]
"""``{"prompt", "completion"}``: what the model is given, and what it should write."""

_PIECE = re.compile(r"(\{\{|\}\})|\{([?!/]?)([A-Za-z_]\w*)\}|([{}])")


@dataclass(frozen=True)
class Template:
    """How one row reads as text, and where generated text ends.

    ``{field}`` is a field of the row, ``{?field}…{/field}`` a section that vanishes where the field is
    empty, ``{!field}…{/field}`` one that stands only there, ``{{`` and ``}}`` are braces. The prompt ends exactly where the model starts writing.
    Training adds the end token after the completion, and generation stops at that token and at any
    string of ``stop``. A conversation is one such pair after the other, with ``tail`` between.
    Raises ``UserError`` for a pattern that cannot be read or a completion without a field.
    """

    name: str
    prompt: str
    completion: str
    stop: tuple[str, ...] = ()
    end: str = ""  # the end token's text, such as <end_of_turn>; empty: the tokenizer's EOS
    tail: str = ""  # what stands between the end token and the next turn; no loss is taken of it
    strip: tuple[str, ...] = ()  # fields that lose the white space at their ends

    def __post_init__(self) -> None:
        for key in ("prompt", "completion"):
            fields = [field for _, field, *_ in self._pieces(key) if field]
            if key == "completion" and not fields:
                raise UserError(
                    f"template {self.name!r}: the completion has no field, so there is nothing to "
                    "learn; write for instance {response}"
                )
        if any(not stop.strip(" ") for stop in self.stop):
            raise UserError(f"template {self.name!r}: a stop string is empty, which stops at once")

    def prompt_for(self, row: Mapping[str, Any]) -> str:
        """The text that the model is given. Raises ``UserError`` for a field that the row lacks."""
        return self._fill("prompt", row)

    def render(self, row: Mapping[str, Any]) -> Pair:
        """``{"prompt", "completion"}`` of one row."""
        return {"prompt": self.prompt_for(row), "completion": self._fill("completion", row)}

    def turns(self, row: Mapping[str, Any]) -> list[Pair]:
        """The pairs of a row: one, or with ``{"messages"}`` one for each exchange of its conversation.

        Where the last message is the user's, the last completion is empty.
        """
        if "messages" not in row:
            return [self.render(row)]
        return [self.render(exchange) for exchange in exchanges(row["messages"])]

    def trim(self, text: str) -> str:
        """Generated text up to the first stop string, without white space at its ends."""
        ends = [i for stop in self.stop if (i := text.lstrip().find(stop)) >= 0]
        return text.lstrip()[: min(ends, default=None)].strip()

    def _fill(self, key: str, row: Mapping[str, Any]) -> str:
        if "instruction" in row:
            row = OPTIONAL | dict(row)
        parts = []
        for text, field, section, present in self._pieces(key):
            for name in (field, section):
                if name and name not in row:
                    raise UserError(
                        f"template {self.name!r} uses the field {name!r}, which the row does not have; "
                        f"it has {', '.join(sorted(row))}.{nearest(name, row)}"
                    )
            if section and bool(str(row[section]).strip()) != present:
                continue
            value = str(row[field]) if field else text
            parts.append(value.strip() if field in self.strip else value)
        return "".join(parts)

    def _pieces(self, key: str) -> Iterator[tuple[str, str, str, bool]]:
        """(literal text, or a field; its section, and whether that is for a field that is there)."""
        pattern, section, present, start = getattr(self, key), "", True, 0

        def wrong(what: str) -> UserError:
            return UserError(
                f"template {self.name!r}, {key}: {what}. Write {{field}}, {{?field}}…{{/field}} for "
                "a section that vanishes where the field is empty, and {{ or }} for a brace."
            )

        for found in _PIECE.finditer(pattern):
            yield pattern[start : found.start()], "", section, present
            start = found.end()
            brace, mark, field, alone = found.groups()
            if alone:
                raise wrong(f"a single {alone!r} at character {found.start() + 1}")
            if brace:
                yield brace[0], "", section, present
            elif not mark:
                yield "", field, section, present
            elif (mark != "/") == bool(section) or (mark == "/" and field != section):
                raise wrong(f"{found.group()} does not fit, inside {section or 'no'} section")
            else:
                section, present = ("", True) if mark == "/" else (field, mark == "?")
        if section:
            raise wrong(f"the section {section!r} is not closed")
        yield pattern[start:], "", "", True


def from_record(kept: Mapping[str, Any]) -> Template:
    """The template that a run's record holds."""
    values = dict(kept)
    for key in ("stop", "strip"):
        values[key] = tuple(values.get(key, ()))
    return Template(**values)


def to_record(template: Template) -> dict[str, Any]:
    """The template as plain values."""
    return dataclasses.asdict(template)


def exchanges(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """``{"system", "instruction", "response"}`` of each exchange; the system message stands in the first.

    Raises ``UserError`` for a conversation that is not [system,] user, assistant, user, …
    """
    if fault := fault_of(messages):
        raise UserError(fault)
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    turns = messages[bool(system or messages[0]["role"] == "system") :]
    texts = [turn["content"] for turn in turns] + [""] * (len(turns) % 2)
    return [
        {"system": "" if at else system, "instruction": texts[at], "response": texts[at + 1]}
        for at in range(0, len(texts), 2)
    ]


def fault_of(messages: Any) -> str:
    """What is wrong with the messages of a conversation; an empty string for nothing."""
    if not isinstance(messages, list) or not messages:
        return "messages is not a list of {role, content}"
    expected = "user"
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            return f"message {number} is not an object with role and content"
        role, content = message["role"], message["content"]
        if role == "system" and number == 1:
            expected = "user"
        elif role not in ("user", "assistant"):
            where = "; a system message stands first" if role == "system" else ""
            return f"message {number} has role {role!r}; allowed are system, user, assistant{where}"
        elif role != expected:
            why = "starts with" if number - (messages[0]["role"] == "system") == 1 else "has two"
            rest = role if why == "starts with" else f"{role} turns in a row"
            return f"message {number}: the conversation {why} {rest}; user and assistant alternate"
        else:
            expected = "assistant" if role == "user" else "user"
        if not isinstance(content, str):
            return f"message {number}: content is not a string but {type(content).__name__}"
        if not content.strip():
            return f"message {number}: the {role}'s content is empty"
        try:
            content.encode()
        except UnicodeEncodeError as error:  # JSON may say "\ud83d" without its other half
            code = ord(content[error.start])
            return f"message {number}: half a character (U+{code:04X}) at {error.start}"
    if expected == "user" and messages[-1]["role"] == "system":
        return "the conversation has a system message only"
    return ""
