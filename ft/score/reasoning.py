"""How often sampled chains of thought reach the right number, alone, by vote and at best: base beside tuned."""

import functools
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from ft.data.gsm8k import final_number
from ft.data.rows import Row
from ft.errors import UserError
from ft.generate.answers import write
from ft.generate.draft import Answer
from ft.generate.samplers import TopK
from ft.score import comparison, instructions, likelihood
from ft.score.comparison import Comparison, Score, per_cent
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import Example, prompt_ids

TOP_K = 40  # with a temperature, as Wang et al. 2022 draw their chains
TEMPERATURE = 0.7
LIKELIHOOD = "mean log-probability of a chain's tokens"
WIDTH = 26  # of a table's labels
LABELS = {"majority": "majority of {n}", "best": "best of {n}", "any": "any of {n}"}


@dataclass(frozen=True)
class Chain:
    """One chain of thought and how good it is held to be, higher is better."""

    text: str
    reward: float = 0.0

    @functools.cached_property
    def number(self) -> Fraction | None:
        """Its final number; none where it came to no ``ANSWER:``."""
        return final_number(self.text)


def tally(chains: Sequence[Chain]) -> list[tuple[Fraction, int]]:
    """Final numbers and their votes, the most first, of equal ones the first that was written."""
    return Counter(c.number for c in chains if c.number is not None).most_common()


def majority(chains: Sequence[Chain]) -> Fraction | None:
    """The number that most chains end in: self-consistency (Wang et al. 2022, arXiv 2203.11171)."""
    votes = tally(chains)
    return votes[0][0] if votes else None


def best(chains: Sequence[Chain]) -> Fraction | None:
    """The number of the chain with the highest reward, among those that have one."""
    having = [chain for chain in chains if chain.number is not None]
    return max(having, key=lambda chain: chain.reward).number if having else None


CHOICES: Mapping[str, Callable[[Sequence[Chain], Fraction], bool]] = {
    "majority": lambda chains, wanted: majority(chains) == wanted,
    "best": lambda chains, wanted: best(chains) == wanted,
    "any": lambda chains, wanted: any(chain.number == wanted for chain in chains),
}
"""Whether the choice among chains is right; ``any`` is the bound that no choice can pass."""


def sizes(most: int) -> list[int]:
    """1, 2, 4, … up to ``most``: the n that accuracy is given for."""
    return [2**i for i in range(most.bit_length())]


def accuracy(questions: Sequence[tuple[Sequence[Chain], Fraction]], choice: str, n: int) -> Score:
    """How often a choice among ``n`` chains is right, in per cent: ``{"score", "low", "high"}``.

    Each question comes with its chains, at least ``n``, and the right number. Of more chains, each
    disjoint group of n counts, so the score for small n uses all that was sampled. The interval is
    Wilson's at 95% with one trial for a question: right for one group, and too wide for several.
    """
    right = CHOICES[choice]
    shares = []
    for chains, wanted in questions:
        groups = [chains[i : i + n] for i in range(0, len(chains) - n + 1, n)]
        shares.append(sum(right(group, wanted) for group in groups) / len(groups))
    return per_cent(sum(shares) / len(shares), len(shares))


def shown(number: Fraction) -> str:
    """A number for people: ``72``, ``2.5``; of a model that loops over digits, the first ones."""
    decimal = Decimal(number.numerator) / Decimal(number.denominator)
    text = str(number) if number.denominator == 1 else f"{decimal:.6g}"
    return text if len(text) <= 20 else f"{text[:20]}…"


def sampler(temperature: float) -> TopK:
    """How chains are drawn. Raises ``UserError`` for a temperature at which all are the same."""
    if temperature == 0:
        raise UserError(
            "temperature 0 writes the same chain each time: there is nothing to vote on"
        )
    return TopK(TOP_K, temperature)


def chain(answer: Answer, row: Row, reward: Reward | None = None) -> Chain:
    """An answer as a chain, judged by ``reward``, or by the likelihood that its model gave it."""
    if reward:
        return Chain(answer.text.strip(), reward(answer.text, row))
    return Chain(answer.text.strip(), sum(answer.logprobs) / len(answer.logprobs))


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    examples: Sequence[Example],
    *,
    base: Any | None = None,
    n: int = 16,
    temperature: float = TEMPERATURE,
    reward: Reward | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
    split: str = "test",
) -> Comparison:
    """The base (by default the model with its adapter switched off) against the tuned model.

    ``n`` chains are drawn for each of ``rows``; ``examples`` are what the likelihood is taken of.
    The values are for each model loss, perplexity, accuracy of the next token, how many chains ended
    by themselves and ``answered`` with a number, their mean length in tokens, and for each choice of
    ``CHOICES`` and each n of ``sizes`` its ``accuracy`` as ``majority_4``; besides, samples and the
    seconds that it took. ``reward`` decides ``best``; without one it is the likelihood of a chain.
    """
    start, draw = time.perf_counter(), sampler(temperature)
    asked = [instructions.question_and_reference(row) for row in rows]
    wanted: list[Any] = [
        final_number(reference) for _, reference in asked
    ]  # none is None: rows are checked
    prompts = [prompt_ids(template, question, tokenizer) for question, _ in asked]
    options = {"sampler": draw, "n": n, "seed": seed, "max_new_tokens": max_new_tokens}

    def judged(each: Any) -> tuple[dict[str, Any], list[list[Chain]]]:
        seen = likelihood.of_examples(each, examples, progress=True)
        found = write(each, tokenizer, template, prompts, **options)
        chains = [
            [chain(answer, row, reward) for answer in group]
            for row, group in zip(rows, found, strict=True)
        ]
        values = instructions.summary(seen, [answer for group in found for answer in group])
        numbers = [c.number is not None for group in chains for c in group]
        values["answered"] = sum(numbers) / len(numbers)
        scored = list(zip(chains, wanted, strict=True))
        for choice in CHOICES:
            for size in sizes(n):
                values[f"{choice}_{size}"] = accuracy(scored, choice, size)
        return values, chains

    result: dict[str, Any] = {"n": len(rows), "n_likelihood": len(examples), "chains": n}
    result |= {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    result |= {"reward": reward.name if reward else LIKELIHOOD, "sizes": sizes(n)}
    result["samples"] = [q | {"reference": reference} for q, reference in asked]
    for name, (values, chains) in comparison.both(judged, model, base).items():
        result[name] = values
        for sample, group in zip(result["samples"], chains, strict=True):
            chosen = majority(group)
            sample[name] = next((c.text for c in group if c.number == chosen), "")
            sample[f"{name}_votes"] = votes(group)
    result["losses"] = comparison.token_losses(model, tokenizer, examples, base)
    result["seconds"] = time.perf_counter() - start
    return Comparison(result, _table(result, split), _samples(result))


def votes(chains: Sequence[Chain]) -> str:
    """``72 × 9, 36 × 2, no answer × 5``"""
    counted = [(shown(number), count) for number, count in tally(chains)]
    if silent := len(chains) - sum(count for _, count in counted):
        counted.append(("no answer", silent))
    return ", ".join(f"{number} × {count}" for number, count in counted)


def _table(result: dict[str, Any], split: str) -> str:
    head = f"{split}, {result['n']:,} questions"
    lines = ["\n" + comparison.row(head, ["base", "tuned"], WIDTH)]
    facts = [("answer_tokens", "tokens a chain", ".0f"), ("answered", "with a number", ".0%")]
    lines += instructions.facts(result, [*instructions.FACTS, *facts], WIDTH)
    for size in result["sizes"]:
        for choice, label in LABELS.items():
            if size > 1 or choice == "majority":  # of one chain all choices are the same
                label = f"right, {label.format(n=size) if size > 1 else '1 chain'}"
                both = (result[name][f"{choice}_{size}"] for name in ("base", "tuned"))
                lines.append(comparison.row(label, [comparison.cell(s) for s in both], WIDTH))
    lines.append(
        f"per cent of questions [95% Wilson]; {result['chains']} chains each at temperature "
        f"{result['temperature']:g}; best: by the {result['reward']}\n"
    )
    return "\n".join([*lines, _samples(result, limit=3)])


def _samples(result: dict[str, Any], limit: int | None = None) -> str:
    """Question, reference, both models' votes, and of each the first chain of the majority."""
    return "\n".join(
        f"question   {s['instruction']}\nreference  {s['reference']}\n"
        f"base       {s['base_votes']}\n{s['base']}\n"
        f"tuned      {s['tuned_votes']}\n{s['tuned']}\n"
        for s in result["samples"][:limit]
    )
