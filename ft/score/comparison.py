"""Base beside tuned: both judged on the same rows, how sure their difference is, and the lines that show it."""

import contextlib
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ft.text.examples import IGNORE, Example

RESAMPLES = 1000  # bootstrap samples, sacreBLEU's default
SEED = 12345  # of them, sacreBLEU's default too
SHADED, LONGEST = 12, 256  # examples whose tokens are judged one by one, and tokens of each
Score = dict[str, float]  # {"score", "low", "high"}
Resamples = Sequence[Sequence[int]]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Comparison:
    """What comes of base and tuned on the same rows."""

    values: dict[str, Any]  # what a run keeps of it, `run.json`'s `evaluation`
    table: str  # for the terminal, with a few samples
    samples: str  # every row and its answers, as text


@contextlib.contextmanager
def as_base(model: Any, base: Any | None = None) -> Iterator[Any]:
    """The base while this lasts: ``base``, or ``model`` with its adapter switched off."""
    with contextlib.nullcontext() if base is not None else model.disable_adapter():
        yield model if base is None else base


def both(judge: Callable[[Any], _T], model: Any, base: Any | None = None) -> dict[str, _T]:
    """What ``judge`` finds of ``{"base", "tuned"}``; of the tuned alone where the base is not at hand.

    That is so of a model that trained whole and comes without ``base``.
    """
    found: dict[str, _T] = {}
    if base is not None or hasattr(model, "disable_adapter"):
        with as_base(model, base) as plain:
            found["base"] = judge(plain)
    return found | {"tuned": judge(model)}


def token_losses(
    model: Any, tokenizer: Any, examples: Sequence[Example], base: Any | None = None
) -> list[dict[str, Any]]:
    """The loss in nats of each supervised token of the first ``SHADED`` examples, by both models.

    An entry has the text before them as ``prompt``, their own texts as ``tokens``, and a list of losses for
    each model. Examples run one by one: that is exact for every kind of model.
    """
    from ft.score import likelihood
    from ft.score.texts import pieces

    shown = [{k: example[k][:LONGEST] for k in example} for example in examples[:SHADED]]
    shown = [e for e in shown if any(label != IGNORE for label in e["labels"][1:])]

    def judged(each: Any) -> list[list[float]]:
        with likelihood.resting(each):
            found = [likelihood.logprobs(each, [example])[0] for example in shown]
        return [[round(-value, 3) for value in values.tolist()] for values in found]

    losses = both(judged, model, base)
    entries = []
    for at, example in enumerate(shown):
        pairs = list(zip(example["input_ids"], example["labels"], strict=True))[1:]
        prompt = tokenizer.decode([i for i, label in pairs if label == IGNORE])
        learnt = pieces(tokenizer, [i for i, label in pairs if label != IGNORE])
        entry = {"prompt": prompt, "tokens": list(learnt)}
        entries.append(entry | {name: values[at] for name, values in losses.items()})
    return entries


def resamples(n: int, seed: int = SEED) -> Resamples:
    """Bootstrap samples of n rows: indices, drawn with replacement."""
    draws = random.Random(seed)
    return [draws.choices(range(n), k=n) for _ in range(RESAMPLES)]


def interval(each: Sequence[float], drawn: Resamples) -> Score:
    """The mean of each row's score, and its 95% bootstrap interval."""
    return within(mean(each), (mean([each[i] for i in sample]) for sample in drawn))


def within(score: float, values: Iterable[float]) -> Score:
    """A score with the interval that holds 95% of its ``values`` on bootstrap samples."""
    each = sorted(values)
    low, high = each[int(0.025 * len(each))], each[int(0.975 * len(each)) - 1]
    return {"score": score, "low": low, "high": high}


def p_value(first: Sequence[float], each: Sequence[float], drawn: Resamples) -> float:
    """Paired bootstrap resampling (Koehn 2004) of two systems' scores of the same rows."""
    gaps = [b - a for a, b in zip(first, each, strict=True)]
    gap = abs(mean(gaps))
    # how often chance alone, the gaps around their own mean, makes a gap as large
    larger = sum(abs(mean([gaps[i] for i in s]) - mean(gaps)) >= gap for s in drawn)
    return (larger + 1) / (len(drawn) + 1)


def per_cent(share: float, trials: int) -> Score:
    """A share of independent trials and its ``wilson`` interval, in per cent."""
    low, high = wilson(share, trials)
    return {"score": 100 * share, "low": 100 * low, "high": 100 * high}


def wilson(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson 1927); sound at 0 and 1, too."""
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def cell(score: Score, unit: str = "") -> str:
    """``41.9 [41.0, 42.8]``"""
    return f"{score['score']:.1f}{unit} [{score['low']:.1f}, {score['high']:.1f}]"


def row(label: str, cells: Sequence[str], width: int = 18) -> str:
    """A line of a table: base, then tuned."""
    return f"{label:<{width}}" + "   ".join(f"{text:>20}" for text in cells)


def scored(result: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """Lines of scores with their intervals and p, and the signatures without which they say nothing."""
    lines = []
    for key, label in labels.items():
        cells = [cell(result[name][key]) for name in ("base", "tuned")]
        lines.append(f"{row(label, cells)}   {result['p_value']['tuned'][key]:.4f}")
    return lines + [f"{key}: {value}" for key, value in result["signatures"].items()]


def asked(result: Mapping[str, Any]) -> str:
    """What every run is asked, and both answers."""
    both = "\n".join(f"  {name + ':':<6} {result[name]['answer']}" for name in ("base", "tuned"))
    return f"\n{result['ask'].strip()}\n{both}\n"


def listed(samples: Sequence[Mapping[str, Any]]) -> str:
    """Rows and their answers, a key a line."""
    return "\n".join(
        "".join(f"{key:<10} {value}\n" for key, value in sample.items()) for sample in samples
    )
