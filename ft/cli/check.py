"""Prove a run before any money is spent: settings, packages, Hub, data, tokens, memory."""

import argparse
import dataclasses
import sys
from pathlib import Path

from ft import files
from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft check``."""
    parser.epilog = (
        "example: ft check recipes/dolly_qlora.py --model google/gemma-3-4b-it --template chat "
        "--data my.jsonl --gpu 24GB. Exit status: 0; 2 for an error; with --strict 1 for a warning."
    )
    add = parser.add_argument
    add("recipe", type=files.recipe, help="a recipe's name or file; its own flags may follow")
    add("--gpu", metavar="SIZE", help="what it is to fit: 24GB, or a card such as rtx4090")
    add("--all", dest="everything", action="store_true", help="encode all rows, not a sample")
    add("--strict", action="store_true", help="exit with 1 for a warning")
    add("--offline", action="store_true", help="ask the Hub nothing; its cache must do")
    add(
        "--weights",
        action="store_true",
        help="load the model too: finite and sane loss, packed = padded, merged = adapter, …",
    )
    add("--json", metavar="FILE", type=Path, help="write what was seen there too")


def command(
    recipe: Path,
    rest: list[str],
    gpu: str | None,
    everything: bool,
    strict: bool,
    offline: bool,
    weights: bool,
    json: Path | None,
) -> None:
    """Print what each check saw, and the first example with its mask."""
    from ft.files import check_new_file, write_json
    from ft.plan import checks, devices
    from ft.runs import opened, proof

    if json:
        check_new_file(json)
    module, config = opened.recipe(recipe, rest)
    case = checks.case_of(
        config,
        module.rows,
        getattr(module, "template", None),
        recipe,
        encode=getattr(module, "encode", None),
        device=devices.named(gpu, "--gpu") if gpu else None,
        everything=everything,
        offline=offline,
    )
    report = checks.look(case)
    if weights and not report.errors:
        from ft.plan import check_weights

        print(report, flush=True)
        more = check_weights.look(case)
        print("\n".join(map(str, more)))
        if case.proven:
            print(proof.keep(case.proven, [dataclasses.asdict(each) for each in more]))
        report = checks.Report((*report.seen, *more), case)
    else:
        why = "not looked at: --weights" if not weights else "not looked at: see the errors"
        report = checks.Report((*report.seen, checks.Seen("--", "weights", why)), case)
        print(report)
    print(report.example(colour=sys.stdout.isatty()), end="\n" * bool(case.encoded))
    if json:
        write_json(json, report.to_list())
    if report.errors:
        raise UserError("\n".join(report.errors))
    if strict and report.warned:
        raise SystemExit(1)
