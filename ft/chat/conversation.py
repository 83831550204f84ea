"""A conversation: its turns as the ids of a template, and no more of them than the context holds."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.text.template import OPTIONAL, Template

if TYPE_CHECKING:
    from ft.models.vision import Reader


@dataclass(frozen=True)
class Conversation:
    """Messages ``{"role", "content"}``, and the template that they read as. Changes are new values.

    A question that shows images has them under ``"images"``; ``see`` reads them.

    A template without ``{instruction}``, such as a translation's, has one field of its own: each
    question fills it and stands alone.
    """

    template: Template
    messages: tuple[Mapping[str, Any], ...] = ()
    see: "Reader | None" = None
    tools: tuple[Mapping[str, Any], ...] = ()  # functions that the model may call

    def __post_init__(self) -> None:
        fields = self.template.fields
        if "instruction" not in fields and len(fields - OPTIONAL.keys()) != 1:
            raise UserError(
                f"template {self.template.name!r} has the fields {', '.join(sorted(fields))}: a "
                "question can fill {instruction}, or the only field that there is"
            )
        if self.system and "system" not in fields:
            raise UserError(
                f"template {self.template.name!r} has no place for a system message: it has no "
                "field {system}"
            )

    @property
    def system(self) -> str:
        """The system message; empty without one."""
        first = self.messages[0] if self.messages else {"role": "", "content": ""}
        return first["content"] if first["role"] == "system" else ""

    @property
    def remembers(self) -> bool:
        """Whether earlier turns are part of a prompt."""
        return "instruction" in self.template.fields

    def instructed(self, system: str) -> "Conversation":
        """The same turns with another system message; none if it is empty."""
        turns = self.messages[bool(self.system) :]
        first = ({"role": "system", "content": system},) if system else ()
        return dataclasses.replace(self, messages=first + turns)

    def asked(self, question: str, images: Sequence[Any] = ()) -> "Conversation":
        """With the user's next message, and the images that it is about."""
        return self._with("user", question, **({"images": images} if images else {}))

    def answered(self, answer: str) -> "Conversation":
        """With the model's answer to it."""
        return self._with("assistant", answer)

    def reset(self) -> "Conversation":
        """The system message alone."""
        return dataclasses.replace(self, messages=self.messages[: bool(self.system)])

    def ids(self, tokenizer: Any) -> list[int]:
        """The prompt's token ids: those that training had at this place.

        Raises ``UserError`` for turns in another order, and a control token inside a text.
        """
        from ft.text import tokens

        row: dict[str, Any] = {"messages": list(self.messages)}
        if not self.remembers:
            (field,) = self.template.fields - OPTIONAL.keys()
            last = self.messages[-1]
            row = {"system": self.system, field: last["content"], "images": last.get("images", ())}
        if any(message.get("images") for message in self.messages):
            assert self.see is not None
            return self.see.prompt(self.template, row, tokenizer)
        row.pop("images", None)
        if self.tools:
            row["tools"] = list(self.tools)
        return tokens.prompt_ids(self.template, row, tokenizer)

    def fitted(self, tokenizer: Any, most: int | None) -> tuple["Conversation", int]:
        """With the oldest exchanges left out until the prompt has at most ``most`` tokens, and their number.

        The system message and the last question always stay.
        """
        first, turns = self.messages[: bool(self.system)], self.messages[bool(self.system) :]
        shorter = self
        for dropped in range(len(turns) // 2 + 1):
            shorter = dataclasses.replace(self, messages=first + turns[2 * dropped :])
            if most is None or not self.remembers or len(shorter.ids(tokenizer)) <= most:
                return shorter, dropped
        return shorter, len(turns) // 2

    def _with(self, role: str, content: str, **more: Any) -> "Conversation":
        message = {"role": role, "content": content, **more}
        return dataclasses.replace(self, messages=(*self.messages, message))
