"""What a run that learns from rewards or preferences is judged by at its start and its end: held-out rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ft.data.preferences import asking
from ft.data.rows import Row
from ft.generate.answers import write
from ft.models.load import Base
from ft.score import comparison, likelihood, translation
from ft.score.comparison import Comparison
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import Example, prompt_ids

ASK = {"translation": {"source": "Hello, my name is Morgane."}}
ASKED = {"instruction": "How can I make brownies?"}  # of what does not translate
START = "\n(base: the model as this run began)"


class Judge(Protocol):
    """Called it judges the model as it is now; two of what it finds can be compared."""

    watched: bool  # whether its loss is what learns, and worth a look on the way

    def __call__(self) -> Any: ...
    def line(self, found: Any) -> str: ...
    def compare(self, before: Any, after: Any) -> Comparison: ...
    def loss(self) -> float: ...


class Translations:
    """Translations of rows that have a target, by BLEU and chrF, and by another reward where that is learnt from."""

    watched = False

    def __init__(
        self,
        base: Base,
        template: Template,
        rows: Sequence[Row],
        examples: Sequence[Example],
        reward: Reward,
        pair: str,
    ) -> None:
        self.base, self.template, self.rows, self.examples = base, template, rows, examples
        self.pair = pair  # whose target says what BLEU takes for words
        self.reward = None if reward.name == "chrf" else reward

    def __call__(self) -> translation.Judged:
        return translation.judge(
            self.base.model,
            self.base.tokenizer,
            self.template,
            self.rows,
            self.examples,
            ask=ASK["translation"],
        )

    def line(self, found: translation.Judged) -> str:
        chrf = translation.corpus_chrf(found.translations, [row["target"] for row in self.rows])
        return f"chrF {chrf:.1f} on {len(self.rows)} lines of valid"

    def compare(self, before: translation.Judged, after: translation.Judged) -> Comparison:
        ask = ASK["translation"]
        options: Any = {"ask": ask, "split": "valid", "pair": self.pair}
        made = translation.compare(before, after, self.template, self.rows, **options)
        if self.reward is None:
            return replace(made, table=made.table + START)
        values = rewarded(self.reward, self.rows, before.translations, after.translations)
        for name in ("base", "tuned"):
            made.values[name] |= values[name]
        made.values["p_value"].setdefault("tuned", {}).update(values["p_value"]["tuned"])
        made.values["signatures"] |= values["signatures"]
        return replace(made, table="\n".join([made.table, *shown(values), START]))

    def loss(self) -> float:
        return likelihood.loss(self.base.model, self.examples)


@dataclass(frozen=True)
class Written:
    """Answers of one model to held-out prompts."""

    texts: list[str]
    stopped: float  # share that ended by themselves
    tokens: float  # of an answer, mean
    loss: float | None  # of the references, where rows have some
    answer: str  # to a row that every run is asked


class Answers:
    """Likeliest answers to held-out prompts, by the reward that is learnt from; the loss of their references."""

    watched = False

    def __init__(
        self,
        base: Base,
        template: Template,
        rows: Sequence[Row],
        examples: Sequence[Example],
        reward: Reward,
        *,
        ask: Row,
        max_new_tokens: int,
    ) -> None:
        self.base, self.template, self.rows, self.reward = base, template, rows, reward
        self.examples, self.ask, self.max_new_tokens = examples, ask, max_new_tokens

    def __call__(self) -> Written:
        found = written(self.base, self.template, [*self.rows, self.ask], self.max_new_tokens)
        loss = likelihood.loss(self.base.model, self.examples) if self.examples else None
        return replace(found, loss=loss)

    def line(self, found: Written) -> str:
        values = self.reward.values(found.texts, self.rows)
        return f"reward {self.reward.name} {comparison.mean(values):.4g} of {len(self.rows)} answers of valid"

    def compare(self, before: Written, after: Written) -> Comparison:
        result: dict[str, Any] = {"n": len(self.rows), "max_new_tokens": self.max_new_tokens}
        result |= {"ask": self.template.prompt_for(self.ask)}
        result |= rewarded(self.reward, self.rows, before.texts, after.texts)
        figures = [
            ("stopped", "stopped by itself", ".0%"),
            ("answer_tokens", "tokens an answer", ".0f"),
        ]
        figures += [("loss", "loss", ".3f")] if before.loss is not None else []
        for name, one in (("base", before), ("tuned", after)):
            result[name] |= {
                "stopped": one.stopped,
                "answer_tokens": one.tokens,
                "answer": one.answer,
            }
            result[name] |= {"loss": one.loss} if one.loss is not None else {}
        result["samples"] = samples(self.rows, before.texts, after.texts)
        return comparison_of(result, [*facts(result, figures), *shown(result)])

    def loss(self) -> float:
        return likelihood.loss(self.base.model, self.examples) if self.examples else math.nan


def judge_of(
    base: Base,
    template: Template,
    rows: Sequence[Row],
    examples: Sequence[Example],
    reward: Reward,
    *,
    task: str,
    max_new_tokens: int,
    pair: str = "en-fr",
) -> Judge:
    """The judge for rows of a run's task; ``examples`` are those whose loss is watched."""
    if task == "translation" and all("target" in row for row in rows):
        return Translations(base, template, rows, examples, reward, pair)
    known = all(row.keys() & {"target", "response"} for row in rows)
    ask = ASK.get(task, ASKED)
    options: dict[str, Any] = {"ask": ask, "max_new_tokens": max_new_tokens}
    return Answers(base, template, rows, examples if known else [], reward, **options)


def written(base: Base, template: Template, rows: Sequence[Row], max_new_tokens: int) -> Written:
    """The likeliest answer to each of ``rows``, the last of which is what every run is asked."""
    prompts = [prompt_ids(template, asking(row), base.tokenizer) for row in rows]
    groups = write(base.model, base.tokenizer, template, prompts, max_new_tokens=max_new_tokens)
    answers = [answer for (answer,) in groups]
    *texts, answer = [template.trim(a.text) for a in answers]
    count = max(1, len(texts))
    stopped = sum(a.reason != "length" for a in answers[:-1]) / count
    return Written(texts, stopped, sum(len(a.ids) for a in answers[:-1]) / count, None, answer)


def rewarded(
    reward: Reward, rows: Sequence[Row], before: Sequence[str], after: Sequence[str]
) -> dict[str, Any]:
    """The mean reward of both models' answers with its bootstrap interval, and the paired test's p."""
    drawn = comparison.resamples(len(rows))
    both = {"base": reward.values(before, rows), "tuned": reward.values(after, rows)}
    result: dict[str, Any] = {k: {"reward": comparison.interval(v, drawn)} for k, v in both.items()}
    result["p_value"] = {
        "tuned": {"reward": comparison.p_value(both["base"], both["tuned"], drawn)}
    }
    return result | {"signatures": {"reward": f"mean of {reward.name}"}}


def shown(result: dict[str, Any]) -> list[str]:
    """The rewards of ``rewarded`` as a line of a table; they may be small."""
    cells = [
        "{score:.4g} [{low:.4g}, {high:.4g}]".format(**result[m]["reward"])
        for m in ("base", "tuned")
    ]
    p = result["p_value"]["tuned"]["reward"]
    return [
        f"{comparison.row('reward', cells)}   {p:.4f}",
        f"reward: {result['signatures']['reward']}",
    ]


def samples(
    rows: Sequence[Row], before: Sequence[str], after: Sequence[str]
) -> list[dict[str, str]]:
    """What is asked, the reference or the better answer, and both models' answers."""
    found = []
    for row, base, tuned in zip(rows, before, after, strict=True):
        known = next((row[k] for k in ("chosen", "response", "target") if k in row), None)
        prompt = (
            row["messages"][-1]["content"]
            if "messages" in row
            else row.get("source", row.get("instruction"))
        )
        reference = {"reference": known} if known else {}
        found.append({"prompt": prompt} | reference | {"base": base, "tuned": tuned})
    return found


def facts(result: dict[str, Any], facts: Sequence[tuple[str, str, str]]) -> list[str]:
    """Lines of plain figures: key, label and format of each."""
    return [
        comparison.row(label, [f"{result[name][key]:{form}}" for name in ("base", "tuned")])
        for key, label, form in facts
    ]


def comparison_of(result: dict[str, Any], lines: Sequence[str]) -> Comparison:
    """A result with the lines that tell it, the question of every run and the samples."""
    listed = comparison.listed(result["samples"])
    head = f"\nvalid, {result['n']:,} rows     {'base':>20}   {'tuned':>20}   p"
    first = comparison.listed(result["samples"][:10])
    table = "\n".join([head, *lines, comparison.asked(result), first]) + START
    return Comparison(result, table, listed)
