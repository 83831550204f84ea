"""The shared templates: a row of fields becomes a prompt and the completion that the model should write."""

import string
from collections.abc import Mapping
from dataclasses import dataclass

from ft.errors import UserError, nearest

LANGUAGES = {"en": "English", "fr": "French", "ja": "Japanese"}


@dataclass(frozen=True)
class Template:
    """How one row reads as text, and where generated text ends.

    The prompt ends exactly where the model starts writing. Training adds the tokenizer's end token
    after the completion; generation stops there and at any string of ``stop``.
    """

    name: str
    prompt: str
    completion: str
    stop: tuple[str, ...] = ()

    def prompt_for(self, row: Mapping[str, str]) -> str:
        """The text that the model is given. Raises ``UserError`` for a field that the row lacks."""
        return self._fill(self.prompt, row)

    def render(self, row: Mapping[str, str]) -> dict[str, str]:
        """``{"prompt", "completion"}`` of one row."""
        return {"prompt": self.prompt_for(row), "completion": self._fill(self.completion, row)}

    def trim(self, text: str) -> str:
        """Generated text up to the first stop string, without white space at its ends."""
        ends = [i for stop in self.stop if (i := text.lstrip().find(stop)) >= 0]
        return text.lstrip()[: min(ends, default=None)].strip()

    def _fill(self, pattern: str, row: Mapping[str, str]) -> str:
        try:
            return string.Formatter().vformat(pattern, (), row)
        except KeyError as missing:
            field = str(missing.args[0])
            raise UserError(
                f"template {self.name!r} uses the field {field!r}, which the row does not have; "
                f"it has {', '.join(sorted(row))}.{nearest(field, row)}"
            ) from None


def translation(target_language: str = "French") -> Template:
    """The tutorials' prompt: ``Translate this into French:`` and the text, each on its own line.

    A translation is one line, as every target of MTNT is, so a line break ends it.
    Source: google-deepmind/gemma, colabs/fine_tuning.ipynb.
    """
    return Template(
        name=f"translate into {target_language}",
        prompt=f"Translate this into {target_language}:\n{{source}}\n",
        completion="{target}",
        stop=("\n",),
    )


def translation_of(pair: str) -> Template:
    """``translation`` for a pair of language codes such as ``en-fr``."""
    code = pair.partition("-")[2]
    if code not in LANGUAGES:
        known = ", ".join(sorted(LANGUAGES))
        raise UserError(f"language pair {pair!r}: the part behind the dash must be one of {known}")
    return translation(LANGUAGES[code])
