"""Answers that a model draws, with their rewards: the best of them, and pairs of a better and a worse one."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.data.rows import Row, Rows, checked, fault
from ft.data.tables import read_table
from ft.errors import UserError
from ft.generate.answers import generate
from ft.generate.draft import Answer
from ft.generate.samplers import Sample
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import prompt_ids

Pair = dict[str, list[int]]  # {"prompt_ids", "chosen_ids", "rejected_ids"}, as TRL names them
CHUNK = 16  # prompts whose answers are drawn, and whose rewards are looked at, together


@dataclass(frozen=True)
class Scored:
    """A row, and the answers that were drawn for it, with their rewards."""

    row: Row
    prompt: list[int]
    answers: list[Answer]
    texts: list[str]  # the answers as the template cuts them
    rewards: list[float]


def draw(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    reward: Reward,
    *,
    n: int,
    max_new_tokens: int,
    seed: int,
    minutes: float | None = None,
) -> list[Scored]:
    """``n`` answers to each row at temperature 1, from the model itself, and their rewards.

    Rows come in their order; no new ones are begun after ``minutes``. Raises ``UserError`` for a
    reward that is constant over a chunk of prompts, raises, or is no finite number.
    """
    from tqdm import tqdm

    found: list[Scored] = []
    begun = time.perf_counter()
    bar = tqdm(total=len(rows), desc="draw", unit="prompt", leave=False)
    for at in range(0, len(rows), CHUNK):
        if found and minutes is not None and time.perf_counter() - begun > 60 * minutes:
            break
        chunk = rows[at : at + CHUNK]
        prompts = [prompt_ids(template, row, tokenizer) for row in chunk]
        groups = generate(
            model,
            tokenizer,
            prompts,
            Sample(),
            max_new_tokens=max_new_tokens,
            template=template,
            seed=seed,
            n=n,
        )
        texts = [[template.trim(answer.text) for answer in group] for group in groups]
        values = reward.batch(
            [text for group in texts for text in group], [row for row in chunk for _ in range(n)]
        )
        for i, row in enumerate(chunk):
            part = values[i * n : (i + 1) * n]
            found.append(Scored(row, prompts[i], groups[i], texts[i], part))
        bar.update(len(chunk))
    bar.close()
    return found


def best(scored: Sequence[Scored], field: str, cutoff: float | None = None) -> list[Row]:
    """Rows whose ``field`` is an answer: the best of each row's, or with a cutoff all that reach it.

    Left out are answers that were cut off or are empty, and, of a row without a cutoff, a best that
    is no better than the row's others. Raises ``UserError`` where nothing is left.
    """
    rows: list[Row] = []
    for s in scored:
        whole = {
            text: value
            for text, value, answer in zip(s.texts, s.rewards, s.answers, strict=True)
            if text and answer.reason != "length"
        }
        if cutoff is not None:
            rows += [s.row | {field: text} for text, value in whole.items() if value >= cutoff]
        elif whole:
            text = max(whole, key=whole.__getitem__)
            rows += [s.row | {field: text}] * (whole[text] > min(s.rewards))
    if not rows:
        seen = max(value for s in scored for value in s.rewards)
        why = "is better than its row's others" if cutoff is None else f"reaches {cutoff:g}"
        raise UserError(
            f"of {answers_of(scored)} no whole one {why}: nothing is kept. The best reward seen is "
            f"{seen:.4g}" + ("" if cutoff is None else "; lower --cutoff")
        )
    return rows


def pairs_of(scored: Sequence[Scored], margin: float = 0.0) -> tuple[list[Pair], list[Row]]:
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


def read_pairs(path: str | Path, asked: str = "source") -> Rows:
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


def encode_pairs(rows: Sequence[Row], template: Template, tokenizer: Any) -> list[Pair]:
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


def answers_of(scored: Sequence[Scored]) -> str:
    """How many answers there are, and how many of them were cut off."""
    answers = [answer for s in scored for answer in s.answers]
    cut = sum(answer.reason == "length" for answer in answers)
    return f"{len(answers)} answers ({cut} cut off before their end)"


def mean(scored: Sequence[Scored], *, best: bool = False) -> float:
    """The mean reward of all answers, or of the best one of each row."""
    values = [v for s in scored for v in ([max(s.rewards)] if best else s.rewards)]
    return sum(values) / len(values)


def share(scored: Sequence[Scored], kept: Sequence[Row]) -> float:
    """The share of the sources of which an answer was kept."""
    return len({row["source"] for row in kept}) / len({s.row["source"] for s in scored})
