"""Pairs of a better and a worse answer: of answers that were drawn and scored, or read from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ft.data.rows import Row, Rows, checked, fault
from ft.data.tables import read_table
from ft.errors import UserError
from ft.rewards.preference import Scored, answers_of
from ft.text.template import Template
from ft.text.tokens import prompt_ids

Pair = dict[str, list[int]]  # {"prompt_ids", "chosen_ids", "rejected_ids"}, as TRL names them


def of(scored: Sequence[Scored], margin: float = 0.0) -> tuple[list[Pair], list[Row]]:
    """Of each row the best whole answer and the worst, if their rewards are more than ``margin`` apart.

    As ids, exactly those that were drawn (a worst one that never ended has no end token), and as
    rows of texts to keep. Raises ``UserError`` where there is no such pair.
    """
    ids: list[Pair] = []
    rows: list[Row] = []
    for s in scored:
        whole = [i for i, a in enumerate(s.answers) if s.texts[i] and a.reason != "length"]
        if not whole:
            continue
        high = max(whole, key=s.rewards.__getitem__)
        low = min(range(len(s.answers)), key=s.rewards.__getitem__)
        if s.rewards[high] - s.rewards[low] <= margin or s.texts[high] == s.texts[low]:
            continue
        ids.append(
            {
                "prompt_ids": s.prompt,
                "chosen_ids": list(s.answers[high].ids),
                "rejected_ids": list(s.answers[low].ids),
            }
        )
        rows.append(
            s.row
            | {"chosen": s.texts[high], "rejected": s.texts[low]}
            | {"chosen_reward": s.rewards[high], "rejected_reward": s.rewards[low]}
        )
    if not ids:
        gap = max(max(s.rewards) - min(s.rewards) for s in scored)
        raise UserError(
            f"of {answers_of(scored)} no whole one has a reward more than {margin:g} above another of "
            f"its row; the largest gap of a row is {gap:.4g}"
        )
    return ids, rows


def read(path: str | Path, asked: str = "source") -> Rows:
    """Rows of ``asked``, ``chosen`` and ``rejected`` of a table as ``ft.data.tables.pairs`` takes it.

    ``asked`` is the field of the prompt: ``source``, or ``instruction``. Raises ``UserError`` that
    names each row which cannot be used, such as one whose answers are equal.
    """
    records, origin, sha256, where = read_table(path)
    columns = (asked, "chosen", "rejected")

    def row_of(record: Row) -> Row | str:
        if missing := [column for column in columns if column not in record]:
            return f"no {' and no '.join(missing)}; the columns are {', '.join(columns)}"
        faults = [found for column in columns if (found := fault(record, column))]
        if bad := [found for found in faults if found != "rejected is empty"]:  # that may well be
            return "; ".join(bad)
        if record["chosen"].strip() == record["rejected"].strip():
            return f"chosen equals rejected, {record['chosen'].strip()!r}: nothing is preferred"
        return {column: record[column] for column in columns}

    return checked(records, origin, sha256, where, read=row_of)


def encode(rows: Sequence[Row], template: Template, tokenizer: Any) -> list[Pair]:
    """The ids of pairs of texts, both answers with the end token that training gives them."""
    end = template.end or tokenizer.eos_token
    stop = tokenizer.convert_tokens_to_ids(end)

    def ids(text: str) -> list[int]:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], stop]

    return [
        {
            "prompt_ids": prompt_ids(template, row, tokenizer),
            "chosen_ids": ids(row["chosen"]),
            "rejected_ids": ids(row["rejected"]),
        }
        for row in rows
    ]
