"""How good answers to instructions are: likelihood, ROUGE-L, chrF and who stops by itself, base beside tuned."""

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ft.data.rows import Row
from ft.errors import UserError
from ft.generate.answers import Answer, write
from ft.score import comparison, likelihood
from ft.score.comparison import SEED, Comparison
from ft.score.likelihood import Likelihood
from ft.text.template import Template
from ft.text.tokens import Example, prompt_ids

SIGNATURES = {
    "rouge_l": "F1 of the longest common subsequence of [a-z0-9]+ in lower case, no stemmer; mean of answers",
    "chrf": "mean of sentence chrF2, sacreBLEU {version}",
}
LABELS = {"rouge_l": "ROUGE-L", "chrf": "chrF"}
FACTS = (  # of how both models write: key, label, format
    ("loss", "loss", ".3f"),
    ("perplexity", "perplexity", ".2f"),
    ("accuracy", "token accuracy", ".1%"),
    ("stopped", "stopped by itself", ".0%"),
)


def question_and_reference(row: Row) -> tuple[Row, str]:
    """The row without its (last) answer, and that answer."""
    if "messages" in row:
        *before, last = row["messages"]
        calls = [call["function"] for call in last.get("tool_calls", ())]
        reference = last["content"] or json.dumps(calls, ensure_ascii=False)
        return row | {"messages": before}, reference
    return {key: value for key, value in row.items() if key != "response"}, row["response"]


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    examples: Sequence[Example],
    *,
    ask: Row,
    base: Any | None = None,
    max_new_tokens: int = 256,
    split: str = "test",
) -> Comparison:
    """The base (by default the model with its adapter switched off) against the tuned model.

    ``rows`` are answered greedily, ``examples`` (which may be more) are what the likelihood is taken
    of. The values are for each model loss, perplexity, accuracy, the scores of its answers with
    intervals, the share of answers that it ended by itself and their mean length in tokens, and its
    answer to ``ask``; besides, p-values, signatures, samples and the seconds that it took.
    """
    start = time.perf_counter()
    questions = [question_and_reference(row) for row in rows]
    prompts = [prompt_ids(template, question, tokenizer) for question, _ in questions]
    prompts.append(prompt_ids(template, ask, tokenizer))

    def judged(each: Any) -> tuple[Likelihood, list[Answer]]:
        seen = likelihood.of_examples(each, examples, progress=True)
        found = write(each, tokenizer, template, prompts, max_new_tokens=max_new_tokens)
        return seen, [answer for (answer,) in found]

    found = comparison.both(judged, model, base)
    texts = {
        name: [template.trim(answer.text) for answer in answers]
        for name, (_, answers) in found.items()
    }
    result: dict[str, Any] = {"n": len(rows), "n_likelihood": len(examples)}
    result |= {"ask": tokenizer.decode(prompts[-1][1:]), "max_new_tokens": max_new_tokens}
    for name, (seen, answers) in found.items():
        result[name] = summary(seen, answers[:-1]) | {"answer": texts[name].pop()}
    references = [reference for _, reference in questions]
    of_answers = scores(texts, references)
    for name in texts:
        result[name] |= of_answers.pop(name)
    result["losses"] = comparison.token_losses(model, tokenizer, examples, base)
    result |= of_answers | {"seconds": time.perf_counter() - start}
    result["samples"] = [
        {
            "prompt": tokenizer.decode(prompt[1:]),
            "reference": reference,
            "base": before,
            "tuned": after,
        }
        for prompt, reference, before, after in zip(
            prompts[:-1], references, texts["base"], texts["tuned"], strict=True
        )
    ]
    return Comparison(result, _table(result, split), _samples(result))


def summary(seen: Likelihood, answers: Sequence[Answer]) -> dict[str, Any]:
    """The likelihood's values, the share of answers that ended by themselves, and their mean length."""
    values = asdict(seen) | {"perplexity": seen.perplexity}
    values["stopped"] = sum(a.reason != "length" for a in answers) / len(answers)
    return values | {"answer_tokens": sum(len(a.ids) for a in answers) / len(answers)}


def scores(
    systems: Mapping[str, Sequence[str]], references: Sequence[str], *, seed: int = SEED
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
    drawn = comparison.resamples(len(references), seed)
    result: dict[str, Any] = {name: {} for name in systems}
    result["p_value"] = {name: {} for name in list(systems)[1:]}
    result["signatures"] = {
        k: v.format(version=sacrebleu.__version__) for k, v in SIGNATURES.items()
    }
    for key, metric in metrics.items():
        each = {
            name: [metric(a, r) for a, r in zip(answers, references, strict=True)]
            for name, answers in systems.items()
        }
        for name, values in each.items():
            result[name][key] = comparison.interval(values, drawn)
        for name, p_values in result["p_value"].items():
            first = each[next(iter(systems))]
            p_values[key] = comparison.p_value(first, each[name], drawn)
    return result


def watched(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 256,
) -> dict[str, float]:
    """Mean ROUGE-L and chrF of greedy answers to ``rows``, 0 to 100: what ``best_by`` may compare validations by."""
    asked = [question_and_reference(row) for row in rows]
    prompts = [prompt_ids(template, question, tokenizer) for question, _ in asked]
    found = write(model, tokenizer, template, prompts, max_new_tokens=max_new_tokens)
    texts = {"tuned": [template.trim(answer.text) for (answer,) in found]}
    values = scores(texts, [reference for _, reference in asked])["tuned"]
    return {"rouge": values["rouge_l"]["score"], "chrf": values["chrf"]["score"]}


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


def facts(
    result: dict[str, Any], rows: Sequence[tuple[str, str, str]], width: int = 18
) -> list[str]:
    """Lines of plain figures of both models: ``rows`` are key, label and format."""
    models = [result["base"], result["tuned"]]
    return [
        comparison.row(label, [f"{values[key]:{form}}" for values in models], width)
        for key, label, form in rows
    ]


def _table(result: dict[str, Any], split: str) -> str:
    lines = [f"\n{split}, {result['n']:,} answers   {'base':>20}   {'tuned':>20}   p"]
    lines += facts(result, [*FACTS, ("answer_tokens", "tokens an answer", ".0f")])
    lines += comparison.scored(result, LABELS)
    return "\n".join([*lines, comparison.asked(result), _samples(result, limit=10)])


def _samples(result: dict[str, Any], limit: int | None = None) -> str:
    shown = result["samples"][:limit]
    return comparison.listed([sample | {"prompt": sample["prompt"].strip()} for sample in shown])
