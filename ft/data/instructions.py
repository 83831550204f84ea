"""Instructions and conversations: Dolly, and users' own data as messages, prompt/completion, alpaca or sharegpt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft.data import mixture
from ft.data.rows import Row, Rows, checked, duplicates, fault, overlap
from ft.data.tables import read_table
from ft.errors import UserError, one_of
from ft.text.template import fault_of

DOLLY = "databricks/databricks-dolly-15k"
_ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "assistant", "model", "bot"), "assistant"
)
_FORMATS = (
    "messages [{role, content}]; conversations [{from, value}]; prompt and completion; "
    "instruction, input and output; instruction, context and response"
)


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
    if no_context:
        rows = rows.only(lambda row: not row.get("context", "").strip(), "without context")
    return rows


def instructions(source: str | Path, *, split: str = "train", on_bad_row: str = "error") -> Rows:
    """Rows of instructions or conversations from a file (jsonl, json, csv, tsv, parquet) or the Hub.

    The columns of the first row tell the format: ``messages``; ``conversations`` (sharegpt);
    ``prompt`` and ``completion``, as texts or as messages (TRL); ``instruction``, ``input`` and
    ``output`` (alpaca); ``instruction``, ``context`` and ``response`` (Dolly). Rows become
    ``{"messages"}`` or ``{"instruction", "context", "response"}``, with ``system`` and ``category``
    where there are. Raises UserError for another format, and for bad rows (an empty answer, turns
    out of order) unless ``on_bad_row="skip"``.
    """
    place = Path(source).expanduser()
    if place.is_dir():
        found = sorted(place.glob("*.jsonl"))
        if len(found) != 1:
            raise UserError(f"{source} holds {len(found)} .jsonl files; name the file itself")
        place = found[0]
    records, origin, sha256, where = read_table(place if place.exists() else source, split=split)

    def read(record: dict[str, Any]) -> Row | str:
        if "messages" in record:
            return _conversation(record["messages"])
        if "conversations" in record:
            return _conversation(_from_sharegpt(record["conversations"]))
        if {"prompt", "completion"} <= record.keys():
            if isinstance(record["prompt"], list) and isinstance(record["completion"], list):
                return _conversation(record["prompt"] + record["completion"])
            return _instruction(record, "prompt", "", "completion")
        if {"instruction", "output"} <= record.keys():
            return _instruction(record, "instruction", "input", "output")
        if {"instruction", "response"} <= record.keys():
            return _instruction(record, "instruction", "context", "response")
        advice = "; recipes/text_lora.py learns from plain text" if "text" in record else ""
        there = ", ".join(map(repr, record))
        return f"the columns {there} are of no known format ({_FORMATS}){advice}"

    return checked(records, origin, sha256, where, on_bad_row=on_bad_row, read=read)


def _instruction(
    record: dict[str, Any], instruction: str, context: str, response: str
) -> Row | str:
    faults = [found for column in (instruction, response) if (found := fault(record, column))]
    row = {"instruction": record[instruction], "context": "", "response": record[response]}
    for name, column in (("context", context), ("system", "system"), ("category", "category")):
        if str(record.get(column) or "").strip():  # an empty one is none
            faults += [found] if (found := fault(record, column)) else []
            row[name] = record[column]
    return "; ".join(faults) or row


def _conversation(messages: Any) -> Row | str:
    if found := fault_of(messages):
        return found
    if messages[-1]["role"] == "user":
        return "the conversation ends with a user turn: there is no answer to learn"
    return {"messages": [{key: m[key] for key in ("role", "content")} for m in messages]}


def _from_sharegpt(turns: Any) -> Any:
    """``[{from, value}]`` as ``[{role, content}]``; what cannot be read is left to ``fault_of``."""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return turns
    return [
        {"role": _ROLES.get(str(turn["from"]), turn["from"]), "content": turn["value"]}
        if {"from", "value"} <= turn.keys()
        else turn
        for turn in turns
    ]


def splits(
    source: str | Path = DOLLY,
    *,
    categories: Sequence[str] = (),
    no_context: bool = False,
    drop_duplicates: bool = False,
    valid_rows: int,
    test_rows: int,
    seed: int,
    on_bad_row: str = "error",
    max_rows: int | None = None,
) -> dict[str, Rows]:
    """``dolly``'s rows as train, valid and test, drawn by ``seed``.

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
    train, held = rows.split(valid_rows + test_rows, seed)
    valid, test = held.split(test_rows, seed)
    if drop_duplicates and (found := overlap(train, held)):
        train = train.without(found, f"without {len(found)} that ask what a held-out row asks")
    return {"train": train, "valid": valid, "test": test}
