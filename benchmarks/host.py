"""The trainer's own milliseconds a step: all that is not the row's forward and backward, whose graphs do nothing here.

Command   python benchmarks/host.py
Hardware  one CPU core with nothing else running
Time      half a minute

A tiny Gemma 2 with the 26 layers and 364 adapter matrices of the 2B. What is left of a step is the loop: fetching a row,
the head between the two graphs, clipping, the optimizer, copies of the adapter, counting, the log. A GPU need not wait for it
unless its own step is shorter: the next one is launched before it has ended.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support import tiny, toy
from transformers.trainer_callback import TrainerCallback

from ft import train
from ft.kernels import attention, cross_entropy
from ft.models import lora
from ft.runs import folder, record

LAYERS, STEPS, WARM = 26, 120, 20


class Nothing:
    """A graph whose replay is free, from the second on."""

    def capture(self, run: Any, beside: Any = None) -> None:
        """Keep what the first replay shows."""
        self.run = run

    def replay(self) -> None:
        """Run what was captured, once."""
        run, self.run = self.run, lambda: None
        run()

    @staticmethod
    def lack(share: float, beside: Any = None) -> str:
        """There is room."""
        return ""


class Clock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the clock."""
        self.ends.append(time.perf_counter())


def main() -> None:
    """Train, and print the median of a step."""
    model = tiny.build("gemma2", num_hidden_layers=LAYERS, layer_types=["full_attention"] * LAYERS)
    attention.install(model)
    cross_entropy.install(model)
    clock = Clock()
    with tempfile.TemporaryDirectory() as place:
        train.sft(
            lora.attach(model, r=4, alpha=8),
            tiny.tokenizer(),
            toy.examples(8) * STEPS,  # one row, again and again
            run=record.begin(
                folder.Target(Path(place) / "run"), recipe=__file__, config_yaml="{}\n", seed=0
            ),
            validate=lambda: 6.0,
            learning_rate=1e-3,
            shuffle=False,
            packing=True,
            row_length=8192,
            eval_steps=10**6,
            save_steps=10**6,
            callbacks=[clock],
            make_graph=Nothing,
        )
    taken = [b - a for a, b in zip(clock.ends[WARM:], clock.ends[WARM + 1 :], strict=False)]
    print(f"{1e3 * statistics.median(taken):.1f} ms a step, at least {1e3 * min(taken):.1f}")


if __name__ == "__main__":
    main()
