"""A template: the fields of a row, or of each turn of a conversation, as a prompt and the completion to write."""

import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from ft.errors import UserError, nearest
from ft.text.messages import beyond_text, exchanges

OPTIONAL = {"system": "", "context": ""}  # what a row with an instruction may lack

Pair: TypeAlias = dict[str, Any]
"""``{"prompt", "completion"}``: what the model is given, and what it should write.

``"learn": False``: the completion is read and not learnt; ``"ended": True``: it has its end itself."""

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
    opening: str = (
        ""  # behind the last prompt: what a chat template adds where it asks for an answer
    )
    thinking: bool = False  # whether a chat template is told to ask for thoughts
    ignore: tuple[
        str, ...
    ] = ()  # optional fields that rows may have and that are left out knowingly

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

    @functools.cached_property
    def reads(self) -> frozenset[str]:
        """The fields that it reads, be it only for whether they are empty."""
        pieces = [*self._pieces("prompt"), *self._pieces("completion")]
        return frozenset(
            name for _, field, section, _ in pieces for name in (field, section) if name
        )

    def stop_in(self, completion: str) -> str:
        """The stop string that stands inside an answer, where generation would end; or nothing."""
        *_, (own, field, *_) = ((text, field) for text, field, *_ in self._pieces("completion"))
        answer = completion.removesuffix(own if not field else "").strip()
        return next((stop for stop in self.stop if stop in answer), "")

    @property
    def fields(self) -> set[str]:
        """The fields that a prompt is made of."""
        return {field for _, field, *_ in self._pieces("prompt") if field}

    def prompt_for(self, row: Mapping[str, Any]) -> str:
        """The text that the model is given. Raises ``UserError`` for a field that the row lacks."""
        return self._fill("prompt", row) + self.opening

    def render(self, row: Mapping[str, Any]) -> Pair:
        """``{"prompt", "completion"}`` of one exchange, as it stands before another one."""
        return {key: self._fill(key, row) for key in ("prompt", "completion")}

    def turns(self, row: Mapping[str, Any]) -> list[Pair]:
        """The pairs of a row: one, or with ``{"messages"}`` one for each exchange of its conversation.

        Where the last message is the user's, the last completion is empty. Raises ``UserError`` for
        a row with tools or thoughts: only a model's own chat template has places for them.
        """
        if found := beyond_text(row):
            raise UserError(
                f"template {self.name!r} has no place for {found}: only the chat template of a "
                "model that has them can show them (--template chat)"
            )
        given = exchanges(row["messages"]) if "messages" in row else [row]
        for one in given:
            self.refuse_unread(one)
        pairs: list[Pair] = [
            self.render(one) | ({"learn": False} if "learn" in one else {}) for one in given
        ]
        pairs[-1]["prompt"] += self.opening
        return pairs

    def refuse_unread(self, row: Mapping[str, Any]) -> None:
        """Raise ``UserError`` for a system message or a context that the template would drop."""
        for name in OPTIONAL.keys() - self.reads - {*self.ignore}:
            if str(row.get(name) or "").strip():
                raise UserError(
                    f"template {self.name!r} has no place for the row's {name}, which would be dropped: "
                    f"write {{?{name}}}…{{{name}}}…{{/{name}}} into it, or leave it out knowingly with "
                    f"--ignore-fields {name}"
                )

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

    def _pieces(self, key: str) -> tuple[tuple[str, str, str, bool], ...]:
        """(literal text, or a field; its section, and whether that is for a field that is there)."""
        return self._parsed[key]

    @functools.cached_property
    def _parsed(self) -> dict[str, tuple[tuple[str, str, str, bool], ...]]:
        return {key: tuple(self._parse(key)) for key in ("prompt", "completion")}

    def _parse(self, key: str) -> Iterator[tuple[str, str, str, bool]]:
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
    for key in ("stop", "strip", "ignore"):
        values[key] = tuple(values.get(key, ()))
    return Template(**values)


def to_record(template: Template) -> dict[str, Any]:
    """The template as plain values."""
    return dataclasses.asdict(template)
