"""Instructions and conversations: Dolly, and users' own data as messages, prompt/completion, alpaca or sharegpt."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.data import mixture
from ft.data.doubles import duplicates, overlap
from ft.data.places import listed
from ft.data.rows import Faulty, Row, Rows, checked, fault, held_out
from ft.data.tables import read_table, table_in
from ft.errors import UserError, one_of
from ft.text import functions
from ft.text import messages as conversation
from ft.text.meaning import AROUND, IMAGES, is_one, plain, shows, weighs
from ft.text.messages import VISION, Message, fault_of
from ft.text.template import Template

DOLLY = "databricks/databricks-dolly-15k"
_FORMATS = (
    "messages [{role, content}]; conversations [{from, value}]; prompt and completion; "
    "instruction, input and output; instruction, context and response"
)
# the columns of each format, the one that is asked first and the one that is learnt
_TURNS = ("messages", "conversations")
_PAIRS = (
    ("prompt", "", "completion"),
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
)
_TOOLS = ("tools", "functions")
# A column that changes what should be learnt is used or refused by name; any other is ignored and listed.
_MEANING = {*_TURNS, *AROUND, *IMAGES, *conversation.THOUGHTS}
_MEANING |= {column for columns in _PAIRS for column in columns if column}
_MEANING |= {"tool_calls", "function_call"}
_MEANING |= {"chosen", "rejected", "conversation", "dialog", "dialogue"}
_ALIKE = {plain(name) for name in _MEANING}


def dolly(
    source: str | Path = DOLLY,
    *,
    categories: Sequence[str] = (),
    no_context: bool = False,
    on_bad_row: str = "error",
    seed: int = 42,
    max_rows: int | None = None,
) -> Rows:
    """The rows of databricks-dolly-15k: ``{"instruction", "context", "response", "category"}``.

    ``source`` is its jsonl file, a folder that holds it, or the Hub's id, or several such sources, which
    are mixed by ``seed`` (``mixture.mixed``), ``max_rows`` rows in all. ``categories`` keeps these,
    ``no_context`` those that need no text to read (10,416 of 15,014). Any other data of instructions
    that has the columns will do. Raises UserError as ``instructions`` does, and for a category that
    no row has.
    """

    def one(place: str, split: str) -> Rows:
        return instructions(place, split=split, on_bad_row=on_bad_row)

    rows = mixture.mixed(str(source), one, seed=seed, max_rows=max_rows)
    if categories:
        known = sorted({row["category"] for row in rows if "category" in row})
        if not known:
            raise UserError(f"{rows.origin} has no column 'category' to choose by")
        for category in categories:
            one_of("categories", category, known)
        what = f"of {', '.join(categories)}"
        rows = rows.only(lambda row: row.get("category") in categories, what)
        left = tuple(column for column in rows.ignored if column != "category")
        rows = dataclasses.replace(rows, ignored=left)
    if no_context:
        rows = rows.only(lambda row: not row.get("context", "").strip(), "without context")
    return rows


def instructions(source: str | Path, *, split: str = "train", on_bad_row: str = "error") -> Rows:
    """Rows of instructions or conversations from a file (jsonl, json, csv, tsv, parquet) or the Hub.

    The columns that a row has tell its format: ``messages``; ``conversations`` (sharegpt);
    ``prompt`` and ``completion``, as texts or as messages (TRL); ``instruction``, ``input`` and
    ``output`` (alpaca, with ``history``); ``instruction``, ``context`` and ``response`` (Dolly). Any
    may have ``system``, a conversation ``tools``. Rows become ``{"messages"}``, with ``tools``, or
    ``{"instruction", "context", "response"}``, with ``system`` and ``category`` where there are.

    A column that changes what should be learnt is used or refused by name; every other one that is
    not empty is listed in ``ignored``. Raises UserError for another format, and for bad rows (an empty
    answer, turns out of order) unless ``on_bad_row="skip"``.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.jsonl"))
        place = found[0] if len(found) == 1 else table_in(place)
    records, origin, sha256, where = read_table(place if place.exists() else source, split=split)
    ignored: dict[str, None] = {}

    def read(record: dict[str, Any]) -> Row | Faulty | str:
        try:
            return _row(record, ignored)
        except UserError as error:
            return str(error)

    made = {"on_bad_row": on_bad_row, "read": read, "ignored": ignored}
    return checked(records, origin, sha256, where, **made)


def _row(record: dict[str, Any], ignored: dict[str, None]) -> Row | Faulty | str:
    """A row of any format. Raises ``UserError``, or says what is wrong with it."""
    there = {key: value for key, value in record.items() if value not in (None, "", [], {})}
    if images := next(filter(shows, there), ""):
        return f"it has {images}: {VISION}"
    turns = next((key for key in _TURNS if key in there), "")
    pair = next((p for p in _PAIRS if {p[0], p[2]} <= record.keys()), None)
    if not turns and pair is None:
        turns = next((key for key in _TURNS if key in record), "")
    if turns:
        used, row = {turns}, _of_turns(there.get(turns), there, ignored)
    elif pair is None:
        advice = "; recipes/text_lora.py learns from plain text" if "text" in record else ""
        named = ", ".join(map(repr, record))
        return f"the columns {named} are of no known format ({_FORMATS}){advice}"
    else:
        used, row = set(pair), _of_pair(record, there, pair, ignored)
    used |= {"system", *_TOOLS, *(("history",) if pair and pair[2] == "output" else ())}
    known = row.rest if isinstance(row, Faulty) else row
    for column in there.keys() - used:
        copied = isinstance(known, dict) and _is_copy(there[column], known)
        if weighs(column):
            if is_one(there[column]):
                continue
            return f"{column} is {there[column]!r} for the whole row; leave such a row out, or make it 1"
        if column == "label" and pair == _PAIRS[0] and str(there[column]).lower() == "false":
            return "label is false, an answer that is not wanted: recipes/preference.py learns from such"
        if plain(column) in _ALIKE and not copied:
            what = f"with {turns or ' and '.join(filter(None, pair or ()))}"
            return f"the column {column!r} would change what is learnt, and is not used {what}; remove it"
    for column in record:
        if column in there and column not in used and not weighs(column):
            ignored[column] = None
    return row


def _is_copy(value: Any, row: Row) -> bool:
    """Whether a column only says again what a message says, as ``prompt`` does beside ``messages``."""
    return any(value == m["content"] for m in row.get("messages", ()) if isinstance(value, str))


def _of_pair(
    record: dict[str, Any],
    there: Mapping[str, Any],
    columns: tuple[str, str, str],
    ignored: dict[str, None],
) -> Row | Faulty | str:
    """A question and its answer, as texts or as messages, with the turns before."""
    asked, context, answer = columns
    both = conversation.talks_in([record[asked], record[answer]])
    if any(isinstance(side, list) for side in both):
        sides = zip(both, ("user", "assistant"), strict=True)
        turns = [
            turn
            for side, role in sides
            for turn in (side if isinstance(side, list) else [{"role": role, "content": side}])
        ]
        return _of_turns(turns, there, ignored)
    faults = [found for column in (asked, answer) if (found := fault(record, column))]
    row = {"instruction": record[asked], "context": "", "response": record[answer]}
    for name, column in (("context", context), ("system", "system")):
        if column in there and str(there[column]).strip():  # an empty one is none
            faults += [found] if (found := fault(record, column)) else []
            row[name] = record[column]
    if isinstance(there.get("category"), str | int):
        row["category"] = str(there["category"])
    if any(f"<{kind}>" in str(row[key]) for kind in ("image",) for key in row):
        faults.append(f"the text has <image>: {VISION}")
    if faults:
        return "; ".join(faults)
    if "history" not in there and not any(key in there for key in _TOOLS):
        return row
    question = "\n\n".join(filter(None, (row["instruction"], row["context"].strip())))
    last = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": row["response"]},
    ]
    return _of_turns([*_earlier(there.get("history", [])), *last], there, ignored)


def _earlier(history: Any) -> list[Message]:
    """alpaca's ``history``: ``[[question, answer], …]``, the turns before the instruction."""
    history = conversation.in_cell(history)
    pairs = isinstance(history, list) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 for pair in history
    )
    if not pairs:
        raise UserError("history is not a list of [question, answer]")
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def _of_turns(turns: Any, there: Mapping[str, Any], ignored: dict[str, None]) -> Row | Faulty | str:
    """A conversation, with the system message and the tools that stand beside it."""
    messages = conversation.read(turns, ignored)
    if system := there.get("system"):
        if not isinstance(system, str):
            return f"system is not a string but {type(system).__name__}"
        own = messages[0]["content"] if messages[0]["role"] == "system" else ""
        if own and own != system:
            return "the column 'system' and the first message are two system messages that differ"
        if not own and system.strip():
            messages = [{"role": "system", "content": system}, *messages]
    if found := fault_of(messages):
        return found
    if any("<image>" in m["content"] for m in messages if isinstance(m["content"], str)):
        return f"the text has <image>: {VISION}"
    listed = [functions.tools_of(there[key]) for key in _TOOLS if key in there]
    if listed[1:] and listed[0] != listed[1]:
        return f"the columns {' and '.join(map(repr, _TOOLS))} differ; give one"
    tools = listed[0] if listed else []
    row: Row = {"messages": messages} | ({"tools": tools} if tools else {})
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    if not any(m["role"] == "assistant" and m.get("learn", True) for m in messages):
        why = (
            "every answer has the weight 0"
            if last >= 0
            else "the conversation ends with a user turn"
        )
        return f"{why}: there is no answer to learn"
    if messages[-1]["role"] == "user":
        why = (
            f"message {len(messages)}: the conversation ends with a user turn, a question without an "
            "answer; remove that message, which skip does"
        )
        return Faulty(why, row | {"messages": messages[: last + 1]})
    return row


def splits(
    source: str | Path = DOLLY,
    *,
    categories: Sequence[str] = (),
    no_context: bool = False,
    drop_duplicates: bool = False,
    valid_rows: int | None = None,
    test_rows: int | None = None,
    seed: int,
    on_bad_row: str = "error",
    max_rows: int | None = None,
) -> dict[str, Rows]:
    """``dolly``'s rows as train, valid and test, drawn by ``seed``.

    Without ``valid_rows`` and ``test_rows`` each is a tenth of the rows, 100 at most.
    ``drop_duplicates`` leaves out rows that stand there twice, and training rows that ask what a row
    of valid or test asks. Raises UserError as ``dolly`` does, and where no row is left to train on.
    """
    rows = dolly(
        source,
        categories=categories,
        no_context=no_context,
        on_bad_row=on_bad_row,
        seed=seed,
        max_rows=max_rows,
    )
    if drop_duplicates and (found := duplicates(rows)):
        rows = rows.without(found, f"without {len(found)} duplicates")
    of_test = held_out(rows, test_rows, 100)
    train, held = rows.split(held_out(rows, valid_rows, 100) + of_test, seed)
    valid, test = held.split(of_test, seed)
    if drop_duplicates and (found := overlap(train, held)):
        train = train.without(found, f"without {len(found)} that ask what a held-out row asks")
    return {"train": train, "valid": valid, "test": test}


def readable(
    splits: dict[str, Rows],
    template: Template | None,
    *,
    allow_stop_in_answer: bool = False,
) -> dict[str, Rows]:
    """The rows of each split that a template can show; all of them without one.

    Raises UserError for the others unless rows are to be skipped, and for answers inside which a stop
    string of the template stands, unless they are allowed: generation would end there.
    """
    if template is None:
        return splits
    found, stopped = {}, []
    for split, rows in splits.items():
        bad: dict[int, str] = {}
        for i, row in enumerate(rows):
            try:
                pairs = template.turns(row)
            except UserError as error:
                bad[i] = f"{rows.place(i)}: {error}"
                continue
            stopped += [
                (rows.place(i), stop) for p in pairs if (stop := template.stop_in(p["completion"]))
            ][:1]
        if bad and rows.on_bad_row == "error":
            raise UserError(listed(list(bad.values()), rows.origin))
        left = rows.without(bad, f"without {len(bad)} bad rows") if bad else rows
        found[split] = dataclasses.replace(left, skipped=rows.skipped + len(bad))
    if stopped and not allow_stop_in_answer:
        place, stop = stopped[0]
        raise UserError(
            f"{len(stopped)} rows hold the stop string {stop!r} of template {template.name!r} inside an "
            f"answer, the first is {place}: generation would end there. Choose another --template, or "
            "learn them all the same with --allow-stop-in-answer"
        )
    return found
