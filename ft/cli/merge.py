"""Merge an adapter into its base and check that the logits agree."""

import argparse
from pathlib import Path

from ft.cli import console


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft merge``."""
    parser.epilog = "example: ft merge runs/mtnt_lora merged/"
    parser.add_argument("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the merged model")
    parser.add_argument(
        "--dtype",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of the merged weights; auto: as the base is stored",
    )
    console.adapter_options(parser)


def command(
    run_folder: str,
    out: Path,
    dtype: str,
    any_base: bool,
    model: str | None,
    template: str | None,
) -> None:
    """Write a plain transformers model, and say how far it is from base and adapter."""
    from ft.runs import merge, opened, vllm

    run = opened.finished(run_folder, any_base=any_base, model=model, template=template)
    print(merge.merge_run(run, out, dtype))
    print(vllm.line(run.folder, out))
