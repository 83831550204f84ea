"""Held-out preferences: how often the implicit reward of a model that learns from others is right, and its loss."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ft.data.rows import Row
from ft.generate.answers import gathered, own_part
from ft.models.load import Base
from ft.rewards import judges, policy
from ft.rewards.drawn import Preferences, example
from ft.score import comparison, likelihood
from ft.score.comparison import Comparison
from ft.text.template import Template
from ft.text.tokens import Example


@dataclass(frozen=True)
class Preferred:
    """What one model makes of held-out preferences."""

    loss: float  # of DPO or KTO
    accuracy: float  # of the implicit reward; a tie counts half
    likelier: float | None  # of pairs: chosen answers that are the likelier ones by the token
    chosen_loss: float  # nats a token of chosen or wanted answers
    margin: float  # of the implicit reward, mean
    texts: list[str] = field(default_factory=list)  # answers to some of the prompts
    answer: str = ""


class Held:
    """Held-out preferences: how often, and by how much, the implicit reward (Rafailov et al. 2023) is right.

    It is ``beta`` times the log of an answer's probability over that by the start. Of single answers, as
    KTO (Ethayarajh et al. 2024) has it, it is right above the KL to the start where wanted, and below it
    where not; the KL is estimated on answers to other prompts, as there.
    """

    watched = True

    def __init__(
        self,
        base: Base,
        template: Template,
        rows: Sequence[Row],
        held: Preferences,
        *,
        beta: float,
        answer_rows: int,
        ask: Row,
        max_new_tokens: int,
    ) -> None:
        self.base, self.template, self.held, self.beta = base, template, held, beta
        self.rows, self.ask, self.max_new_tokens = list(rows)[:answer_rows], ask, max_new_tokens
        with policy.as_it_began(base.model):
            self.start = self._logprobs()

    def __call__(self) -> Preferred:
        text = judges.written(self.base, self.template, [*self.rows, self.ask], self.max_new_tokens)
        return replace(self._found(), texts=text.texts, answer=text.answer)

    def loss(self) -> float:
        return self._found().loss

    def _found(self) -> Preferred:
        now = self._logprobs()
        rewards = {
            name: [
                self.beta * (a[0] - b[0]) for a, b in zip(now[name], self.start[name], strict=True)
            ]
            for name in now
        }
        if self.held.paired:
            gaps = [a - b for a, b in zip(rewards["chosen"], rewards["rejected"], strict=True)]
            likelier = [
                c[0] / c[1] - r[0] / r[1]
                for c, r in zip(now["chosen"], now["rejected"], strict=True)
            ]
            losses = [math.log1p(math.exp(-abs(gap))) - min(gap, 0.0) for gap in gaps]
            better, share = now["chosen"], _right(likelier)
        else:
            zero = max(0.0, comparison.mean(rewards["mismatched"]))
            signs = [1 if pair["label"] else -1 for pair in self.held.pairs]
            gaps = [s * (r - zero) for s, r in zip(signs, rewards["completion"], strict=True)]
            losses = [1 / (1 + math.exp(min(gap, 700.0))) for gap in gaps]
            better = [v for s, v in zip(signs, now["completion"], strict=True) if s > 0]
            share = None
        tokens = sum(n for _, n in better) or 1
        return Preferred(
            comparison.mean(losses),
            _right(gaps),
            share,
            -sum(v for v, _ in better) / tokens,
            comparison.mean(gaps),
        )

    def line(self, found: Preferred) -> str:
        likelier = (
            "" if found.likelier is None else f", chosen the likelier of {found.likelier:.1%}"
        )
        return f"preference loss {found.loss:.4f} on {len(self.held.pairs)} held-out rows{likelier}"

    def compare(self, before: Preferred, after: Preferred) -> Comparison:
        n = len(self.held.pairs)
        result: dict[str, Any] = {"n": n, "max_new_tokens": self.max_new_tokens}
        result["ask"] = self.template.prompt_for(self.ask)
        for name, one in (("base", before), ("tuned", after)):
            result[name] = {"preference": comparison.per_cent(one.accuracy, n)}
            if one.likelier is not None:
                result[name]["likelier"] = comparison.per_cent(one.likelier, n)
            result[name] |= {"preference_loss": one.loss, "margin": one.margin}
            result[name] |= {"loss": one.chosen_loss, "answer": one.answer}
        result["signatures"] = {
            "preference": f"beta {self.beta:g} times the log-probability over the start's; ties count half; Wilson"
        }
        result["samples"] = judges.samples(self.rows, before.texts, after.texts)
        labels = {"preference": "implicit reward", "likelier": "chosen likelier"}
        lines = [
            comparison.row(label, [comparison.cell(result[m][key], "%") for m in ("base", "tuned")])
            for key, label in labels.items()
            if key in result["base"]
        ]
        facts = [("preference_loss", "preference loss", ".4f"), ("margin", "margin", ".3f")]
        facts += [
            ("loss", "loss of the chosen" if self.held.paired else "loss of the wanted", ".3f")
        ]
        return judges.comparison_of(result, [*lines, *judges.facts(result, facts)])

    def _logprobs(self) -> dict[str, list[tuple[float, int]]]:
        """Of each answer its log-probability and tokens; of single ones also to another's prompt."""
        names = ("chosen", "rejected") if self.held.paired else ("completion",)
        count = len(self.held.pairs)
        examples = {name: [self.held.example(i, name) for i in range(count)] for name in names}
        if not self.held.paired:
            prompts = [pair["prompt_ids"] for pair in self.held.pairs]
            answers = [self.held.pairs[i - 1]["completion_ids"] for i in range(count)]
            examples["mismatched"] = [*map(example, prompts, answers)]
        with likelihood.resting(self.base.model):
            return {name: _sums(self.base.model, each) for name, each in examples.items()}


def _sums(model: Any, examples: Sequence[Example]) -> list[tuple[float, int]]:
    """Of each answer its log-probability and tokens. Several processes share the work, and all have the same."""
    import torch

    numbers = range(len(examples))[own_part()]
    values = likelihood.logprobs(model, [examples[i] for i in numbers])
    sums = torch.stack([v.sum() for v in values]).tolist() if values else []
    found = zip(numbers, sums, values, strict=True)
    return gathered([(i, (total, len(v))) for i, total, v in found])


def _right(gaps: Sequence[float]) -> float:
    """The share of gaps above 0, ties counting half."""
    return sum(1.0 if gap > 0 else 0.5 * (gap == 0) for gap in gaps) / len(gaps)
