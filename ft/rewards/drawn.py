"""Answers that a model draws, with their rewards: the best of them, and pairs of a better and a worse one."""

import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ft.data.doubles import asked
from ft.data.preferences import answered
from ft.data.rows import Row, changed
from ft.errors import UserError
from ft.generate.answers import generate
from ft.generate.draft import Answer
from ft.generate.samplers import Sample
from ft.machine import agreed, from_main, is_main, launched
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import IGNORE, Example, encode_rows, prompt_ids

Pair = dict[str, Any]  # {"prompt_ids", "chosen_ids", "rejected_ids"}, as TRL names them
ANSWERS = ("chosen_ids", "rejected_ids", "completion_ids")
CHUNK = 16  # prompts a process whose answers are drawn, and whose rewards are looked at, together


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

    Rows come in their order; no new ones are begun after ``minutes``. Several processes share the drawing,
    the main one asks for the rewards, and all have the same. Raises ``UserError`` for a
    reward that is constant over a chunk of prompts, raises, or is no finite number.
    """
    from tqdm import tqdm

    found: list[Scored] = []
    end, size = time.perf_counter() + 60 * (minutes or 0), CHUNK * launched()["processes"]
    bar = tqdm(total=len(rows), desc="draw", unit="prompt", leave=False, disable=not is_main())
    for at in range(0, len(rows), size):
        if found and minutes is not None and agreed(time.perf_counter() > end):
            break
        chunk = rows[at : at + size]
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
            shared=True,
        )
        texts = [[template.trim(answer.text) for answer in group] for group in groups]
        flat = [text for group in texts for text in group]
        asked = functools.partial(reward.batch, flat, [row for row in chunk for _ in range(n)])
        values = from_main(asked)
        for i, row in enumerate(chunk):
            part = values[i * n : (i + 1) * n]
            found.append(Scored(row, prompts[i], groups[i], texts[i], part))
        bar.update(len(chunk))
    bar.close()
    return found


def best(scored: Sequence[Scored], cutoff: float | None = None) -> list[Row]:
    """Rows as they are with an answer to learn: the best of each row's, or with a cutoff all that reach it.

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
            rows += [answered(s.row, text) for text, value in whole.items() if value >= cutoff]
        elif whole:
            text = max(whole, key=whole.__getitem__)
            rows += [answered(s.row, text)] * (whole[text] > min(s.rewards))
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


def encode_pairs(rows: Sequence[Row], template: Template, tokenizer: Any) -> list[Pair]:
    """The ids of pairs of texts, exactly those that training on either answer has."""
    return encode_preferences(rows, template, tokenizer).pairs


@dataclass(frozen=True)
class Preferences:
    """Preferences as ids, those that fit, and how many did not."""

    pairs: list[Pair]  # or {"prompt_ids", "completion_ids", "label"}, as TRL names them
    rows: list[int]  # index of the row behind each
    lengths: list[int]  # tokens of every row's longest answer with its prompt
    dropped: int
    truncated: int = 0  # never: half an answer is another one
    skipped: int = 0  # bad ones, left out
    bad: tuple[int, ...] = ()  # index of each of these that is bad whatever its length

    @property
    def paired(self) -> bool:
        """Whether each has two answers."""
        return "chosen_ids" in self.pairs[0]

    @property
    def examples(self) -> list[Example]:
        """Each row's answers, the better one first, the answer supervised."""
        names = ("chosen", "rejected") if self.paired else ("completion",)
        return [self.example(i, name) for i in range(len(self.pairs)) for name in names]

    def example(self, index: int, answer: str) -> Example:
        """Prompt and one of the answers."""
        pair = self.pairs[index]
        return example(pair["prompt_ids"], pair[f"{answer}_ids"])

    @property
    def supervised(self) -> int:
        """Tokens of all answers."""
        return sum(len(p[name]) for p in self.pairs for name in p if name in ANSWERS)

    def summary(self, max_length: int) -> str:
        """One line for people."""
        text = f"{len(self.pairs):,} {'pairs' if self.paired else 'answers'}, longest {max(self.lengths):,} tokens"
        if not self.paired:
            text += f", {sum(map(bool, (p['label'] for p in self.pairs))):,} of them wanted"
        text += f"; {self.dropped:,} dropped (longer than {max_length} tokens)" * bool(self.dropped)
        return text + f"; {self.skipped:,} bad rows skipped" * bool(self.skipped)


def example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    """Prompt and answer as ids, the answer's supervised."""
    return {"input_ids": [*prompt, *answer], "labels": [*[IGNORE] * len(prompt), *answer]}


def encode_preferences(
    rows: Sequence[Row],
    template: Template,
    tokenizer: Any,
    *,
    max_length: int = sys.maxsize,
    policy: Literal["drop", "error"] = "drop",
) -> Preferences:
    """The ids of rows of ``ft.data.preferences``, as the template reads them: what training and asking have.

    A row of which an answer has more than ``max_length`` tokens with its prompt is dropped, or with
    ``policy`` an error. Bad rows, with that policy too long ones as well, are as ``bad_rows.Good`` has it.
    Raises ``UserError`` where nothing is left.
    """
    names = ("chosen", "rejected") if rows and "chosen" in rows[0] else ("completion",)
    ids = [_ids(rows, name, template, tokenizer) for name in names]
    good = [i for i in range(len(rows)) if all(i in found for found in ids)]
    pairs: list[Pair] = []
    kept, lengths = [], []
    for i in good:
        (prompt, _), *others = answers = [found[i] for found in ids]
        assert all(other == prompt for other, _ in others)
        lengths.append(len(prompt) + max(len(answer) for _, answer in answers))
        if lengths[-1] <= max_length:
            label = {} if len(names) > 1 else {"label": rows[i]["label"]}
            found = {f"{n}_ids": a for n, (_, a) in zip(names, answers, strict=True)}
            pairs.append({"prompt_ids": prompt} | found | label)
            kept.append(i)
    longer = len(good) - len(kept)
    skips = getattr(rows, "on_bad_row", "error") == "skip"
    if (policy == "error" and longer and not skips) or not kept:
        raise UserError(
            f"{longer} of {len(rows)} rows have an answer with more than max_length={max_length} tokens "
            f"(prompt and answer; the shortest row has {min(lengths, default=0)}); raise --max-length"
        )
    bad = tuple(sorted({*range(len(rows))} - {*good}))
    left, skipped = (0, longer) if policy == "error" else (longer, 0)
    return Preferences(pairs, kept, lengths, left, skipped=skipped + len(bad), bad=bad)


def _ids(
    rows: Sequence[Row], name: str, template: Template, tokenizer: Any
) -> dict[int, tuple[list[int], list[int]]]:
    """Prompt and answer of each good row as ids, by its number, the answer with the end that training gives it."""
    given = changed(rows, lambda row: answered(row, row[name]))
    encoded = encode_rows(given, template, tokenizer, max_length=sys.maxsize)
    found = {}
    for number, example in zip(encoded.rows, encoded.examples, strict=True):
        ids, labels = example["input_ids"], example["labels"]
        end = max(i for i, label in enumerate(labels) if label != IGNORE) + 1
        start = max((i for i, label in enumerate(labels[:end]) if label == IGNORE), default=-1) + 1
        found[number] = ids[:start], ids[start:end]
    return found


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
    """The share of the prompts of which an answer was kept."""
    return len(set(map(asked, kept))) / len({asked(s.row) for s in scored})
