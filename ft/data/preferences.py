"""Preferences: a better and a worse answer to a prompt, or one answer and whether it is wanted; and prompts alone."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ft.data import questions
from ft.data.rows import Row, Rows, checked, fault
from ft.data.tables import read_table
from ft.text import messages as conversation
from ft.text.meaning import is_one, shows, surrounds, weighs

Asked = Callable[[Row], Row | str]
_ASKED = ("messages", "source", "instruction", "context", "system")
_TURN = {"role", "content", "from", "value"}


def preferences(
    source: str | Path,
    *,
    asked: str = "instruction",
    split: str = "train",
    on_bad_row: str = "error",
) -> Rows:
    """Rows of preferences from a table (jsonl, json, csv, tsv, parquet) or the Hub.

    Pairs: ``chosen`` and ``rejected``, answers as texts or as messages, to a ``prompt`` (a text or
    messages), an ``instruction`` with ``context`` or ``input``, a ``question``, a ``source`` or
    ``messages``; or two whole conversations (messages, or hh-rlhf's text) that differ in their last
    answer, without a prompt of their own. Single answers: ``completion`` and ``label`` (true: wanted)
    to any of these prompts. ``system`` goes in front. ``source`` beside another prompt, or beside whole
    conversations, says where a row is from and is ignored, unless that is what is ``asked``.

    A row becomes ``{"instruction", "context"}``, ``{"source"}`` where that is what is ``asked``, or
    ``{"messages"}``, with ``chosen`` and ``rejected``, or ``completion`` and ``label``. Raises
    ``UserError`` that names each bad row, such as one whose answers are equal, unless
    ``on_bad_row="skip"``; and where rows of both kinds are mixed.
    """
    paired: set[bool] = set()

    def read(record: Row) -> Row | str:
        pair = bool({"chosen", "rejected"} & record.keys())
        if not pair and not {"completion", "label"} & record.keys():
            return (
                f"the columns {', '.join(map(repr, record))} are of no known format (prompt, chosen "
                "and rejected; prompt, completion and label)"
            )
        if pair and "label" in record:
            return "has a label beside chosen and rejected; keep the pair or the single answer"
        found = _pair(record) if pair else _single(record)
        if isinstance(found, str):
            return found
        if paired and pair not in paired:
            return "has one answer where earlier rows have two, or two where they have one"
        found = _source(found) if asked == "source" else found
        if isinstance(found, dict):
            paired.add(pair)
        return found

    used = {*questions.PROMPTS, *questions.WITH, "chosen", "rejected", "completion", "label"}
    return _read(source, split, on_bad_row, read, used, asked)


def prompts(
    source: str | Path,
    *,
    asked: str = "instruction",
    split: str = "train",
    on_bad_row: str = "error",
) -> Rows:
    """Rows of prompts, as ``preferences`` takes them, with all other columns as they are: a reward may read them.

    An answer in the row (``response``, ``output``, ``completion``, ``target``, or the last message) is
    kept as the reference. Raises ``UserError`` as ``preferences`` does.
    """

    def read(record: Row) -> Row | str:
        question = questions.asked_by(record)
        if isinstance(question, str):
            return question
        field = "target" if asked == "source" else "response"
        rest = {k: v for k, v in record.items() if k not in {*questions.PROMPTS, *questions.WITH}}
        reference = question.pop("answer", None)
        for name in ("response", "output", "completion", "target"):
            if isinstance(record.get(name), str):
                reference = record[name]
        row = rest | question | ({field: reference} if reference else {})
        return _source(row) if asked == "source" else row

    return _read(source, split, on_bad_row, read, None, asked)


def asking(row: Row) -> Row:
    """The fields of a row that are asked: no answer, and no column that only a reward reads."""
    return {k: v for k, v in row.items() if k in _ASKED}


def answered(row: Row, text: str) -> Row:
    """What a row asks with ``text`` as the answer, as ``Template.turns`` reads it."""
    if "messages" in row:
        turn = {"role": "assistant", "content": text}
        return {"messages": [*row["messages"], turn]}
    return asking(row) | {"target" if "source" in row else "response": text}


def answers(rows: Rows) -> list[tuple[str, Row]]:
    """Each answer of preferences, by what it is: ``("chosen", row)``, ``("wanted", row)``."""
    found = []
    for row in rows:
        if "chosen" in row:
            found += [(name, answered(row, row[name])) for name in ("chosen", "rejected")]
        else:
            name = "wanted" if row["label"] else "unwanted"
            found.append((name, answered(row, row["completion"])))
    return found


def _read(
    source: str | Path, split: str, on_bad_row: str, read: Asked, used: set[str] | None, asked: str
) -> Rows:
    records, origin, sha256, where = read_table(source, split=split)
    ignored: dict[str, None] = {}

    def row_of(record: dict[str, Any]) -> Row | str:
        record = {k: v for k, v in record.items() if v is not None and v != []}  # null is nothing
        record = _read_cells(record)
        if asked != "source" and "source" in record and questions.asks_otherwise(record):
            ignored["source"] = None  # it says where the row is from
            del record["source"]
        if used is not None:
            ignored.update(dict.fromkeys(_unused(record, used)))
        for name, value in record.items():
            if value and (shows(name) or (surrounds(name) and name != "system")):
                return f"the column {name!r} has no place in preferences and prompts; remove it"
            if used and weighs(name) and not is_one(value):
                return f"{name} is {value!r}: preferences have no weights; leave such a row out"
        return read(record)

    found = checked(records, origin, sha256, where, on_bad_row=on_bad_row, read=row_of)
    return dataclasses.replace(found, ignored=tuple(ignored))


def _read_cells(record: Row) -> Row:
    """A row whose answers are conversations that a table's cells hold as JSON, with these read."""
    for names in (("chosen", "rejected"), ("prompt", "completion")):
        sides = [record.get(name) for name in names]
        if (found := conversation.talks_in(sides)) is not sides:
            record = record | dict(zip(names, found, strict=True))
    if isinstance(record.get("chosen"), list) and "prompt" in record:
        record = record | {"prompt": conversation.talks_in([record["prompt"]])[0]}
    return record


def _unused(record: Row, used: set[str]) -> Iterator[str]:
    """The columns of a row, and the keys of its conversations' turns, that say nothing here."""
    for column, value in record.items():
        if column not in used:
            yield from [column] * (not weighs(column))
            continue
        for turn in value if isinstance(value, list) else [value]:
            there = turn.items() if isinstance(turn, dict) else ()
            keys = (key for key, value in there if value is not None and key not in _TURN)
            yield from (f"{column}.{key}" for key in keys if not weighs(key))


def _pair(record: Row) -> Row | str:
    """``chosen`` and ``rejected`` with what they answer."""
    if missing := [name for name in ("chosen", "rejected") if name not in record]:
        prompt = next((name for name in questions.PROMPTS if name in record), "prompt")
        return f"no {' and no '.join(missing)}; the columns are {prompt}, chosen, rejected"
    found = [_answer(record, name) for name in ("chosen", "rejected")]
    if bad := [text for text in found if isinstance(text, str)]:
        return "; ".join(dict.fromkeys(bad))
    (asks, chosen), (also, rejected) = found
    assert not isinstance(asks, str)
    if asks != also:
        return "chosen and rejected answer different conversations: only the last answer may differ"
    if chosen.strip() == rejected.strip():
        return f"chosen equals rejected, {chosen.strip()[:60]!r}: nothing is preferred"
    return {**asks, "chosen": chosen, "rejected": rejected}


def _single(record: Row) -> Row | str:
    """``completion`` and ``label`` with what is answered."""
    if missing := [name for name in ("completion", "label") if name not in record]:
        return f"no {' and no '.join(missing)}; a single answer has prompt, completion and label"
    label = record["label"]
    known = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
    label = label.strip().lower() if isinstance(label, str) else label
    if not isinstance(label, bool | int | str) or label not in known:
        return f"label is {record['label']!r}; allowed are true (wanted) and false"
    found = _answer(record, "completion")
    if isinstance(found, str):
        return found
    question, text = found
    return question | {"completion": text, "label": known[label]}


def _answer(record: Row, name: str) -> tuple[Row, str] | str:
    """What ``record[name]`` answers, and its text; or why it cannot be read."""
    value = record[name]
    value = [value] if isinstance(value, dict) else value
    given = [column for column in questions.PROMPTS if column in record]
    if isinstance(value, str) and (not given or value.startswith(questions.HUMAN)):
        other = record["rejected" if name == "chosen" else "chosen"] if name != "completion" else ""
        value = questions.turns_of(value)
        if value is None or questions.turns_of(str(other)) is None:
            return (
                "no prompt: give it as a column prompt, or chosen and rejected as whole conversations "
                "(messages, or texts of '\\n\\nHuman:' and '\\n\\nAssistant:')"
            )
    if isinstance(value, str):
        found = fault(record, name)
        text_asked = given and isinstance(record[given[0]], str)
        if found and not (text_asked and found == "rejected is empty"):  # that may well be worse
            return found
        question = questions.asked_by(record)
        if isinstance(question, dict) and question.pop("answer", None):
            return f"the prompt ends with an answer already, and {name} is another"
        return question if isinstance(question, str) else (question, value)
    whole = questions.conversation_of(
        value if len(value) != 1 else [{"role": "user", "content": "."}, *value]
    )
    if isinstance(whole, str):
        return f"{name}: {whole}"
    *before, last = whole["messages"]
    if len(value) == 1:  # the answer alone
        question = (
            questions.asked_by(record)
            if given
            else "no prompt: chosen and rejected are answers alone"
        )
        return question if isinstance(question, str) else (question, last["content"])
    if differs := questions.contradiction(record, given, before):
        return differs
    question = questions.with_columns(record, before)
    return question if isinstance(question, str) else (question, last["content"])


def _source(row: Row) -> Row | str:
    """A row of text to translate, of one whose prompt is a text or one message."""
    if "source" in row:
        return row
    if "messages" in row:
        if len(row["messages"]) != 1:
            return "a run that translates is asked one text, and this is a conversation"
        text = row["messages"][0]["content"]
    elif row.get("context") or row.get("system"):
        return "a run that translates is asked one text, without context and system"
    else:
        text = row["instruction"]
    kept = {k: v for k, v in row.items() if k not in ("messages", "instruction", "context")}
    return {"source": text} | kept
