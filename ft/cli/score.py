"""How likely a model finds a text, token by token: coloured in a terminal, JSON lines for a file."""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.errors import UserError

BATCH = 2048  # tokens, padding included, that run through the model at once
SHADES = (  # least probability, style
    (0.5, "black on #a6dba0"),
    (0.1, "black on #d9f0d3"),
    (0.01, "black on #fee08b"),
    (0.001, "black on #fdae61"),
    (0.0, "white on #c51b2b"),
)


@dataclass(frozen=True)
class Scored:
    """A text and the log-probability of each of its tokens, in nats."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    likeliest: tuple[tuple[tuple[str, float], ...], ...]  # in each token's place

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss of a token; infinite beyond what a float holds."""
        mean = -sum(self.logprobs) / len(self.logprobs)
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits of all tokens over the text's bytes in UTF-8: comparable between tokenizers."""
        return -sum(self.logprobs) / math.log(2) / len(self.text.encode())


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft score``."""
    add = parser.add_argument
    add("name", metavar="RUN|MODEL", help="a run, or a model: a folder, Hub id, or `embedded`")
    add("--text", nargs="+", default=[], help="one or several texts")
    add("--file", type=Path, help="each line of a text file, or `text` and `prompt` of a .jsonl")
    add("--prompt", default="", help="what stands before each text: read, but not scored")
    add("--top", type=int, default=0, metavar="K", help="also the K likeliest tokens at each place")
    add("--base", action="store_true", help="the base model of a run instead")
    add("--precision", default="auto", help="auto, fp32, bf16, nf4 or int8 (default auto)")


def command(
    name: str, text: list[str], file: Path | None, prompt: str, top: int, base: bool, precision: str
) -> None:
    """Print what ``score_texts`` finds."""
    from ft.cli import generate

    if bool(text) == (file is not None):
        raise UserError("give texts with --text, or a file with --file")
    for number, each in enumerate(text, 1):
        if not each:
            raise UserError(f"text {number} is empty: there is nothing to score")
    if top < 0:
        raise UserError(f"--top {top}: it must be 0 or above")
    rows = read(file, prompt) if file else [(prompt, each) for each in text]
    model, tokenizer, _ = generate.load(name, precision, None, raw=False, base=base)
    found = score_texts(model, tokenizer, rows, top=top)
    for (before, _), scored in zip(rows, found, strict=True):
        if file:
            print(json.dumps(record(scored, before, top), ensure_ascii=False))
        else:
            show(scored, top)


def read(file: Path, prompt: str = "") -> list[tuple[str, str]]:
    """Prompt and text of each line of a file. Raises ``UserError`` for an empty or malformed line."""
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


def score_texts(
    model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]], *, top: int = 0
) -> list[Scored]:
    """Score pairs of prompt and text, encoded apart behind a BOS, in their order.

    Raises ``UserError`` for a text without tokens and one that is longer than the context.
    """
    import torch
    from tqdm import tqdm

    from ft.models.load import context_of
    from ft.score import logits

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts: list[tuple[list[int], list[int]]] = []
    for number, (prompt, text) in enumerate(rows, 1):
        before, ids = tokenizer([prompt, text], add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"text {number} is empty: there is nothing to score")
        if not start and not before:
            raise UserError(
                "the tokenizer has no token to begin a text with, so its first one cannot be scored: "
                "give a --prompt"
            )
        texts.append(([*start, *before], ids))
    lengths = [len(before) + len(ids) for before, ids in texts]
    context = context_of(model.config)
    longest = max(range(len(rows)), key=lambda i: lengths[i])
    if context and lengths[longest] > context:
        raise UserError(
            f"text {longest + 1} has {lengths[longest]:,} tokens with its prompt, more than the "
            f"model's context of {context:,}"
        )
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    device = model.get_input_embeddings().weight.device
    found: dict[int, Scored] = {}
    with tqdm(total=len(rows), desc="score", unit="text", disable=len(rows) < 9) as bar:
        while order:
            width = lengths[order[0]]
            batch = order[: max(1, BATCH // width)]
            order = order[len(batch) :]
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.tensor([*texts[i][0], *texts[i][1]])
                mask[row, : lengths[i]] = 1
            best = logits.top(model, ids.to(device), mask.to(device), max(top, 1))
            for row, i in enumerate(batch):
                part = slice(len(texts[i][0]) - 1, lengths[i] - 1)  # a token's predecessors
                expected = zip(best.ids[row, part], best.logprobs[row, part], strict=True)
                likeliest = [
                    tuple(zip(pieces(tokenizer, which.tolist()), p.tolist(), strict=True))
                    for which, p in expected
                    if top
                ]
                found[i] = Scored(
                    rows[i][1],
                    tuple(texts[i][1]),
                    pieces(tokenizer, texts[i][1]),
                    tuple(best.target_logprobs[row, part].tolist()),
                    tuple(likeliest),
                )
            bar.update(len(batch))
    return [found[i] for i in range(len(rows))]


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token; the tokenizer's own name for a part of a character."""
    found = []
    for i in ids:
        text = tokenizer.decode([i], skip_special_tokens=False)
        whole = text and "\ufffd" not in text
        found.append(text if whole else tokenizer.convert_ids_to_tokens(i))
    return tuple(found)


def record(scored: Scored, prompt: str, top: int) -> dict[str, Any]:
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


def show(scored: Scored, top: int) -> None:
    """The tokens with their log-probabilities, in colour or as a table, and what they come to."""
    from rich.text import Text

    from ft.cli import console

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
