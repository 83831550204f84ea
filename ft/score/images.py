"""How good answers about images are: right to the letter, ROUGE-L and chrF, and on drawn pictures against a guess."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from ft.data import images, pictures
from ft.data.rows import Row
from ft.generate.answers import generate
from ft.models.vision import Reader
from ft.score import comparison, instructions
from ft.score.comparison import Comparison, per_cent
from ft.text.template import Template

SHARE = 16  # rows whose images are in memory at once


def before_after(
    model: Any,
    tokenizer: Any,
    template: Template,
    see: Reader,
    rows: Sequence[Row],
    *,
    max_new_tokens: int = 64,
    split: str = "test",
) -> Comparison:
    """Greedy answers to rows with images, by the model and, where it has an adapter, without that.

    The values are for each model ``exact``, the share of answers that are the row's completion, ``rouge_l`` and
    ``chrf``, all 0 to 100 with 95% intervals (Wilson's for shares). Where all rows are drawn pictures also
    the shares whose colour, shape and position are right, and under ``chance`` what a guess gets right.
    """
    start = time.perf_counter()

    def judged(each: Any) -> list[str]:
        return _answers(each, tokenizer, template, see, rows, max_new_tokens)

    texts = comparison.both(judged, model)
    expected = [row["completion"].strip() for row in rows]
    result: dict[str, Any] = {"n": len(rows), "max_new_tokens": max_new_tokens}
    result |= instructions.scores(texts, expected)
    drawn = all(row["prompt"] == pictures.PROMPT for row in rows)
    for name, found in texts.items():
        pairs = list(zip(found, expected, strict=True))
        right = sum(a == b for a, b in pairs)
        result[name]["exact"] = per_cent(right / len(pairs), len(pairs))
        for part in pictures.PARTS if drawn else ():
            right = sum(pictures.right(part, a, b) for a, b in pairs)
            result[name][part] = per_cent(right / len(pairs), len(pairs))
    if drawn:
        result["chance"] = {
            part: 100 * pictures.chance(part) for part in ("exact", *pictures.PARTS)
        }
    result["seconds"] = time.perf_counter() - start
    result["samples"] = [
        {
            "images": ", ".join(row["images"]),
            "prompt": row["prompt"],
            "reference": row["completion"],
        }
        | {name: found[i] for name, found in texts.items()}
        for i, row in enumerate(rows)
    ]
    samples = comparison.listed(result["samples"])
    return Comparison(result, _table(result, split), samples)


def _answers(
    model: Any, tokenizer: Any, template: Template, see: Reader, rows: Sequence[Row], most: int
) -> list[str]:
    from tqdm import tqdm

    found = []
    for at in tqdm(range(0, len(rows), SHARE), desc="answer", unit="batch", delay=2, leave=False):
        prompts = [
            see.prompt(
                template,
                {"instruction": row["prompt"], "images": [*map(images.open_image, row["images"])]},
                tokenizer,
            )
            for row in rows[at : at + SHARE]
        ]
        written = generate(model, tokenizer, prompts, max_new_tokens=most, template=template)
        found += [template.trim(answer.text) for (answer,) in written]
    return found


def _table(result: Mapping[str, Any], split: str) -> str:
    names = [name for name in ("base", "tuned") if name in result]
    chance = result.get("chance", {})
    heads = [*names, *(["a guess"] if chance else [])]
    lines = [f"\n{split}, {result['n']:,} answers" + "".join(f"{head:>22}" for head in heads)]
    for key in ("exact", *pictures.PARTS, "rouge_l", "chrf"):
        if key not in result["tuned"]:
            continue
        unit = "" if key in instructions.LABELS else "%"
        cells = [comparison.cell(result[name][key], unit) for name in names]
        cells += [f"{chance[key]:.1f}%"] if key in chance else []
        lines.append(
            f"{instructions.LABELS.get(key, key):<18}" + "".join(f"{c:>22}" for c in cells)
        )
    return "\n".join(
        [*lines, "in brackets: 95% intervals\n", comparison.listed(result["samples"][:5])]
    )
