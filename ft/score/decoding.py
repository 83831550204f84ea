"""The way of decoding that suits a translation run, chosen on its validation rows; minimum-risk translation."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ft.generate.answers import write
from ft.generate.samplers import Beam, Greedy, Sample, to_generation_config
from ft.score.comparison import mean
from ft.score.translation import RATIO, corpus_chrf, translate
from ft.text.template import Template
from ft.text.tokens import prompt_ids

BEAM = Beam(4, no_repeat_ngram_size=4)
WAYS: dict[str, tuple[Greedy | Beam, ...]] = {
    "auto": (Greedy(), BEAM),
    "greedy": (Greedy(),),
    "beam": (BEAM,),
}
"""What is tried, by a recipe's setting ``decoding``."""
ROWS = 24  # that each way is tried on


@dataclass(frozen=True)
class Chosen:
    """How to look for answers, and how that was found."""

    sampler: Greedy | Beam
    record: dict[str, Any]  # transformers' names of it, and of every way tried its chrF and seconds
    line: str  # for the terminal


def choose(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    *,
    how: str = "auto",
    max_new_tokens: int = 256,
) -> Chosen:
    """The way among ``WAYS[how]`` that answers the first ``ROWS`` of ``rows`` with the best chrF; one alone is not tried.

    The first of equal ones.
    """
    ways, rows = WAYS[how], rows[:ROWS]
    if len(ways) == 1:
        record = to_generation_config(ways[0])
        return Chosen(ways[0], record, f"decoding: {_name(record)}")
    tried = []
    for way in ways:
        start = time.perf_counter()
        options: dict[str, Any] = {"max_new_tokens": max_new_tokens}
        found = translate(model, tokenizer, template, rows, way, **options)
        chrf = corpus_chrf(found, [row["target"] for row in rows])
        seconds = time.perf_counter() - start
        tried.append({**to_generation_config(way), "chrf": chrf, "seconds": seconds})
    best = max(range(len(ways)), key=lambda i: tried[i]["chrf"])
    each = (f"{_name(way)} chrF {way['chrf']:.1f} in {way['seconds']:.0f} s" for way in tried)
    line = f"decoding: {_name(tried[best])}; on {len(rows)} validation rows " + ", ".join(each)
    return Chosen(ways[best], {**to_generation_config(ways[best]), "tried": tried}, line)


def _name(way: dict[str, Any]) -> str:
    name = f"{way['num_beams']} beams" if way["num_beams"] > 1 else "greedy"
    size = way.get("no_repeat_ngram_size")
    return name + (f" without repeated {size}-grams" if size else "")


def minimum_risk(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    n: int,
    *,
    temperature: float = 0.5,
    max_new_tokens: int = 256,
    seed: int = 0,
) -> list[str]:
    """Of ``n`` answers drawn for each row the one most like the others by sentence chrF.

    Kumar and Byrne 2004 (minimum Bayes risk); chrF among samples as in Freitag et al. 2022.
    """
    from sacrebleu.metrics.chrf import CHRF

    prompts = [prompt_ids(template, row, tokenizer) for row in rows]
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "max_ratio": RATIO, "seed": seed}
    drawn = write(model, tokenizer, template, prompts, sampler=Sample(temperature), n=n, **options)
    chrf = CHRF()

    def gain(text: str, others: list[str]) -> float:
        return mean([chrf.sentence_score(text, [other]).score for other in others])

    found = []
    for answers in drawn:
        texts = [template.trim(answer.text) for answer in answers]
        found.append(max(dict.fromkeys(texts), key=lambda text: gain(text, texts)))
    return found
