"""How often sampled chains of thought reach the right number, alone, by vote and at best: base beside tuned."""

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from ft.data.gsm8k import final_number
from ft.data.rows import Row
from ft.errors import UserError
from ft.generate.answers import write
from ft.generate.draft import Answer
from ft.generate.samplers import TopK
from ft.score import instructions
from ft.score.evaluate import likelihood
from ft.score.rewards import Reward
from ft.score.voting import CHOICES, Chain, accuracy, majority, shown, sizes, tally
from ft.text.template import Template
from ft.text.tokens import Example, prompt_ids

TOP_K = 40  # with a temperature, as Wang et al. 2022 draw their chains
TEMPERATURE = 0.7
LIKELIHOOD = "mean log-probability of a chain's tokens"
LABELS = {"majority": "majority of {n}", "best": "best of {n}", "any": "any of {n}"}


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
    packing: bool,
    base: Any | None = None,
    n: int = 16,
    temperature: float = TEMPERATURE,
    reward: Reward | None = None,
    seed: int = 0,
    max_new_tokens: int = 256,
) -> dict[str, Any]:
    """The base (by default the model with its adapter switched off) against the tuned model.

    ``n`` chains are drawn for each of ``rows``; ``examples`` are what the likelihood is taken of.
    Returns for each model loss, perplexity, accuracy of the next token, how many chains ended by
    themselves and ``answered`` with a number, their mean length in tokens, and for each choice of
    ``voting.CHOICES`` and each n of ``voting.sizes`` its ``accuracy`` as ``majority_4``; besides,
    samples and the seconds that it took. ``reward`` decides ``best``; without one it is the
    likelihood of a chain.
    """
    pad, start, draw = tokenizer.pad_token_id, time.perf_counter(), sampler(temperature)
    asked = [instructions.question_and_reference(row) for row in rows]
    wanted: list[Any] = [
        final_number(reference) for _, reference in asked
    ]  # none is None: rows are checked
    prompts = [prompt_ids(template, question, tokenizer) for question, _ in asked]
    result: dict[str, Any] = {"n": len(rows), "n_likelihood": len(examples), "chains": n}
    result |= {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    result |= {"reward": reward.name if reward else LIKELIHOOD, "sizes": sizes(n)}
    result["samples"] = [q | {"reference": reference} for q, reference in asked]
    for name in ("base", "tuned"):
        judged = base if base is not None and name == "base" else model
        plain = name == "base" and base is None
        with model.disable_adapter() if plain else contextlib.nullcontext():
            seen = likelihood(judged, examples, packing=packing, pad=pad, progress=True)
            found = write(
                judged,
                tokenizer,
                template,
                prompts,
                sampler=draw,
                n=n,
                seed=seed,
                max_new_tokens=max_new_tokens,
            )
        chains = [
            [chain(answer, row, reward) for answer in group]
            for row, group in zip(rows, found, strict=True)
        ]
        scored = list(zip(chains, wanted, strict=True))
        result[name] = instructions.summary(seen, [answer for group in found for answer in group])
        numbers = [c.number is not None for group in chains for c in group]
        result[name]["answered"] = sum(numbers) / len(numbers)
        for choice in CHOICES:
            for size in sizes(n):
                result[name][f"{choice}_{size}"] = accuracy(scored, choice, size)
        for sample, group in zip(result["samples"], chains, strict=True):
            chosen = majority(group)
            sample[name] = next((c.text for c in group if c.number == chosen), "")
            sample[f"{name}_votes"] = votes(group)
    return result | {"seconds": time.perf_counter() - start}


def votes(chains: Sequence[Chain]) -> str:
    """``72 × 9, 36 × 2, no answer × 5``"""
    counted = [(shown(number), count) for number, count in tally(chains)]
    if silent := len(chains) - sum(count for _, count in counted):
        counted.append(("no answer", silent))
    return ", ".join(f"{number} × {count}" for number, count in counted)


def table(result: dict[str, Any], split: str = "test") -> str:
    """The result of ``before_after`` as a few lines for the terminal."""
    both = [result["base"], result["tuned"]]
    head = f"{split}, {result['n']:,} questions"
    lines = [f"\n{head:<26}{'base':>20}   {'tuned':>20}"]
    facts = [("loss", "loss", ".3f"), ("perplexity", "perplexity", ".2f")]
    facts += [("accuracy", "token accuracy", ".1%"), ("stopped", "stopped by itself", ".0%")]
    facts += [("answer_tokens", "tokens a chain", ".0f"), ("answered", "with a number", ".0%")]
    for key, label, form in facts:
        lines.append(f"{label:<26}" + "   ".join(f"{values[key]:>20{form}}" for values in both))
    for size in result["sizes"]:
        for choice, label in LABELS.items():
            if size > 1 or choice == "majority":  # of one chain all choices are the same
                label = f"right, {label.format(n=size) if size > 1 else '1 chain'}"
                cells = [
                    "{score:.1f} [{low:.1f}, {high:.1f}]".format(**values[f"{choice}_{size}"])
                    for values in both
                ]
                lines.append(f"{label:<26}{cells[0]:>20}   {cells[1]:>20}")
    lines.append(
        f"per cent of questions [95% Wilson]; {result['chains']} chains each at temperature "
        f"{result['temperature']:g}; best: by the {result['reward']}\n"
    )
    return "\n".join([*lines, samples(result, limit=3)])


def samples(result: dict[str, Any], limit: int | None = None) -> str:
    """Question, reference, both models' votes, and of each the first chain of the majority."""
    return "\n".join(
        f"question   {s['instruction']}\nreference  {s['reference']}\n"
        f"base       {s['base_votes']}\n{s['base']}\n"
        f"tuned      {s['tuned_votes']}\n{s['tuned']}\n"
        for s in result["samples"][:limit]
    )
