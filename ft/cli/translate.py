"""Translate text, lines of a file, or standard input."""

import argparse
import sys
from pathlib import Path

from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft translate``."""
    parser.epilog = 'example: ft translate runs/mtnt_lora "idk what ur talking about lol"'
    add = parser.add_argument
    add("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    add("--precision", default="auto", help="auto, fp32, bf16 or nf4 (default auto)")
    add("--max-new-tokens", type=int, default=256, help="longest answer (default 256)")
    add("text", nargs="*", help="texts; without any, standard input is read")
    add("--file", type=Path, help="translate each line of this file")
    add("--base", action="store_true", help="the base model's answer instead")


def command(
    run_folder: str,
    precision: str,
    max_new_tokens: int,
    text: list[str],
    file: Path | None,
    base: bool,
) -> None:
    """Lines in, lines out."""
    from ft.generate.answers import greedy
    from ft.runs import opened

    if text and file:
        raise UserError("give texts or --file, not both")
    if file:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: {error}") from None
    else:
        lines = text or [line.rstrip("\n") for line in sys.stdin]
    wanted = [i for i, line in enumerate(lines) if line.strip()]
    if not wanted:
        raise UserError("there is nothing to translate: the input is empty")
    run = opened.finished(run_folder)
    o = opened.load(run, precision, tuned=not base)
    found = greedy(
        o.model,
        o.tokenizer,
        run.template,
        [{"source": lines[i]} for i in wanted],
        max_new_tokens=max_new_tokens,
        progress=len(wanted) > 8,
    )
    answers = dict(zip(wanted, found, strict=True))
    for i in range(len(lines)):  # an empty line stays one, so that lines still correspond
        print(answers.get(i, ""))
