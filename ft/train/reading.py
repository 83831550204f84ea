"""What of the trainer has to do with a step's loss and gradient norm: when a GPU is waited for, to read them."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.train import first_batch
from ft.train.graphs import Graphs

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Unread:
    """What a step came to in all processes, on its way from a GPU."""

    step: int
    numbers: "Tensor"  # [5]: loss, tokens, supervised ones, who wants to stop, norm
    ready: Any = None  # an event; nothing where they are there
    log: Callable[[float, float], None] | None = None  # for loss and norm, once they are read


class Reading:
    """A part of ``Trainer``: a step's loss and norm are read before they are needed, and not earlier.

    With them comes what several processes tell one another, so that they wait for a GPU once too. What is not
    finite must change no weight. Where rows are graphs, AdamW sees that on the GPU itself, and the processor
    reads while the GPU computes the next step: else it would wait in each step, and the GPU for it afterwards.
    Before a validation, a checkpoint and the end they are read at once.
    """

    graphs: Graphs | None
    args: Any
    model: Any
    state: Any
    control: Any
    accelerator: Any
    optimizer: Any
    optimizer_name: str
    log: Callable[..., None]
    _tr_loss: Any
    _total_loss_scalar: float
    _globalstep_last_logged: int
    unread: Unread | None
    awaited: bool  # whether something needs the numbers of this step: a validation
    read_loss: float
    tokens: int  # in this process, of the step that runs
    supervised: int
    tokens_seen: int  # in all processes, as far as steps were read
    supervised_seen: int
    wants_to_stop: Callable[[], bool]  # this process
    stops: bool  # whether any process wanted to, when the last step that was read ended

    def _lags(self) -> bool:
        """Whether a step may be read while the next one runs."""
        return self.graphs is not None and self.optimizer_name == "adamw"

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm of the step; its loss with it is ``unread``, or as numbers before any weight changes.

        Raises ``UserError`` for what is not finite, at once or with the next step.
        """
        import torch

        norm: Any = super()._get_grad_norm(model, grad_norm)  # pyright: ignore[reportAttributeAccessIssue]
        norm = norm if isinstance(norm, torch.Tensor) else torch.tensor(float(norm))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore
        numbers = torch.cat([self._told(), norm.to(self._tr_loss).double().view(1)])
        self.unread = Unread(self.state.global_step + 1, numbers)
        if not self._lags():
            return self._read()
        plain = getattr(self.optimizer, "optimizer", self.optimizer)  # in Accelerate's
        plain.found_inf = (
            ~numbers.isfinite().all()
        ).float()  # for which PyTorch's fused AdamW does nothing
        if numbers.is_cuda:
            self.unread.numbers = torch.empty(5, dtype=numbers.dtype, pin_memory=True)
            self.unread.numbers.copy_(numbers, non_blocking=True)
            self.unread.ready = torch.cuda.Event()
            self.unread.ready.record()
        return norm

    def _told(self) -> "Tensor":
        """[4]: ``Unread.numbers`` but the norm, of all processes; numbers to 2^53 are exact."""
        import torch

        loss = self._tr_loss.double().view(1) / self.accelerator.num_processes
        mine = self._sent(self.tokens, self.supervised, self.wants_to_stop())
        self.tokens = self.supervised = 0
        return self.accelerator.reduce(torch.cat([loss, mine]))

    def _sent(self, *numbers: float) -> "Tensor":
        """Numbers on their way to the device, which is not waited for."""
        import torch

        gpu = self.args.device.type == "cuda"
        here = torch.tensor(numbers, dtype=torch.float64, pin_memory=gpu)
        return here.to(self.args.device, non_blocking=True)

    def _read(self) -> float:
        """The gradient norm that is ``unread``; its loss is ``read_loss``."""
        assert self.unread is not None
        unread, self.unread = self.unread, None
        if unread.ready is not None:
            unread.ready.synchronize()
        self.read_loss, tokens, supervised, stop, norm = unread.numbers.tolist()
        for name, value in (("loss", self.read_loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} became {value} at step {unread.step}; the last "
                    f"complete checkpoint is untouched. {first_batch.advice(self.model)} `ft show` "
                    "shows the data."
                )
        self.tokens_seen += int(tokens)
        self.supervised_seen += int(supervised)
        self.stops = stop > 0
        return norm

    def _maybe_log_save_evaluate(
        self,
        tr_loss: "Tensor",
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float,
    ) -> None:
        """Log what was read already, or leave the log to the next step."""
        plain: Any = super()._maybe_log_save_evaluate  # pyright: ignore[reportAttributeAccessIssue]
        tr_loss.zero_()
        control, over = self.control, self.state.global_step >= self.state.max_steps
        log = functools.partial(self._log_step, start_time, learning_rate)
        asked = control.should_log and self.state.global_step > self._globalstep_last_logged
        control.should_log = False
        needed = control.should_save or control.should_evaluate or control.should_training_stop
        if self.unread is not None:
            if asked:  # not at an epoch's end, where it is left from the last step
                self.unread.log = log
            if not (needed or over or self.awaited):
                return
            self._settle()
        elif asked:
            log(self.read_loss, grad_norm)
        plain(tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time)

    def _log_step(self, start_time: float, learning_rate: float, loss: float, norm: float) -> None:
        """Log the last step, as transformers does, but for asking other processes, whose loss is in this one."""
        self._total_loss_scalar += loss
        self._globalstep_last_logged = self.state.global_step
        self.log({"loss": loss, "grad_norm": norm, "learning_rate": learning_rate}, start_time)

    def _settle(self) -> None:
        """Read and log the step before, whose numbers are there by now or soon."""
        if self.unread is None:
            return
        log, norm = self.unread.log, self._read()
        if log:
            log(self.read_loss, norm)
