"""Translate text, lines of a file, or standard input."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ft.cli import console
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
    add("--num-beams", type=int, help="answers looked at together (default: as the run's scores)")
    add(
        "--mbr",
        type=int,
        metavar="N",
        help="of N answers drawn, the one most like the others: several times as slow as beams",
    )
    add("--base", action="store_true", help="the base model's answer instead")
    console.adapter_options(parser)


def command(
    run_folder: str,
    precision: str,
    max_new_tokens: int,
    text: list[str],
    file: Path | None,
    base: bool,
    any_base: bool = False,
    num_beams: int | None = None,
    mbr: int | None = None,
    model: str | None = None,
    template: str | None = None,
) -> None:
    """Texts in, texts out, in the run's direction; of a file and of standard input a line for each line."""
    from ft.generate.samplers import Beam, Greedy
    from ft.models.load import load_tokenizer
    from ft.runs import opened
    from ft.score import decoding, translation

    if text and file:
        raise UserError("give texts or --file, not both")
    if num_beams is not None and mbr is not None:
        raise UserError("give --num-beams or --mbr, not both")
    if mbr is not None and mbr < 2:
        raise UserError(f"--mbr {mbr}: it must be 2 or more: answers are compared")
    sampler = None if num_beams is None else Beam(num_beams) if num_beams != 1 else Greedy()
    lines, where = (text, "text ") if text else _lines(file)
    wanted = [i for i, line in enumerate(lines) if line.strip()]
    if not wanted:
        raise UserError("there is nothing to translate: the input is empty")
    run = opened.finished(run_folder, any_base=any_base, model=model, template=template)
    if run.task != "translation":
        raise UserError(
            f"template {run.template.name!r} has no {{source}} to translate: give a pair such as en-fr, or a YAML "
            "file with {source}"
            if run.alone
            else f"{run_folder} did not learn to translate ({run.task}): ask it with ft chat"
        )
    tokenizer = load_tokenizer(run.base if base else run.weights)
    _refuse_control_tokens(lines, where, tokenizer)
    o = opened.load(run, precision, tuned=not base, tokenizer=tokenizer)
    rows = [{"source": lines[i]} for i in wanted]
    asked, most = (o.model, o.tokenizer, run.template, rows), {"max_new_tokens": max_new_tokens}
    if mbr:
        found = decoding.minimum_risk(*asked, n=mbr, **most)
    else:
        found = translation.translate(*asked, sampler=sampler or run.sampler, **most)
    if not text:  # line n of what comes out translates line n of what came in
        broken = sum("\n" in answer for answer in found)
        found = [" ".join(answer.split("\n")) for answer in found]
        if broken:
            print(f"note: line breaks in {broken} answers are written as spaces", file=sys.stderr)
    answers = dict(zip(wanted, found, strict=True))
    for i in range(len(lines)):  # an empty line stays one, so that lines still correspond
        print(answers.get(i, ""))


def _lines(file: Path | None) -> tuple[list[str], str]:
    r"""The lines of a file or of standard input, ended by "\n" only, and what stands before a line's number."""
    from ft.data import encodings
    from ft.files import read_bytes

    if file:
        data = read_bytes(file)
    else:
        stream: Any = sys.stdin
        data = stream.buffer.read() if hasattr(stream, "buffer") else stream.read().encode()
    name = str(file) if file else "standard input"
    lines, bad = encodings.text_lines(data, name)
    if bad:
        number, why = min(bad.items())
        raise UserError(f"{name}:{number}: {why}")
    return [line.removesuffix("\r") for line in lines], f"{name}:"


def _refuse_control_tokens(lines: list[str], where: str, tokenizer: Any) -> None:
    """Raise ``UserError``, as training does, for the first line that holds a control token."""
    from ft.text import control

    try:
        control.refuse([{"source": line} for line in lines], tokenizer)
    except UserError as error:
        raise UserError(str(error).replace("row ", where, 1)) from None
