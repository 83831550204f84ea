"""Recipes one after the other, as a program that a launcher starts in several processes."""

import json
import sys
from pathlib import Path
from unittest import mock

from support import recipe_runs

from ft import config, machine


def main(jobs: Path) -> None:
    """Run the recipes and settings that the file lists."""
    with mock.patch.object(machine, "matrix_peak", return_value=1e9):  # not to be measured
        for stem, words in json.loads(jobs.read_text()):
            module = recipe_runs.load(next(p for p in recipe_runs.RECIPES if p.stem == stem))
            module.main(config.parse(module.Config, words))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
