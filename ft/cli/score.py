"""Show how likely a model finds a text, token by token."""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.cli import console
from ft.errors import UserError
from ft.files import check_regular

if TYPE_CHECKING:
    from ft.score.texts import Scored

SHADES = (  # least probability, style
    (0.5, "black on #a6dba0"),
    (0.1, "black on #d9f0d3"),
    (0.01, "black on #fee08b"),
    (0.001, "black on #fdae61"),
    (0.0, "white on #c51b2b"),
)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft score``."""
    parser.epilog = 'example: ft score runs/mtnt_lora --text "ça marche" --prompt "It works: "'
    add = parser.add_argument
    add("name", metavar="RUN|MODEL", help="a run, or a model: a folder, Hub id, or `embedded`")
    add("--text", nargs="+", default=[], help="one or several texts")
    add("--file", type=Path, help="each line of a text file, or `text` and `prompt` of a .jsonl")
    add("--prompt", default="", help="what stands before each text: read, but not scored")
    add("--top", type=int, default=0, metavar="K", help="also the K likeliest tokens at each place")
    add("--base", action="store_true", help="the base model of a run instead")
    add("--precision", default="auto", help="auto, fp32, bf16, nf4 or int8 (default auto)")
    console.base_options(parser)


def command(
    name: str,
    text: list[str],
    file: Path | None,
    prompt: str,
    top: int,
    base: bool,
    precision: str,
    any_base: bool = False,
    model: str | None = None,
) -> None:
    """Print what ``score_texts`` finds."""
    from ft.runs import opened
    from ft.score.texts import score_texts

    if bool(text) == (file is not None):
        raise UserError("give texts with --text, or a file with --file")
    for number, each in enumerate(text, 1):
        if not each:
            raise UserError(f"text {number} is empty: there is nothing to score")
    if top < 0:
        raise UserError(f"--top {top}: it must be 0 or above")
    rows = read(file, prompt) if file else [(prompt, each) for each in text]
    run = opened.find(name, any_base=any_base, model=model)
    if base and run is None:
        raise UserError(f"--base: {name} is a model, not a run")
    o = opened.load(run or name, precision, tuned=not base)
    found = score_texts(o.model, o.tokenizer, rows, top=top)
    for (before, _), scored in zip(rows, found, strict=True):
        if file:
            print(json.dumps(record(scored, before, top), ensure_ascii=False))
        else:
            show(scored, top)


def read(file: Path, prompt: str = "") -> list[tuple[str, str]]:
    """Prompt and text of each line of a file. Raises ``UserError`` for an empty or malformed line."""
    check_regular(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: {error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if file.suffix != ".jsonl":
            rows.append((prompt, line))
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise UserError(f"{file}, line {number}: expected an object with a string `text`")
        if not isinstance(row.get("prompt", ""), str):
            raise UserError(f"{file}, line {number}: `prompt` must be a string")
        rows.append((row.get("prompt", prompt), row["text"]))
    for number, (_, text) in enumerate(rows, 1):
        if not text:
            raise UserError(f"{file}, line {number} is empty: there is nothing to score")
    if not rows:
        raise UserError(f"{file} is empty: there is nothing to score")
    return rows


def record(scored: "Scored", prompt: str, top: int) -> dict[str, Any]:
    """One line of the answer to a file."""
    found: dict[str, Any] = {"text": scored.text} | ({"prompt": prompt} if prompt else {})
    found |= {
        "perplexity": scored.perplexity,
        "bits_per_byte": scored.bits_per_byte,
        "logprob": sum(scored.logprobs),
        "tokens": scored.tokens,
        "ids": scored.ids,
        "logprobs": scored.logprobs,
    }
    return found | ({"likeliest": scored.likeliest} if top else {})


def show(scored: "Scored", top: int) -> None:
    """The tokens with their log-probabilities, in colour or as a table, and what they come to."""
    from rich.text import Text

    out = console.standard_output()
    if out.is_terminal:
        legend, line = Text("probability  "), Text()
        for least, style in SHADES:
            legend.append(f" ≥ {least:g} " if least else f" < {SHADES[-2][0]:g} ", style)
        for token, logprob in zip(scored.tokens, scored.logprobs, strict=True):
            line.append(token.replace("\n", "↵\n"), shade(logprob))
        out.print(legend, line, sep="\n")
    if top or not out.is_terminal:
        rows = console.table(
            out, "log p", "id", "token", *["likeliest"] * bool(top), right=("log p", "id")
        )
        for at, (token, logprob) in enumerate(zip(scored.tokens, scored.logprobs, strict=True)):
            cells = [Text(f"{logprob:.3f}", shade(logprob)), str(scored.ids[at]), repr(token)]
            if top:
                cells.append("  ".join(f"{other!r} {p:.2f}" for other, p in scored.likeliest[at]))
            rows.add_row(*cells)
        console.show(out, rows)
    out.print(
        f"tokens {len(scored.ids):,}, bytes {len(scored.text.encode()):,}: log p "
        f"{sum(scored.logprobs):.2f}, perplexity {scored.perplexity:.3f}, "
        f"{scored.bits_per_byte:.3f} bits per byte"
    )


def shade(logprob: float) -> str:
    """The style of a token with this log-probability."""
    return next(style for least, style in SHADES if math.exp(logprob) >= least)
