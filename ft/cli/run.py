"""Train by a recipe, with its own flags; `accelerate launch` where several GPUs train together."""

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from ft import files
from ft.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft run``."""
    parser.epilog = (
        "example: ft run mtnt_lora --max-steps 4. `ft recipes` lists the names, "
        "`ft run mtnt_lora --help` the flags of one."
    )
    add = parser.add_argument
    none = argparse.SUPPRESS
    helps = "this, or behind a recipe its own flags"
    add("-h", "--help", nargs=0, action=_Help, dest=none, default=none, help=helps)
    add("recipe", type=files.recipe, help="a recipe's name or file; its own flags may follow")
    add("--processes", type=int, default=1, help="GPUs that train together (default 1)")
    add("--fsdp", action="store_true", help="they share out the model (accelerate_fsdp.yaml)")


def command(recipe: Path, rest: list[str], processes: int, fsdp: bool) -> None:
    """Start the recipe, of several processes their launcher.

    One process needs none: Accelerate's would take all GPUs, and end a user's mistake with a traceback and status 1.
    """
    if not recipe.is_file():
        raise files.no_recipe(recipe)
    if processes < 1:
        raise UserError(f"--processes {processes}: must be 1 or more")
    launch = []
    if fsdp or processes > 1:
        file = files.bundled() / f"accelerate_{'fsdp' if fsdp else 'config'}.yaml"
        launch = ["-m", "accelerate.commands.launch", "--config_file", str(file)]
        launch += ["--num_processes", str(processes)]
    os.environ["FT_COMMAND"] = shlex.join(["ft", *sys.argv[1:]])  # for the run's record
    _become([*launch, str(recipe), *rest])


class _Help(argparse.Action):
    """Of the recipe, where one was named before."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, *_: Any) -> None:
        recipe = namespace.recipe
        if recipe and recipe.is_file():
            _become([str(recipe), "--help"])
        parser.print_help()
        parser.exit()


def _become(words: list[str]) -> NoReturn:
    """Go on as Python with these words: its signals and its exit status are this command's."""
    sys.stdout.flush()
    if os.name == "nt":  # where exec gives the terminal back to the shell at once
        raise SystemExit(subprocess.call([sys.executable, *words]))
    os.execv(sys.executable, [sys.executable, *words])
