"""Control tokens where no text may have them: in a row's own words, and those of every example in a template."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ft.errors import UserError
from ft.text.template import Template


def refuse(rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> None:
    """Raise ``UserError`` for the first row whose own text holds a control token of the tokenizer."""
    control = tokens(tokenizer)
    for number, row in enumerate(rows, 1):
        if found := found_in(row, control):
            raise UserError(f"row {number}, {found}; remove it from the data")


def tokens(tokenizer: Any) -> re.Pattern[str]:
    """What finds a control token in a text."""
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))


def require_bos(tokenizer: Any) -> int:
    """The id of the BOS, which every Gemma saw first in its training. Raises ``UserError`` without one."""
    if tokenizer.bos_token_id is None:
        raise UserError(
            "the tokenizer has no BOS token, with which every text of a Gemma starts; write "
            '"bos_token": "<bos>" into its tokenizer_config.json'
        )
    return tokenizer.bos_token_id


def refuse_template(template: Template, tokenizer: Any) -> None:
    """Raise ``UserError`` for a template that writes the BOS which every example begins with anyway."""
    require_bos(tokenizer)
    for key in ("prompt", "completion", "tail"):
        if tokenizer.bos_token in getattr(template, key):
            raise UserError(
                f"template {template.name!r}, {key}: it has {tokenizer.bos_token!r}, which every example "
                "begins with already; remove it from the template"
            )
    for token in (template.end or tokenizer.eos_token, tokenizer.eos_token):
        if token in template.completion:
            raise UserError(
                f"template {template.name!r}, completion: it has {token!r}, which follows every "
                "completion already; remove it from the template"
            )


def found_in(row: Mapping[str, Any], control: re.Pattern[str]) -> str:
    """Where a row's own text holds a control token, in words; nothing where it holds none."""
    turns = enumerate(row.get("messages", ()), 1)
    fields = [(f"message {n} ({m['role']})", value) for n, m in turns for value in m.values()]
    fields += [(key, value) for key, value in row.items() if key not in ("messages", "images")]
    for name, value in fields:
        for text in _texts(value):
            if found := control.search(text):
                return (
                    f"{name}: the text contains {found.group()!r}, which the tokenizer reads as a "
                    "control token"
                )
    return ""


def _texts(value: Any) -> Iterator[str]:
    """The strings of a value, which is one, or an object or a list of more."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from (key, *_texts(inner))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
