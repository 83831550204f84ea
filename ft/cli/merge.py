"""Merge an adapter into its base and check that the logits agree."""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft merge``."""
    parser.epilog = "example: ft merge runs/mtnt_lora merged/"
    parser.add_argument("run_folder", metavar="RUN", help="a run's folder, or a Hub repository")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder for the merged model")
    parser.add_argument(
        "--any-base",
        action="store_true",
        help="merge into the base that is there, though its weights are not those of the training",
    )


def command(run_folder: str, out: Path, any_base: bool) -> None:
    """Write a plain transformers model, and say how far it is from base and adapter."""
    from ft.runs import merge, opened

    print(merge.merge_run(opened.finished(run_folder), out, any_base=any_base))
