"""Which columns of a table hold source and target: those named, those called as languages, or these words."""

from collections.abc import Sequence
from typing import Any

from ft.data.rows import require
from ft.errors import UserError
from ft.text.languages import Language


def choose(
    direction: tuple[Language, Language] | None,
    named: tuple[str | None, str | None],
    origin: str,
    names: Sequence[str],
) -> tuple[str, str]:
    """The columns of source and target. ``UserError`` where they are not there, or more than one might be meant."""
    if any(named):
        columns = named[0] or "source", named[1] or "target"
        require(columns, names, origin)
        return columns
    prefixes = dict.fromkeys(name.rpartition(".")[0] for name in names)
    inside: dict[str, list[str]] = {p: [] for p in sorted(prefixes, key=lambda p: p != "")}
    for name in names:
        inside[name.rpartition(".")[0]].append(name)
    for there in inside.values() if direction else ():
        found = [_called(language, there, origin) for language in direction or ()]
        if found[0] and found[0] == found[1]:
            continue  # zh, of zh_Hans-zh_Hant
        if found[0] and found[1]:
            return found[0], found[1]
    for there in inside.values():
        plain = {name.rpartition(".")[2].strip().casefold(): name for name in there}
        if {"source", "target"} <= plain.keys():
            return plain["source"], plain["target"]
    codes = " and ".join(repr(language.code) for language in direction or ())
    try:
        require(("source", "target"), names, origin)
    except UserError as error:
        also = f" Columns may also be called {codes}." if codes else ""
        raise UserError(f"{error}{also}") from None
    return "source", "target"


def _called(language: Language, names: Sequence[str], origin: str) -> str:
    """The column that is called as a language is; an empty string for none."""

    def tail(name: str) -> str:
        return name.rpartition(".")[2]

    found = [n for n in names if language.is_called(tail(n))]
    found = found or [n for n in names if tail(n).strip().casefold() == language.name.casefold()]
    exactly = [n for n in found if language.is_called(tail(n), exactly=True)]
    if len(exactly or found) > 1:
        columns = ", ".join(map(repr, exactly or found))
        raise UserError(
            f"{origin}: the columns {columns} are all {language.name}; keep one of them"
        )
    return (exactly or found or [""])[0]


def flat(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the columns inside of its columns beside these, as ``translation.en``."""
    nested = {k: v for k, v in record.items() if isinstance(v, dict)}
    return record | {f"{k}.{name}": value for k, v in nested.items() for name, value in v.items()}
