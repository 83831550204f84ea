"""How good answers to instructions are: likelihood, ROUGE-L, chrF and who stops by itself, base beside tuned."""

import contextlib
import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ft.data.rows import Row
from ft.errors import UserError
from ft.generate.answers import Answer, write
from ft.score.evaluate import Likelihood, likelihood
from ft.text.template import Template
from ft.text.tokens import Example, prompt_ids

RESAMPLES = 1000
SIGNATURES = {
    "rouge_l": "F1 of the longest common subsequence of [a-z0-9]+ in lower case, no stemmer; mean of answers",
    "chrf": "mean of sentence chrF2, sacreBLEU {version}",
}
LABELS = {"rouge_l": "ROUGE-L", "chrf": "chrF"}


def question_and_reference(row: Row) -> tuple[Row, str]:
    """The row without its (last) answer, and that answer."""
    if "messages" in row:
        return {"messages": row["messages"][:-1]}, row["messages"][-1]["content"]
    return {key: value for key, value in row.items() if key != "response"}, row["response"]


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    examples: Sequence[Example],
    *,
    ask: Row,
    packing: bool,
    base: Any | None = None,
    max_new_tokens: int = 256,
) -> dict[str, Any]:
    """The base (by default the model with its adapter switched off) against the tuned model.

    ``rows`` are answered greedily, ``examples`` (which may be more) are what the likelihood is taken
    of. Returns for each model loss, perplexity, accuracy, the scores of its answers with intervals,
    the share of answers that it ended by itself and their mean length in tokens, and its answer to
    ``ask``; besides, p-values, signatures, samples and the seconds that it took.
    """
    pad, start = tokenizer.pad_token_id, time.perf_counter()
    asked = [question_and_reference(row) for row in rows]
    prompts = [prompt_ids(template, question, tokenizer) for question, _ in asked]
    prompts.append(prompt_ids(template, ask, tokenizer))
    result: dict[str, Any] = {"n": len(rows), "n_likelihood": len(examples)}
    result |= {"ask": tokenizer.decode(prompts[-1][1:]), "max_new_tokens": max_new_tokens}
    texts: dict[str, list[str]] = {}
    for name in ("base", "tuned"):
        judged = base if base is not None and name == "base" else model
        plain = name == "base" and base is None
        with model.disable_adapter() if plain else contextlib.nullcontext():
            seen = likelihood(judged, examples, packing=packing, pad=pad, progress=True)
            found = write(judged, tokenizer, template, prompts, max_new_tokens=max_new_tokens)
            answers = [answer for (answer,) in found]
        texts[name] = [template.trim(answer.text) for answer in answers]
        result[name] = summary(seen, answers[:-1]) | {"answer": texts[name].pop()}
    references = [reference for _, reference in asked]
    found = scores(texts, references)
    for name in ("base", "tuned"):
        result[name] |= found.pop(name)
    result |= found | {"seconds": time.perf_counter() - start}
    result["samples"] = [
        {
            "prompt": tokenizer.decode(prompt[1:]),
            "reference": reference,
            "base": base,
            "tuned": tuned,
        }
        for prompt, reference, base, tuned in zip(
            prompts[:-1], references, texts["base"], texts["tuned"], strict=True
        )
    ]
    return result


def summary(seen: Likelihood, answers: Sequence[Answer]) -> dict[str, Any]:
    """The likelihood's values, the share of answers that ended by themselves, and their mean length."""
    values = asdict(seen) | {"perplexity": seen.perplexity}
    values["stopped"] = sum(a.reason != "length" for a in answers) / len(answers)
    return values | {"answer_tokens": sum(len(a.ids) for a in answers) / len(answers)}


def scores(
    systems: Mapping[str, Sequence[str]], references: Sequence[str], *, seed: int = 12345
) -> dict[str, Any]:
    """Mean ROUGE-L and chrF of several systems' answers to the same questions, 0 to 100.

    Returns for each system ``{"rouge_l": {"score", "low", "high"}, "chrf": …}`` with 95% bootstrap
    intervals, ``"p_value"`` of every later system against the first by paired bootstrap resampling
    (Koehn 2004), and ``"signatures"``. Raises ``UserError`` where the numbers of answers differ.
    """
    import sacrebleu
    from sacrebleu.metrics.chrf import CHRF

    if {len(answers) for answers in systems.values()} != {len(references)} or not references:
        lengths = {name: len(answers) for name, answers in systems.items()}
        raise UserError(f"answers and references differ in number: {lengths}, {len(references)}")
    chrf = CHRF()
    metrics: dict[str, Callable[[str, str], float]] = {
        "rouge_l": rouge_l,
        "chrf": lambda answer, reference: chrf.sentence_score(answer, [reference]).score,
    }
    draws = random.Random(seed)
    resamples = [draws.choices(range(len(references)), k=len(references)) for _ in range(RESAMPLES)]
    result: dict[str, Any] = {name: {} for name in systems}
    result["p_value"] = {name: {} for name in list(systems)[1:]}
    result["signatures"] = {
        k: v.format(version=sacrebleu.__version__) for k, v in SIGNATURES.items()
    }
    for key, metric in metrics.items():
        first: list[float] | None = None
        for name, answers in systems.items():
            each = [metric(a, r) for a, r in zip(answers, references, strict=True)]
            means = sorted(_mean([each[i] for i in sample]) for sample in resamples)
            low, high = means[int(0.025 * RESAMPLES)], means[int(0.975 * RESAMPLES) - 1]
            result[name][key] = {"score": _mean(each), "low": low, "high": high}
            if first is None:
                first = each
                continue
            gaps = [b - a for a, b in zip(first, each, strict=True)]
            gap = abs(_mean(gaps))
            # how often chance alone, the gaps around their own mean, makes a gap as large
            larger = sum(abs(_mean([gaps[i] for i in s]) - _mean(gaps)) >= gap for s in resamples)
            result["p_value"][name][key] = (larger + 1) / (RESAMPLES + 1)
    return result


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L of one answer, 0 to 100: F1 of the longest common subsequence of words.

    Source: Lin 2004; as google-research's ``rouge_score`` computes it without its stemmer.
    """
    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, reference))
    if not a or not b:
        return 0.0
    row = [0] * (len(b) + 1)  # row[j]: longest common subsequence with the first j words
    for word in a:
        before = 0
        for j, other in enumerate(b, 1):
            here = before + 1 if word == other else max(row[j], row[j - 1])
            before, row[j] = row[j], here
    return 200 * row[-1] / (len(a) + len(b))


def table(result: dict[str, Any], split: str = "test") -> str:
    """The result of ``before_after`` as a few lines for the terminal."""
    both = [result["base"], result["tuned"]]
    lines = [f"\n{split}, {result['n']:,} answers   {'base':>20}   {'tuned':>20}   p"]
    rows = [("loss", "loss", ".3f"), ("perplexity", "perplexity", ".2f")]
    rows += [("accuracy", "token accuracy", ".1%"), ("stopped", "stopped by itself", ".0%")]
    rows += [("answer_tokens", "tokens an answer", ".0f")]
    for key, label, form in rows:
        lines.append(f"{label:<18}" + "   ".join(f"{values[key]:>20{form}}" for values in both))
    for key, label in LABELS.items():
        cells = [
            f"{s['score']:.1f} [{s['low']:.1f}, {s['high']:.1f}]" for s in (v[key] for v in both)
        ]
        p = result["p_value"]["tuned"][key]
        lines.append(f"{label:<18}{cells[0]:>20}   {cells[1]:>20}   {p:.4f}")
    lines += [f"{key}: {value}" for key, value in result["signatures"].items()]
    lines.append(
        f"\n{result['ask'].strip()}\n  base:  {both[0]['answer']}\n  tuned: {both[1]['answer']}\n"
    )
    return "\n".join([*lines, samples(result, limit=10)])


def samples(result: dict[str, Any], limit: int | None = None) -> str:
    """Prompt, reference and both answers, as text."""
    return "\n".join(
        f"prompt     {s['prompt'].strip()}\nreference  {s['reference']}\n"
        f"base       {s['base']}\ntuned      {s['tuned']}\n"
        for s in result["samples"][:limit]
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
