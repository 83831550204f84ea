"""The calls of tools in the notation of Gemma's chat templates, read back as a name and arguments."""

import json
import re
from typing import Any

_NUMBER = re.compile(r"-?\d+(\.\d+)?([eE][+-]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "none": None, "None": None}
_WORDS |= {"True": True, "False": False}
_DEEPEST = 32  # lists and objects inside each other


class NoCall(ValueError):
    """A text is not the call that it should be."""


def read(text: str, quote: str) -> dict[str, Any]:
    """``{"name", "arguments"}`` of ``call:NAME{key:value,…}`` or of a JSON object with these keys.

    ``quote`` is the control token around strings. Raises ``NoCall`` for a text that is neither.
    """
    text = text.strip()
    if text.startswith("{"):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise NoCall(f"the call is no JSON: {error}") from None
        arguments = found.get("arguments", found.get("parameters"))
        if not isinstance(found.get("name"), str) or not isinstance(arguments, dict):
            raise NoCall("a call has a name and arguments")
        return {"name": found["name"], "arguments": arguments}
    head = re.match(r"(?:call:)?\s*([\w.-]+)\s*(?=\{)", text)
    if head is None:
        raise NoCall("a call begins with call:NAME{")
    reader = _Reader(text, head.end(), quote or '"')
    arguments = reader.value()
    if text[reader.at :].strip():
        raise NoCall("text stands behind the call")
    return {"name": head[1], "arguments": arguments}


class _Reader:
    """Values in the notation of Gemma's calls, from a place in a text on."""

    def __init__(self, text: str, at: int, quote: str) -> None:
        self.text, self.at, self.quote, self.depth = text, at, quote, 0

    def value(self) -> Any:
        """An object, a list, a string, a number or a word."""
        self._space()
        if self.text.startswith(self.quote, self.at):
            return self._string()
        if self.text[self.at : self.at + 1] in ("{", "["):
            return self._several()
        word = self._upto(",}]").strip()
        if _NUMBER.fullmatch(word):
            return json.loads(word)
        return _WORDS.get(word, word)

    def _several(self) -> Any:
        opened = self.text[self.at]
        closing, found = ("}", {}) if opened == "{" else ("]", [])
        self.at += 1
        self.depth += 1
        if self.depth > _DEEPEST:
            raise NoCall("the call is too deep")
        self._space()
        while not self._take(closing):
            if found:
                self._expect(",")
            if isinstance(found, list):
                found.append(self.value())
            else:
                key = self._key()
                self._expect(":")
                found[key] = self.value()
            self._space()
        self.depth -= 1
        return found

    def _key(self) -> str:
        self._space()
        quoted = self.text.startswith(self.quote, self.at)
        return self._string() if quoted else self._upto(":,}").strip()

    def _string(self) -> str:
        start = self.at + len(self.quote)
        end = self.text.find(self.quote, start)
        if end < 0:
            raise NoCall("a string has no end")
        self.at = end + len(self.quote)
        return self.text[start:end]

    def _upto(self, ends: str) -> str:
        start = self.at
        while self.at < len(self.text) and self.text[self.at] not in ends:
            self.at += 1
        return self.text[start : self.at]

    def _space(self) -> None:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1

    def _take(self, mark: str) -> bool:
        taken = self.text.startswith(mark, self.at)
        self.at += len(mark) * taken
        return taken

    def _expect(self, mark: str) -> None:
        self._space()
        if not self._take(mark):
            raise NoCall(f"{mark!r} is missing at {self.at}")
