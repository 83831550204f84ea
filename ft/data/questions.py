"""What a row of preferences or prompts asks: a text with its context, or a conversation."""

from typing import Any

from ft.data.rows import Row, fault
from ft.errors import UserError
from ft.text import messages as conversation

_TEXTS = ("prompt", "instruction", "question", "source")  # columns of a prompt that is a text
PROMPTS = (*_TEXTS, "messages")
WITH = {"system": "system", "context": "context", "input": "context"}  # what goes with a text
HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"  # turns of Anthropic/hh-rlhf


def asks_otherwise(record: Row) -> bool:
    """Whether a row says without ``source`` what is asked: in another column, or in whole conversations."""
    return any(name in record for name in PROMPTS if name != "source") or any(
        value.startswith(HUMAN) if isinstance(value, str) else isinstance(value, list) and value[1:]
        for value in map(record.get, ("chosen", "rejected", "completion"))
    )


def asked_by(record: Row) -> Row | str:
    """What is asked, by the columns of a prompt; ``answer`` is that of a conversation which has one."""
    given = [name for name in PROMPTS if name in record]
    if len(given) != 1:
        found = " and ".join(map(repr, given)) or "none"
        return f"one column of a prompt is needed ({', '.join(PROMPTS)}), and here is {found}"
    value = record[given[0]]
    if isinstance(value, list):
        last = value[-1] if isinstance(value[-1], dict) else {}
        role = str(last.get("role", last.get("from"))).strip().lower()
        ends = conversation.ROLES.get(role) == "assistant"
        whole = conversation_of(value if ends else [*value, {"role": "assistant", "content": "."}])
        if isinstance(whole, str):
            return f"{given[0]}: {whole}"
        *before, last = whole["messages"]
        question = with_columns(record, before)
        if isinstance(question, str):
            return question
        return question | ({"answer": last["content"]} if ends else {})
    if given[0] == "messages":
        return "messages is not a list of {role, content}"
    columns = [given[0], *_there(record)]
    if {"context", "input"} <= {*columns}:
        return "both 'context' and 'input'; give one of them"
    if faults := [found for column in columns if (found := fault(record, column))]:
        return "; ".join(faults)
    row = {"source": value} if given[0] == "source" else {"instruction": value, "context": ""}
    return row | {WITH[column]: record[column] for column in columns[1:]}


def conversation_of(messages: Any) -> Row | str:
    """A conversation that ends with an answer, or what is wrong with it."""
    try:
        turns = conversation.read(messages, {})
    except UserError as error:
        return str(error)
    if found := conversation.fault_of(turns):
        return found
    for number, turn in enumerate(turns, 1):
        if more := sorted(turn.keys() - {"role", "content"}):
            what = "a weight of 0" if more[0] == "learn" else more[0]
            return f"message {number} has {what}, which has no place in preferences; remove it"
    return {"messages": turns}


def _there(record: Row) -> list[str]:
    """The columns of a row that go with a prompt and are not empty."""
    return [column for column in WITH if str(record.get(column) or "").strip()]


def with_columns(record: Row, messages: list[dict[str, str]]) -> Row | str:
    """A conversation with the system message that stands beside it, or what beside it has no place."""
    for column in _there(record):
        if column != "system":
            return f"the column {column!r} has no place beside a conversation; remove it"
        own = messages[0]["content"].strip() if messages[0]["role"] == "system" else ""
        if own and own != str(record["system"]).strip():
            return "the system column is not the conversations' system message"
        if not own:
            messages = [{"role": "system", "content": record["system"]}, *messages]
    return {"messages": messages}


def contradiction(record: Row, given: list[str], before: list[dict[str, str]]) -> str:
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
    return ""


def turns_of(text: str) -> list[dict[str, str]] | None:
    """The messages of a text in hh-rlhf's format; none where it is not of that."""
    if not text.startswith(HUMAN) or ASSISTANT not in text:
        return None
    turns, role = [], "user"
    for part in text.replace(ASSISTANT, "\0A").replace(HUMAN, "\0H").split("\0")[1:]:
        role = "user" if part[0] == "H" else "assistant"
        turns.append({"role": role, "content": part[1:].strip()})
    return turns
