"""What a visible pretraining loop leans on: its clock, a learning rate, and checkpoints to go on from exactly."""

import hashlib
import json
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

from ft import files, machine
from ft.errors import UserError
from ft.machine import is_main
from ft.runs import checkpoints
from ft.runs.folder import Run

if TYPE_CHECKING:
    from torch import Tensor

Schedule = Literal["constant", "linear", "cosine"]
MODEL, OPTIMIZER, DONE = "model.safetensors", "optimizer.safetensors", "done.json"


def digest(value: Any) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def rate(
    step: int, progress: float, *, peak: float, warmup_steps: int, schedule: Schedule
) -> float:
    """The learning rate of a step, the first of which is 0.

    It rises to ``peak`` in ``warmup_steps`` and falls with ``progress``, the share of the run that
    is done, to 0 at its end, along a line or half a cosine, or stays.
    """
    done = min(max(progress, 0.0), 1.0)
    falls = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return peak * min(1.0, (step + 1) / max(1, warmup_steps)) * falls[schedule]


class Meter:
    """The clock of a loop; only the time between ``begin`` and ``end`` of its steps counts, and what a GPU
    still takes for them when a line is logged.

    ``step_tokens`` are those of an optimizer step in all processes, ``flops`` those of a token. With
    ``max_minutes`` the run is over after as many, with ``max_steps`` after as many steps. ``step`` and
    ``seconds`` are of a run that goes on.
    """

    def __init__(
        self,
        accelerator: Any,
        run: Run,
        *,
        step_tokens: int,
        flops: float,
        max_steps: int,
        max_minutes: float | None,
        step: int = 0,
        seconds: float = 0.0,
        best: dict[str, Any] | None = None,
    ) -> None:
        self.accelerator, self.run = accelerator, run
        self.step_tokens, self.flops = step_tokens, flops
        self.max_steps, self.max_minutes = max_steps, max_minutes
        self.best = best or {}  # the best validation, and its step
        self.step, self.seconds, self.peak, self.mean = step, seconds, 0.0, float("nan")
        self.asked = SimpleNamespace(signal=None)  # by a signal to this process, at any time
        self.signal: int | None = None  # that came to whichever process, as all know
        self.since_log: list[Tensor] = []  # losses; to look at one waits for the device
        self.behind = 0.0  # seconds that a GPU still took when a line was logged

    def __enter__(self) -> "Meter":
        from tqdm import tqdm

        known = None if self.max_minutes else self.max_steps
        hidden = not is_main()
        self.bar = tqdm(total=known, initial=self.step, desc="train", unit="step", disable=hidden)
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()

    @property
    def progress(self) -> float:
        """The share of the run that is done, by steps or by time; 1 at its end, or above."""
        by_time = self.seconds / 60 / self.max_minutes if self.max_minutes else 0.0
        return max(self.step / self.max_steps, by_time)

    @property
    def over(self) -> bool:
        """Whether no step is to follow: the run is done, or a signal came."""
        return self.progress >= 1 or self.signal is not None

    def measure_peak(self) -> None:
        """Look how fast matrix products are; the best so far counts, as other programs may run."""
        import torch

        half = self.accelerator.mixed_precision == "bf16"
        dtype = torch.bfloat16 if half else torch.float32
        rate = machine.matrix_peak(self.accelerator.device, dtype)
        self.peak = max(self.peak, rate * self.accelerator.num_processes)

    def better(self, found: dict[str, Any]) -> bool:
        """Whether a validation is the best so far, which is then remembered."""
        if found["eval_loss"] >= self.best.get("eval_loss", math.inf):
            return False
        self.best = {**found, "step": self.step}
        return True

    def begin(self) -> None:
        """A step begins."""
        self.started = time.perf_counter()

    def end(self, loss: "Tensor") -> None:
        """A step is done; all processes agree on its time, and on whether a signal came to one."""
        import torch

        took = time.perf_counter() - self.started + self.behind
        came, self.behind = self.asked.signal is not None, 0.0
        if self.accelerator.num_processes > 1:
            mine = torch.tensor([took, float(came)], device=self.accelerator.device)
            took, came = self.accelerator.reduce(mine, "mean").tolist()
        self.step, self.seconds = self.step + 1, self.seconds + took
        if came:
            self.signal = self.asked.signal or signal.SIGTERM
        self.since_log.append(loss)
        self.bar.update()

    def log(self, **values: float) -> None:
        """A line of metrics with the mean loss since the last one.

        Raises ``UserError`` for a loss that is not finite, naming its step.
        """
        import torch

        start = time.perf_counter()
        losses = self.accelerator.reduce(torch.stack(self.since_log), "mean").tolist()
        self.since_log = []
        self.behind += time.perf_counter() - start
        for step, loss in enumerate(losses, self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss became {loss} at step {step}; the last complete checkpoint is "
                    "untouched. Try a lower --learning-rate, a longer --warmup-steps or --precision fp32."
                )
        self.mean = sum(losses) / len(losses)
        figures = self.figures()
        self.run.log({"step": self.step, "loss": self.mean, **values, **figures})
        shown = {"loss": f"{self.mean:.3f}", "tok/s": f"{figures['tokens_per_second']:,.0f}"}
        shown |= {"mfu": f"{figures['mfu']:.0%}"} if figures["mfu"] is not None else {}
        self.bar.set_postfix(shown, refresh=False)

    def figures(self) -> dict[str, Any]:
        """Tokens, seconds of training steps, and their rates."""
        tokens = self.step * self.step_tokens
        seconds = self.seconds + self.behind
        rate = tokens / seconds if seconds else 0.0
        return {
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "tokens_per_second": round(rate, 1),
            "mfu": round(rate * self.flops / self.peak, 4) if self.peak else None,
        }


def save(
    folder: Path,
    *,
    model: Any,
    optimizers: Sequence[Any],
    done: dict[str, Any],
    made_with: dict[str, Any],
) -> None:
    """Write ``checkpoint-N`` of a run after ``done["step"]`` steps, whole or not at all; older ones go,
    but for that of ``done["best"]``.

    ``done`` is what ``restore`` gives back, ``made_with`` what may not differ then.
    """
    from safetensors.torch import save_file, save_model

    with files.new_dir(folder / f"checkpoint-{done['step']}") as place:
        save_model(model, str(place / MODEL))
        tensors = {
            f"{at}.{parameter}.{name}": tensor
            for at, optimizer in enumerate(optimizers)
            for parameter, state in optimizer.state_dict()["state"].items()
            for name, tensor in state.items()
        }
        save_file(tensors, place / OPTIMIZER)
        files.write_json(place / DONE, done)
        checkpoints.seal(place, made_with)
    checkpoints.prune(folder, [done["best"]["step"]] if done.get("best") else [])


def restore(place: Path, *, model: Any, optimizers: Sequence[Any] = ()) -> dict[str, Any]:
    """Fill model and optimizers from a checkpoint, and return its ``done``."""
    from safetensors.torch import load_file, load_model

    load_model(model, place / MODEL)
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, tensor in load_file(place / OPTIMIZER).items():
        at, parameter, name = key.split(".")
        if int(at) < len(states):
            states[int(at)].setdefault(int(parameter), {})[name] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return json.loads((place / DONE).read_text(encoding="utf-8"))
