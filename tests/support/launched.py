"""Recipes one after the other, as a program that a launcher starts in several processes."""

import json
import sys
from pathlib import Path
from unittest import mock

from support import recipe_runs
from support.replayed import Replayed

from ft import config, machine
from ft.rewards.logprobs import LogProbs


def main(jobs: Path, graphs: bool = False) -> None:
    """Run the recipes and settings that the file lists; what learns from rewards with rows as graphs, as on a GPU."""
    answer = LogProbs.answer

    def answers(trainer: LogProbs) -> None:
        answer(trainer)
        if graphs:
            trainer.use_graphs(Replayed)

    speed = mock.patch.object(machine, "matrix_peak", return_value=1e9)  # not to be measured
    with speed, mock.patch.object(LogProbs, "answer", answers):
        for stem, words in json.loads(jobs.read_text()):
            module = recipe_runs.load(next(p for p in recipe_runs.RECIPES if p.stem == stem))
            module.main(config.parse(module.Config, words))


if __name__ == "__main__":
    main(Path(sys.argv[1]), graphs=sys.argv[2:] == ["graphs"])
