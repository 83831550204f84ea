"""Draw what each sampler keeps of a model's next tokens."""

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.files import check_new_file

if TYPE_CHECKING:
    from ft.generate.samplers import Filter

SHOWN = 24  # likeliest tokens that the picture has a bar for
SAID = 5  # and the table's last column


@dataclass(frozen=True)
class Kept:
    """A sampler's distribution of the next token, beside the model's own."""

    name: str
    tokens: int  # that may come
    share: float  # of the model's probability that is theirs
    choices: float  # equally likely tokens of the same entropy: exp(entropy)
    ids: tuple[int, ...]  # the likeliest tokens of the model, the same for every sampler
    model: tuple[float, ...]  # their probabilities by the model
    drawn: tuple[float, ...]  # and by the sampler


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft samplers``."""
    parser.epilog = 'example: ft samplers "The capital of France is"'
    add = parser.add_argument
    add("prompt", help="the text whose next token is looked at")
    add("--model", default="embedded", metavar="RUN|MODEL", help="(default embedded)")
    add("--k", type=int, default=5, help="of top-k (default 5)")
    add("--p", type=float, default=0.9, help="of top-p (default 0.9)")
    add("--min-p", type=float, default=0.1, help="of min-p (default 0.1)")
    add("--temperatures", type=float, nargs="+", default=[0.5, 1.5], help="(default 0.5 1.5)")
    add("--max-new-tokens", type=int, default=24, help="of each continuation (default 24)")
    add("--seed", type=int, default=0, help="of what is drawn (default 0)")
    add("--out", type=Path, default=Path("samplers.png"), help="picture (default samplers.png)")
    add("--precision", default="auto", help="auto, fp32, bf16, nf4 or int8 (default auto)")


def command(
    prompt: str,
    model: str,
    k: int,
    p: float,
    min_p: float,
    temperatures: list[float],
    max_new_tokens: int,
    seed: int,
    out: Path,
    precision: str,
) -> None:
    """Draw the picture, print the table, write the continuations."""
    from ft.generate import answers
    from ft.runs import opened
    from ft.score.texts import pieces

    if not prompt.strip():
        raise UserError("the prompt is empty: give the text that should be continued")
    check_new_file(out)
    chosen = named(k, p, min_p, temperatures)
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens {max_new_tokens}: it must be 1 or above")
    o = opened.load(model, precision)
    loaded, tokenizer = o.model, o.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [*start, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    found = compare(loaded, ids, chosen)
    shown = pieces(tokenizer, found[0].ids)
    show(found, shown)
    picture(out, prompt, found, shown)
    print(f"\n{out}\n\n{prompt}")
    for name, sampler in chosen.items():
        ((answer,),) = answers.generate(
            loaded, tokenizer, [ids], sampler, max_new_tokens=max_new_tokens, seed=seed
        )
        print(f"  {name:<16} {answer.text.replace(chr(10), '↵')}")


def named(k: int, p: float, min_p: float, temperatures: Sequence[float]) -> dict[str, "Filter"]:
    """The samplers of the figure by name. Raises ``UserError`` for a parameter out of range."""
    from ft.generate.samplers import Greedy, MinP, Sample, TopK, TopP

    warm: dict[str, Filter] = {f"temperature {t:g}": Sample(t) for t in temperatures}
    return {
        "greedy": Greedy(),
        f"top-k {k}": TopK(k),
        f"top-p {p:g}": TopP(p),
        f"min-p {min_p:g}": MinP(min_p),
        **warm,
        "random": Sample(),
    }


def compare(model: Any, ids: Sequence[int], samplers: Mapping[str, "Filter"]) -> list[Kept]:
    """What each sampler makes of the distribution of the token after ``ids``."""
    import torch

    from ft.generate.samplers import probabilities
    from ft.score import logits as score

    device = model.get_input_embeddings().weight.device
    logits = score.following(model, torch.tensor([list(ids)], device=device))
    own = logits[0].softmax(-1)
    best = own.topk(min(SHOWN, len(own)))
    found = []
    for name, sampler in samplers.items():
        drawn = probabilities(sampler, logits)[0]
        found.append(
            Kept(
                name,
                int((drawn > 0).sum()),
                float(own[drawn > 0].sum()),
                float(torch.special.entr(drawn).sum().exp()),
                tuple(best.indices.tolist()),
                tuple(best.values.tolist()),
                tuple(drawn[best.indices].tolist()),
            )
        )
    return found


def show(found: Sequence[Kept], tokens: Sequence[str]) -> None:
    """The table: how much each sampler keeps, and its likeliest tokens."""
    from ft.cli import console

    out = console.standard_output()
    rows = console.table(
        out,
        *("sampler", "tokens", "probability kept", "effective choices", "likeliest"),
        right=("tokens", "probability kept", "effective choices"),
    )
    for kept in found:
        order = sorted(range(len(tokens)), key=lambda i: -kept.drawn[i])[:SAID]
        said = "  ".join(f"{tokens[i]!r} {kept.drawn[i]:.1%}" for i in order if kept.drawn[i] > 0)
        numbers = [f"{kept.tokens:,}", f"{kept.share:.1%}", f"{kept.choices:,.1f}"]
        rows.add_row(kept.name, *numbers, said)
    console.show(out, rows)


def picture(path: Path, prompt: str, found: Sequence[Kept], tokens: Sequence[str]) -> None:
    """One panel for each sampler: its probabilities over the model's own, on the likeliest tokens."""
    import matplotlib

    from ft.files import write_bytes

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    places = range(len(tokens))
    size = (0.42 * len(tokens) + 1.5, 1.25 * len(found) + 1.6)
    figure, grid = plt.subplots(
        len(found), figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    panels = grid[:, 0]
    for kept, axes in zip(found, panels, strict=True):
        axes.bar(places, kept.model, color="0.85", label="the model")
        axes.bar(places, kept.drawn, color="tab:blue", width=0.5, label="the sampler")
        axes.set_ylim(0, 1.1 * max(*kept.model, *kept.drawn))
        axes.set_title(
            f"{kept.name}: {kept.tokens:,} token{'s' * (kept.tokens > 1)}, {kept.share:.1%} of the probability",
            loc="left",
            fontsize=9,
        )
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    panels[-1].set_xticks(places, [_drawable(token) for token in tokens], rotation=60, ha="right")
    figure.supylabel("probability of the next token")
    figure.suptitle(_drawable(prompt if len(prompt) < 80 else f"…{prompt[-80:]}") + " …")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    write_bytes(path, image.getvalue())


def _drawable(text: str) -> str:
    """Text with visible spaces, without what matplotlib's font lacks or takes for mathematics."""
    from matplotlib import font_manager

    known = font_manager.get_font(font_manager.findfont("DejaVu Sans")).get_charmap()
    text = text.replace("\n", "↵").replace("\t", "⇥")
    text = f"␣{text[1:]}" if text.startswith(" ") else text
    return "".join(c if ord(c) in known else "□" for c in text).replace("$", r"\$")
