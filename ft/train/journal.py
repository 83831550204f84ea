"""What a training run says while it runs; imports transformers at its top, so only `train` imports it."""

import math
import signal
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from tqdm import tqdm
from transformers.trainer_callback import TrainerCallback

from ft import machine
from ft.kernels import lora_copies
from ft.machine import agreed, is_main, say
from ft.models import parameters
from ft.runs import checkpoints
from ft.runs.folder import Run
from ft.train import first_batch


class Journal(TrainerCallback):
    """Progress bar, validation lines as the tutorials print them, metrics.jsonl, and the wish to stop."""

    def __init__(
        self,
        run: Run,
        validate: Callable[[], float],
        eval_steps: int,
        keep_best: bool = False,
        patience: int | None = None,
        accept_loss: bool = False,
        scores: Callable[[], dict[str, float]] | None = None,
        best_by: str = "loss",
    ) -> None:
        self.run, self.validate, self.eval_steps = run, validate, eval_steps
        self.keep_best, self.patience, self.accept_loss = keep_best, patience, accept_loss
        self.scores, self.best_by = None if best_by == "loss" else scores, best_by
        self.best_step: int | None = None
        self.best: dict[str, float] = {}  # what that validation found
        self.since_best = 0  # validations
        self.signal: int | None = None  # that came to this process
        self.stopped = False  # by one, as all processes agree
        self.losses: list[float] = []
        self.start_loss = self.eval_loss = float("nan")
        self.seconds = 0.0  # spent in training steps, validation left out
        self.peak = 0.0

    def attach(self, trainer: Any) -> None:
        """Know the trainer whose tokens and log are reported."""
        self.trainer = trainer
        trainer.wants_to_stop = lambda: self.signal is not None
        self.per_token, self.per_supervised = parameters.training_flops(trainer.model)
        self.moved = False  # any weight

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.dtype = torch.bfloat16 if args.bf16 else torch.float32
        self.adapter = lora_copies.trained(self.trainer.model)  # as it is sharded by now
        lora_copies.refresh(
            self.trainer.model, self.adapter
        )  # a graph of the first step reads them too
        self.run.rewind(state.global_step)
        self.trainer.accelerator.wait_for_everyone()
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc="train",
            unit="step",
            disable=not is_main(),
        )
        if state.global_step == 0:
            self._validate(state)
            self.start_loss = self.eval_loss
            say(f"Start, validation loss: {self.eval_loss}")
        else:
            self._recall(state)
            say(f"Resumed after step {state.global_step}")
            control.should_training_stop = self._ends()  # as it had before it was killed
        start, accept = self.start_loss, self.accept_loss or state.global_step > 0
        seen = first_batch.check(self.trainer.model, start, self.validate, accept=accept)
        self.run.note(checks=[*self.run.record.get("checks", []), seen])
        self._mark()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.order.epoch = int(state.epoch or 0)

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        lora_copies.refresh(self.trainer.model, self.adapter)  # in the base's precision

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self.since
        alone = self.trainer.accelerator.num_processes == 1
        if self.signal if alone else self.trainer.stops:
            self.stopped = control.should_save = control.should_training_stop = True
        self.trainer.awaited = state.global_step % self.eval_steps == 0
        self._mark()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        now = time.perf_counter()  # a GPU may have been waited for
        self.seconds, self.since = self.seconds + now - self.since, now
        self.losses.append(logs["loss"])
        self.moved |= bool(logs.get("learning_rate")) and bool(logs.get("grad_norm"))
        shown = {"loss": f"{logs['loss']:.3f}", "tok/s": f"{self._rate(self.tokens):.0f}"}
        if mfu := self._mfu():
            shown["mfu"] = f"{mfu:.0%}"
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(state.global_step - self.bar.n)
        self.run.log(
            {
                "step": state.global_step,
                "loss": logs["loss"],
                "grad_norm": logs.get("grad_norm"),
                "learning_rate": logs.get("learning_rate"),
                "epoch": state.epoch,
                "tokens": self.tokens,
                "seconds": round(self.seconds, 3),
                "mfu": self._mfu(),
            }
        )
        # a step that a deadline makes the last is validated too; one that a signal does is not waited for
        over = control.should_training_stop and not self.stopped
        last = state.global_step == state.max_steps or over
        if state.global_step % self.eval_steps == 0 or last:
            mean = statistics.fmean(self.losses)
            self.losses = []
            found = self._validate(state)
            self.bar.clear()
            also = "".join(f" - {k[5:]}: {v:.1f}" for k, v in found.items() if k != "eval_loss")
            step = state.global_step
            say(f"STEP {step} training loss: {mean} - eval loss: {self.eval_loss}{also}")
            self._judge(step, found)
            if self.keep_best and self.best_step == state.global_step:
                control.should_save = True
            control.should_training_stop |= self._ends()
            self._mark()

    def _ends(self) -> bool:
        """Whether as many validations as were asked for have not been better, and say so."""
        ends = self.patience is not None and self.since_best >= self.patience
        if ends:
            say(f"no validation was better in {self.since_best}: the training ends here")
        return ends

    def _judge(self, step: int, found: dict[str, float]) -> None:
        """Compare what the last validation found with the best one after a step."""
        if self._better(found):
            self.best_step, self.best, self.since_best = step, found, 0
            self.trainer.best_step = step if self.keep_best else None
        else:
            self.since_best += 1

    def _better(self, found: dict[str, float]) -> bool:
        """Than the best so far: a lower loss, or more of the score that is asked for."""
        sign = -1 if self.best_by == "loss" else 1
        new, best = (
            sign * each.get(f"eval_{self.best_by}", math.nan) for each in (found, self.best)
        )
        return new > (-math.inf if math.isnan(best) else best)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.close()

    def signalled(self) -> int | None:
        """The signal that came, to whichever process: all agree, as it reaches each at another time."""
        if agreed(self.signal is not None):
            self.signal = self.signal or signal.SIGTERM
        return self.signal

    def summary(self) -> dict[str, Any]:
        """The figures of ``ft.train.sft.Trained``; rates are of training steps alone."""
        return {
            "seconds": self.seconds,
            "tokens_per_second": self._rate(self.tokens),
            "supervised_tokens_per_second": self._rate(self.trainer.supervised_seen),
            "mfu": self._mfu(),
            "start_loss": self.start_loss,
            "eval_loss": self.eval_loss,
            "best_step": self.best_step,
            "best_loss": self.best.get("eval_loss"),
            "best_by": self.best_by,
            "best_score": self.best.get(f"eval_{self.best_by}"),
        }

    @property
    def tokens(self) -> int:
        """Of all processes and steps that were read."""
        return self.trainer.tokens_seen

    def _mark(self) -> None:
        self.since = time.perf_counter()

    def _rate(self, tokens: int) -> float:
        return tokens / self.seconds if self.seconds else 0.0

    def _mfu(self) -> float | None:
        supervised = self.trainer.supervised_seen
        flops = self.tokens * self.per_token + supervised * self.per_supervised
        return round(self._rate(flops) / self.peak, 4) if self.seconds and self.peak else None

    def _validate(self, state: Any) -> dict[str, float]:
        # the best rate seen so far: another program may be using the processor at any one time
        rate = machine.matrix_peak(self.trainer.args.device, self.dtype)
        self.peak = max(self.peak, rate * self.trainer.accelerator.num_processes)
        self.eval_loss = self.trainer.beside_graphs(self.validate)
        found = {"eval_loss": self.eval_loss}
        if self.scores and state.global_step:  # before the first step nothing can be kept
            scores = self.trainer.beside_graphs(self.scores)
            found |= {f"eval_{name}": value for name, value in scores.items()}
        self.run.log({"step": state.global_step, **found})
        trainer = self.trainer
        trainer.callback_handler.on_log(trainer.args, state, trainer.control, dict(found))
        return found

    def _recall(self, state: Any) -> None:
        """What came before a resume, from metrics.jsonl: validations, the best of them, unreported losses."""
        for line in self.run.metrics():
            if "eval_loss" in line:
                self.eval_loss, self.losses = line["eval_loss"], []
                if line["step"] == 0:
                    self.start_loss = line["eval_loss"]
                elif self._is_there(line):
                    self._judge(line["step"], line)
            else:
                self.losses.append(line["loss"])

    def _is_there(self, line: dict[str, Any]) -> bool:
        """Whether a validation before a resume can still be the best: its checkpoint can be kept."""
        step = line["step"]
        place = self.run.folder / f"checkpoint-{step}"
        if not self.keep_best or not checkpoints.fault(place) or not self._better(line):
            return True
        say(f"the checkpoint of step {step}, the best until then, is not whole: it cannot be kept")
        return False
