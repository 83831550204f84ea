"""How well text is foreseen: bits per byte of held-out documents with intervals, and how each model goes on."""

import math
import time
from collections.abc import Sequence
from typing import Any

from ft.data.rows import Row
from ft.generate.answers import write
from ft.score import comparison, likelihood
from ft.score.comparison import Comparison
from ft.text import documents
from ft.text.template import Template

OPENING = 24  # tokens of a document that both models go on from
SHOWN = 5  # documents that they go on from
SIGNATURES = {
    "bits_per_byte": "bits of all tokens of all documents over their bytes in UTF-8, each token behind <bos> and "
    "what its window has before it; intervals and p by bootstrap over documents"
}


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[Row],
    *,
    max_length: int,
    max_new_tokens: int = 60,
    base: Any | None = None,
    split: str = "test",
) -> Comparison:
    """The base (by default the model with its adapter switched off) against the tuned model.

    ``rows`` are documents ``{"text"}``, in windows of ``max_length`` tokens; no end of a document is counted,
    which has no bytes. Both models go on greedily from the first tokens of some of them. The values are for
    each model its bits per byte with a 95% interval, loss and perplexity of a token.
    """
    start = time.perf_counter()
    encoded = documents.encode(rows, template, tokenizer, max_length=max_length, ends=False)
    openings = [ids[: OPENING + 1] for ids in _openings(encoded, len(rows))]

    def judged(each: Any) -> tuple[list[float], list[str]]:
        nats = [0.0] * len(rows)
        with likelihood.resting(each):
            found = likelihood.logprobs(each, encoded.examples)
        for row, values in zip(encoded.rows, found, strict=True):
            nats[row] -= float(values.double().sum())
        answers = write(each, tokenizer, template, openings, max_new_tokens=max_new_tokens)
        return nats, [answer.text for (answer,) in answers]

    found = comparison.both(judged, model, base)
    sizes, count = [len(row["text"].encode()) for row in rows], sum(encoded.lengths) - len(rows)
    drawn = comparison.resamples(len(rows))
    result: dict[str, Any] = {"n": len(rows), "bytes": sum(sizes), "tokens": count}
    result["max_new_tokens"] = max_new_tokens
    for name, (nats, _) in found.items():
        loss = sum(nats) / count
        result[name] = {"bits_per_byte": _interval(nats, sizes, drawn)}
        result[name] |= {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
    if "base" in found:
        gaps = [b - a for a, b in zip(found["base"][0], found["tuned"][0], strict=True)]
        result["p_value"] = {"tuned": {"bits_per_byte": _p_value(gaps, sizes, drawn)}}
    result["losses"] = comparison.token_losses(model, tokenizer, encoded.examples, base)
    result |= {"signatures": SIGNATURES, "seconds": time.perf_counter() - start}
    result["samples"] = [
        {"prompt": tokenizer.decode(ids[1:])}
        | {name: texts[i] for name, (_, texts) in found.items()}
        for i, ids in enumerate(openings)
    ]
    return Comparison(result, _table(result, split), comparison.listed(result["samples"]))


def _openings(encoded: Any, count: int) -> list[list[int]]:
    """The ids of the first window of the first documents."""
    first = [encoded.rows.index(row) for row in range(min(SHOWN, count))]
    return [encoded.examples[i]["input_ids"] for i in first]


def _bits(nats: Sequence[float], sizes: Sequence[int]) -> float:
    return sum(nats) / math.log(2) / sum(sizes)


def _interval(
    nats: Sequence[float], sizes: Sequence[int], drawn: comparison.Resamples
) -> comparison.Score:
    each = (_bits([nats[i] for i in s], [sizes[i] for i in s]) for s in drawn)
    return comparison.within(_bits(nats, sizes), each)


def _p_value(gaps: Sequence[float], sizes: Sequence[int], drawn: comparison.Resamples) -> float:
    """Paired bootstrap resampling (Koehn 2004) of a ratio of sums."""
    gap = _bits(gaps, sizes)
    each = (_bits([gaps[i] for i in s], [sizes[i] for i in s]) for s in drawn)
    return (sum(abs(value - gap) >= abs(gap) for value in each) + 1) / (len(drawn) + 1)


def _table(result: dict[str, Any], split: str) -> str:
    names = [name for name in ("base", "tuned") if name in result]
    head = "   ".join(f"{name:>20}" for name in names)
    lines = [f"\n{split}, {result['n']:,} documents, {result['bytes']:,} bytes\n{'':<18}{head}   p"]
    scores = [result[name]["bits_per_byte"] for name in names]
    cells = ["{score:.4f} [{low:.4f}, {high:.4f}]".format(**score) for score in scores]
    p = f"   {result['p_value']['tuned']['bits_per_byte']:.4f}" if "p_value" in result else ""
    lines.append(comparison.row("bits per byte", cells) + p)
    for key, label, form in (
        ("loss", "loss of a token", ".3f"),
        ("perplexity", "perplexity", ".2f"),
    ):
        lines.append(comparison.row(label, [f"{result[name][key]:{form}}" for name in names]))
    return "\n".join(
        [
            *lines,
            *(f"{k}: {v}" for k, v in SIGNATURES.items()),
            "",
            comparison.listed(result["samples"]),
        ]
    )
