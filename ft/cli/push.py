"""Publish adapter, card and record of a run on the Hub."""

import argparse
from pathlib import Path


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft push``."""
    parser.epilog = "example: ft push runs/mtnt_lora --repo NAME/REPO"
    add = parser.add_argument
    add("run_folder", metavar="RUN", type=Path, help="a run's folder")
    add("--repo", required=True, metavar="NAME/REPO", help="model repository")
    add("--public", action="store_true", help="a new repository is private without this")
    add("--revision", help="branch to commit to")


def command(run_folder: Path, repo: str, public: bool, revision: str | None) -> None:
    """Publish a run."""
    from ft.runs import hub

    print(hub.push(run_folder, repo, private=not public, revision=revision))
