"""Rows that stand twice, and rows of one split that ask what a row of another asks."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

Row: TypeAlias = Mapping[str, Any]
Rows: TypeAlias = Sequence[Row]


def doubles(splits: Mapping[str, Rows]) -> tuple[int, int]:
    """How many rows of the first split stand there twice, and how many ask what one of another asks."""
    train, *others = splits.values()
    return len(duplicates(train)), len(overlap(train, *others))


def overlap(train: Rows, *others: Rows) -> list[int]:
    """Indices of ``train`` rows that ask, but for case and spaces, what a row of another split asks."""
    known = {_plain(asked(row)) for rows in others for row in rows}
    return [i for i, row in enumerate(train) if _plain(asked(row)) in known]


def duplicates(rows: Rows) -> list[int]:
    """Indices of rows whose texts, but for case and spaces, all stand in an earlier row."""
    seen: set[bytes] = set()  # hashes, as the texts may be many
    found = []
    for i, row in enumerate(rows):
        turns = [m["content"] for m in row.get("messages", ())]
        fields = [str(row[name]) for name in sorted(row.keys() - {"category", "messages", "where"})]
        text = "\0".join(map(_plain, turns + fields))
        key = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
        found += [i] * (key in seen)
        seen.add(key)
    return found


def asked(row: Row) -> str:
    """What a row asks: its text, its source, its instruction and context, its prompt with the paths of its images,
    or the first user's message."""
    if "images" in row:
        return " ".join([*row["images"], row["prompt"]])
    if "text" in row:
        return row["text"]
    if "messages" in row:
        return next(m["content"] for m in row["messages"] if m["role"] == "user")
    return row["source"] if "source" in row else f"{row['instruction']}\n{row.get('context', '')}"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
