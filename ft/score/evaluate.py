"""How good a model is: token-weighted loss, and BLEU and chrF with signature, interval and paired test."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.generate.answers import greedy
from ft.text.batches import layout, pack
from ft.text.prompts import Template
from ft.text.tokens import IGNORE, Example

if TYPE_CHECKING:
    from torch import Tensor, nn

ROW = 1024  # tokens of a packed row: its block mask costs the square of it
RATIO = 2.0  # tokens that a scored answer may have for each of its prompt, and 16 more
RESAMPLES = 1000  # bootstrap samples, sacreBLEU's default


@dataclass(frozen=True)
class Likelihood:
    """How well a model foresees the supervised tokens."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of tokens that it holds the most likely
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def loss(
    model: "nn.Module", examples: Sequence[Example], *, packing: bool, pad: int, **options: Any
) -> float:
    """The loss of ``likelihood``."""
    return likelihood(model, examples, packing=packing, pad=pad, **options).loss


def likelihood(
    model: "nn.Module",
    examples: Sequence[Example],
    *,
    packing: bool,
    pad: int,
    batch_size: int = 8,
    progress: bool = False,
    batch: Callable[[Sequence[Example]], dict[str, "Tensor"]] | None = None,
) -> Likelihood:
    """Mean cross-entropy and accuracy over all supervised tokens; each process takes its share.

    ``model`` answers ``labels=`` with a summed loss (``ft.kernels.cross_entropy.install``). ``batch`` is ``train.sft``'s.
    Raises ``UserError`` when nothing is supervised.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import reduce
    from tqdm import tqdm

    state = PartialState()
    quiet = not (progress and state.is_main_process)
    lengths = [len(e["input_ids"]) for e in examples]
    if packing:
        batches = pack(lengths, ROW)
    else:
        order = sorted(range(len(examples)), key=lambda i: lengths[i])
        batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    total = torch.zeros(3, dtype=torch.float64, device=state.device)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        turns = range(state.process_index, len(batches) + state.process_index, state.num_processes)
        for turn in tqdm(turns, desc="loss", disable=quiet, leave=False):
            # with nothing left for this process, one batch more that is not counted: where
            # parameters are sharded, all processes must run as many
            counted = turn < len(batches)
            chosen = [examples[i] for i in batches[turn if counted else 0]]
            pieces = [batch(chosen)] if batch else []
            for piece in pieces or layout(chosen, packing=packing, capacity=ROW, pad=pad):
                piece = {key: value.to(state.device) for key, value in piece.items()}
                answer = model(**piece)
                if counted:
                    total[0] += answer["loss"]
                    total[1] += answer["correct"]
                    total[2] += (piece["labels"][:, 1:] != IGNORE).sum()
    model.train(was_training)
    if state.num_processes > 1:
        total = reduce(total)
    summed, correct, count = total.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if not count:
        raise UserError("no position is supervised: every label is masked")
    return Likelihood(summed / count, correct / count, int(count))


@dataclass(frozen=True)
class Judged:
    """What one model makes of some rows: ``before_after`` has two of them."""

    loss: float
    translations: list[str]
    answer: str  # to a row that every run is asked


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    examples: Sequence[Example],
    *,
    ask: dict[str, str],
    packing: bool,
    base: Any | None = None,
    max_new_tokens: int = 256,
) -> dict[str, Any]:
    """The base (by default the model with its adapter switched off) against the tuned model.

    Returns loss and ``scores`` of both on the same rows, their translations, the answers to the row
    ``ask``, and the seconds that it took.
    """
    import contextlib
    import time

    found: dict[str, Judged] = {}
    start = time.perf_counter()
    for name in ("base", "tuned"):
        judged = base if base is not None and name == "base" else model
        plain = name == "base" and base is None
        with model.disable_adapter() if plain else contextlib.nullcontext():
            found[name] = judge(
                judged,
                tokenizer,
                template,
                rows,
                examples,
                ask=ask,
                packing=packing,
                max_new_tokens=max_new_tokens,
            )
    result = compare(found["base"], found["tuned"], template, rows, ask=ask)
    return result | {"seconds": time.perf_counter() - start}


def judge(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    examples: Sequence[Example],
    *,
    ask: dict[str, str],
    packing: bool,
    max_new_tokens: int = 256,
) -> Judged:
    """The loss on ``examples``, and the likeliest answer to each of ``rows`` and to ``ask``."""
    value = loss(model, examples, packing=packing, pad=tokenizer.pad_token_id, progress=True)
    *texts, answer = translate(
        model, tokenizer, template, [*rows, ask], max_new_tokens=max_new_tokens
    )
    return Judged(value, texts, answer)


def translate(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    *,
    max_new_tokens: int = 256,
) -> list[str]:
    """The likeliest answer to each of ``rows``, no longer than one that is scored may be."""
    return greedy(
        model,
        tokenizer,
        template,
        rows,
        max_new_tokens=max_new_tokens,
        max_ratio=RATIO,
        progress=True,
    )


def compare(
    base: Judged,
    tuned: Judged,
    template: Template,
    rows: Sequence[dict[str, str]],
    *,
    ask: dict[str, str],
) -> dict[str, Any]:
    """The result of ``before_after`` from what ``judge`` found of two models."""
    result: dict[str, Any] = {"n": len(rows), "ask": template.prompt_for(ask)}
    references = [row["target"] for row in rows]
    result |= scores({"base": base.translations, "tuned": tuned.translations}, references)
    for name, found in (("base", base), ("tuned", tuned)):
        result[name] |= {"loss": found.loss, "answer": found.answer}
    result["samples"] = [
        {"source": row["source"], "reference": row["target"], "base": before, "tuned": after}
        for row, before, after in zip(rows, base.translations, tuned.translations, strict=True)
    ]
    return result


def table(result: dict[str, Any], split: str = "test") -> str:
    """The result of ``before_after`` on a split as a few lines for the terminal."""
    lines = [f"\n{split}, {result['n']:,} lines   {'base':>20}   {'tuned':>20}   p"]
    loss_of = [f"{result[name]['loss']:.3f}" for name in ("base", "tuned")]
    lines.append(f"{'loss':<18}{loss_of[0]:>20}   {loss_of[1]:>20}")
    for key, label in (("bleu", "BLEU"), ("chrf", "chrF")):
        cells = [
            f"{s['score']:.1f} [{s['low']:.1f}, {s['high']:.1f}]"
            for s in (result["base"][key], result["tuned"][key])
        ]
        p = result["p_value"]["tuned"][key]
        lines.append(f"{label:<18}{cells[0]:>20}   {cells[1]:>20}   {p:.4f}")
    lines += [f"{key}: {value}" for key, value in result["signatures"].items()]
    lines.append(f"\n{result['ask'].strip()}\n  base:  {result['base']['answer']}")
    lines.append(f"  tuned: {result['tuned']['answer']}\n")
    return "\n".join([*lines, samples(result, limit=10)])


def samples(result: dict[str, Any], limit: int | None = None) -> str:
    """Source, reference and both translations of each line, as text."""
    return "\n".join(
        f"source     {s['source']}\nreference  {s['reference']}\n"
        f"base       {s['base']}\ntuned      {s['tuned']}\n"
        for s in result["samples"][:limit]
    )


def corpus_chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 alone, 0 to 100, as ``scores`` has it."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF().corpus_score(list(translations), [list(references)]).score


def scores(
    systems: dict[str, Sequence[str]], references: Sequence[str], *, seed: int = 12345
) -> dict[str, Any]:
    """Corpus BLEU and chrF of several systems' translations of the same lines.

    Returns for each system ``{"bleu": {"score", "low", "high"}, "chrf": …}`` with 95% bootstrap
    intervals, ``"p_value"`` of every later system against the first by paired bootstrap resampling
    (Koehn 2004, as sacreBLEU computes it), and ``"signatures"``, without which a score says nothing.
    """
    import os

    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF
    from sacrebleu.significance import PairedTest

    lengths = {name: len(lines) for name, lines in systems.items()} | {
        "references": len(references)
    }
    if len(set(lengths.values())) != 1:
        raise UserError(f"translations and references differ in number: {lengths}")
    os.environ.setdefault("SACREBLEU_SEED", str(seed))
    # force: the lines are detokenised already, so sacreBLEU need not warn that they might not be
    metrics = {
        "BLEU": BLEU(references=[references], force=True),
        "chrF2": CHRF(references=[references]),
    }
    named: list[tuple[str, Sequence[str]]] = [(name, list(s)) for name, s in systems.items()]
    test = PairedTest(named, metrics, references=None, test_type="bs", n_samples=RESAMPLES)
    signatures, found_by_metric = test()
    table: Any = found_by_metric
    result: dict[str, Any] = {name: {} for name in systems}
    result["p_value"] = {}
    result["signatures"] = {}
    for metric, key in (("BLEU", "bleu"), ("chrF2", "chrf")):
        result["signatures"][key] = str(signatures[metric])
        for name, found in zip(table["System"], table[metric], strict=True):
            name = name.removeprefix("Baseline: ")
            mean, half = float(found.mean), float(found.ci)
            result[name][key] = {
                "score": float(found.score),
                "low": mean - half,
                "high": mean + half,
            }
            if found.p_value is not None:
                result["p_value"].setdefault(name, {})[key] = float(found.p_value)
    return result
