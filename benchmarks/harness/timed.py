"""What peers that train for a given time share: the job, a schedule that ends with the time, what they report.

Peers run this in environments of their own: nothing of ``ft`` is imported.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker import peak_mib, versions

ENDLESS = 10**6  # steps; the time ends sooner


@dataclasses.dataclass(frozen=True)
class Job:
    """What a peer is to do: a JSON file that the driver names on the command line."""

    model: str  # Hugging Face folder of the base model
    rows: str  # JSON lines with "input_ids" and "labels"
    rows_sha256: str
    output: str  # folder for the adapter, ``result.json`` and the log
    precision: str  # "fp32", or "auto": what the peer chooses by itself
    seconds: float  # from the first step on
    max_length: int  # tokens; no row is longer
    settings: dict[str, Any] | None  # those of the run that it is compared with; none: its own

    def read_rows(self) -> list[dict[str, list[int]]]:
        """The encoded examples."""
        return [json.loads(line) for line in Path(self.rows).read_text().splitlines()]

    def arguments(self) -> dict[str, Any]:
        """What every ``SFTConfig`` is given: where to run, no end but the time's, and the run's settings."""
        fixed = {
            "output_dir": self.output,
            "use_cpu": True,  # without it TRL's default, bf16, is refused where there is no GPU
            "max_length": self.max_length,
            "max_steps": ENDLESS,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
        }
        if self.precision == "fp32":
            fixed["bf16"] = False
        if own := self.settings:
            names = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")
            fixed |= {name: own[name] for name in names}
        return fixed

    def lora(self) -> dict[str, Any]:
        """The adapter of the run by PEFT's names; nothing where the peer has its own settings."""
        names = ("r", "lora_alpha", "lora_dropout", "target_modules")
        return {name: self.settings[name] for name in names} if self.settings else {}


class Clock:
    """The seconds since the first step, and a linear schedule over them.

    A schedule counts steps. How many fit into a time is known when it is over; so here the rate falls
    with the time that has passed, to 0 at its end, as it would with the right number of steps. The
    warm-up is a number of steps or a share of the time.
    """

    def __init__(
        self,
        seconds: float,
        warmup_steps: int = 0,
        warmup_share: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds, self._now = seconds, now
        self._warmup_steps, self._warmup_share = warmup_steps, warmup_share
        self._start: float | None = None
        self._warm: float | None = None  # share of the time that had passed when the warm-up ended

    def begin(self) -> None:
        """Start, if that was not done."""
        if self._start is None:
            self._start = self._now()

    @property
    def passed(self) -> float:
        """Seconds since the first step; 0 before it."""
        return 0.0 if self._start is None else self._now() - self._start

    @property
    def over(self) -> bool:
        """Whether the time has passed."""
        return self.passed >= self.seconds

    def factor(self, step: int) -> float:
        """What the rate is multiplied with in the step after ``step`` others, 0 to 1."""
        done = min(1.0, self.passed / self.seconds)
        rising = done / self._warmup_share if self._warmup_share else 1.0
        if self._warmup_steps:
            rising = step / self._warmup_steps
        if rising < 1:
            return rising
        if self._warm is None:
            self._warm = done
        return (1 - done) / (1 - self._warm) if self._warm < 1 else 0.0


def open_job() -> Job:
    """The job named on the command line; what libraries print goes to the log. Call before importing them."""
    os.dup2(2, 1)
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def train(trainer: Any, job: Job, clock: Clock) -> None:
    """Train until the time is over; leave the adapter and ``result.json`` in the job's folder."""
    import torch
    from torch.optim.lr_scheduler import LambdaLR

    trainer.create_optimizer()
    trainer.lr_scheduler = LambdaLR(trainer.optimizer, clock.factor)
    ended = _until(clock)
    trainer.add_callback(ended)
    trainer.train()
    seconds = clock.passed
    model, state = trainer.model, trainer.state
    model.save_pretrained(str(Path(job.output) / "adapter"), save_embedding_layers=False)
    base = model.get_input_embeddings().weight.dtype
    adapters = {str(p.dtype) for p in model.parameters() if p.requires_grad}
    losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
    config = model.peft_config["default"]
    result = {
        "steps": state.global_step,
        "seconds": seconds,
        "first_step_seconds": ended.first,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "weights": str(base).removeprefix("torch."),
        "adapter_weights": ", ".join(sorted(adapters)).replace("torch.", ""),
        "autocast_bf16": bool(trainer.args.bf16),
        "optim": str(getattr(trainer.args.optim, "value", trainer.args.optim)),
        "learning_rate": trainer.args.learning_rate,
        "examples_per_step": trainer.args.per_device_train_batch_size
        * trainer.args.gradient_accumulation_steps,
        "r": config.r,
        "lora_alpha": config.lora_alpha,
        "target_modules": sorted(config.target_modules),
        "threads": torch.get_num_threads(),
        "peak_mib": peak_mib(),
        "versions": versions(),
    }
    (Path(job.output) / "result.json").write_text(json.dumps(result, indent=2))


def checkpointing(config: Any, on: bool) -> dict[str, bool]:
    """The argument of an ``SFTConfig`` class that recomputes activations; transformers 5.22 renamed it."""
    renamed = "activation_checkpointing" in config.__dataclass_fields__
    return {f"{'activation' if renamed else 'gradient'}_checkpointing": on}


def _until(clock: Clock) -> Any:
    """A callback that starts the clock with the first step and ends the training when it is over."""
    from transformers import TrainerCallback

    class Until(TrainerCallback):
        first = 0.0  # seconds of the first step, which may compile

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.first = clock.passed
            control.should_training_stop = clock.over

    return Until()
