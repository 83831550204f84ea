"""Preferences: a better and a worse answer to a prompt, or one answer and whether it is wanted; and prompts alone."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft.data.rows import Row, Rows, checked, fault
from ft.data.tables import read_table
from ft.errors import UserError
from ft.text import messages as conversation
from ft.text.meaning import is_one, plain, shows, weighs

Asked = Callable[[Row], Row | str]
_TEXTS = ("prompt", "instruction", "question", "source")  # columns of a prompt that is a text
_PROMPTS = (*_TEXTS, "messages")
_WITH = {"system": "system", "context": "context", "input": "context"}  # what goes with a text
_ASKED = ("messages", "source", "instruction", "context", "system")
# what would change how a row reads, and has no place here
_REFUSED = {"tools", "functions", "history", "chattemplatekwargs", "documents"}
_REFUSED |= {"system", "systemprompt", "systemmessage"}  # but for `system` itself, which has one
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # turns of Anthropic/hh-rlhf


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
    to any of these prompts. ``system`` goes in front.

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

    used = {*_PROMPTS, *_WITH, "chosen", "rejected", "completion", "label"}
    return _read(source, split, on_bad_row, read, used)


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
        question = _question(record)
        if isinstance(question, str):
            return question
        field = "target" if asked == "source" else "response"
        rest = {k: v for k, v in record.items() if k not in {*_PROMPTS, *_WITH}}
        reference = question.pop("answer", None)
        for name in ("response", "output", "completion", "target"):
            if isinstance(record.get(name), str):
                reference = record[name]
        row = rest | question | ({field: reference} if reference else {})
        return _source(row) if asked == "source" else row

    return _read(source, split, on_bad_row, read, None)


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
    source: str | Path, split: str, on_bad_row: str, read: Asked, used: set[str] | None
) -> Rows:
    records, origin, sha256, where = read_table(source, split=split)
    seen: dict[str, None] = {}

    def row_of(record: dict[str, Any]) -> Row | str:
        record = {k: v for k, v in record.items() if v is not None and v != []}  # null is nothing
        seen.update(dict.fromkeys(record))
        for name, value in record.items():
            beyond = name != "system" and plain(name) in _REFUSED
            if value and (beyond or shows(name)):
                return f"the column {name!r} has no place in preferences and prompts; remove it"
            if used and weighs(name) and not is_one(value):
                return f"{name} is {value!r}: preferences have no weights; leave such a row out"
        return read(record)

    found = checked(records, origin, sha256, where, on_bad_row=on_bad_row, read=row_of)
    unused = (name for name in seen if used is not None and name not in used)
    ignored = tuple(name for name in unused if not weighs(name))
    return dataclasses.replace(found, ignored=ignored)


def _pair(record: Row) -> Row | str:
    """``chosen`` and ``rejected`` with what they answer."""
    if missing := [name for name in ("chosen", "rejected") if name not in record]:
        prompt = next((name for name in _PROMPTS if name in record), "prompt")
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
    given = [column for column in _PROMPTS if column in record]
    if isinstance(value, str) and not given:
        other = record["rejected" if name == "chosen" else "chosen"] if name != "completion" else ""
        value = _turns(value)
        if value is None or _turns(str(other)) is None:
            return (
                "no prompt: give it as a column prompt, or chosen and rejected as whole conversations "
                "(messages, or texts of '\\n\\nHuman:' and '\\n\\nAssistant:')"
            )
    if isinstance(value, str):
        found = fault(record, name)
        text_asked = given and isinstance(record[given[0]], str)
        if found and not (text_asked and found == "rejected is empty"):  # that may well be worse
            return found
        question = _question(record)
        if isinstance(question, dict) and question.pop("answer", None):
            return f"the prompt ends with an answer already, and {name} is another"
        return question if isinstance(question, str) else (question, value)
    whole = _conversation(value if len(value) != 1 else [{"role": "user", "content": "."}, *value])
    if isinstance(whole, str):
        return f"{name}: {whole}"
    *before, last = whole["messages"]
    if len(value) == 1:  # the answer alone
        question = (
            _question(record) if given else "no prompt: chosen and rejected are answers alone"
        )
        return question if isinstance(question, str) else (question, last["content"])
    return _same(record, given, before) or (_with_system(record, before), last["content"])


def _question(record: Row) -> Row | str:
    """What is asked, by the columns of a prompt; ``answer`` is that of a conversation which has one."""
    given = [name for name in _PROMPTS if name in record]
    if len(given) != 1:
        found = " and ".join(map(repr, given)) or "none"
        return f"one column of a prompt is needed ({', '.join(_PROMPTS)}), and here is {found}"
    value = record[given[0]]
    if isinstance(value, list):
        ends = isinstance(value[-1], dict) and value[-1].get("role") in ("assistant", "model")
        whole = _conversation(value if ends else [*value, {"role": "assistant", "content": "."}])
        if isinstance(whole, str):
            return f"{given[0]}: {whole}"
        *before, last = whole["messages"]
        return _with_system(record, before) | ({"answer": last["content"]} if ends else {})
    if given[0] == "messages":
        return "messages is not a list of {role, content}"
    columns = [given[0], *(c for c in _WITH if str(record.get(c) or "").strip())]
    if faults := [found for column in columns if (found := fault(record, column))]:
        return "; ".join(faults)
    row = {"source": value} if given[0] == "source" else {"instruction": value, "context": ""}
    return row | {_WITH[column]: record[column] for column in columns[1:]}


def _conversation(messages: Any) -> Row | str:
    """A conversation that ends with an answer, or what is wrong with it."""
    try:
        turns = conversation.read(messages, {})
    except UserError as error:
        return str(error)
    if found := conversation.fault_of(turns):
        return found
    for number, turn in enumerate(turns, 1):
        if more := sorted(turn.keys() - {"role", "content"}):
            return f"message {number} has {more[0]}, which has no place in preferences; remove it"
    return {"messages": turns}


def _with_system(record: Row, messages: list[dict[str, str]]) -> Row:
    system = str(record.get("system") or "").strip()
    if system and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": record["system"]}, *messages]
    return {"messages": messages}


def _same(record: Row, given: list[str], before: list[dict[str, str]]) -> str:
    """Why prompts that stand beside a whole conversation contradict it; nothing where they do not."""
    texts = [m["content"].strip() for m in before if m["role"] == "user"]
    for column in given:
        value = record[column]
        if isinstance(value, str) and value.strip() not in (texts[0], texts[-1]):
            return f"{column} is not what the conversations ask, {texts[-1][:60]!r}"
        if isinstance(value, list):
            pairs = zip(before, value, strict=False)
            same = all(isinstance(v, dict) and m["content"] == v.get("content") for m, v in pairs)
            if not same or len(value) not in (len(before), len(before) + 1):
                return f"{column} is not how the conversations begin"
    system = str(record.get("system") or "").strip()
    if system and before[0]["role"] == "system" and before[0]["content"].strip() != system:
        return "the system column is not the conversations' system message"
    return ""


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


def _turns(text: str) -> list[dict[str, str]] | None:
    """The messages of a text in hh-rlhf's format; none where it is not of that."""
    if not text.startswith(_HUMAN) or _ASSISTANT not in text:
        return None
    turns, role = [], "user"
    for part in text.replace(_ASSISTANT, "\0A").replace(_HUMAN, "\0H").split("\0")[1:]:
        role = "user" if part[0] == "H" else "assistant"
        turns.append({"role": role, "content": part[1:].strip()})
    return turns
