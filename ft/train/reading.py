"""What of the trainer has to do with a step's loss and gradient norm: when a GPU is waited for, to read them."""

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
    """Loss and norm of a step, on their way from a GPU."""

    step: int
    numbers: "Tensor"  # [2], in the processor's memory once ``ready``
    ready: Any = None  # an event; nothing where they are there
    log: Callable[["Tensor", float], None] | None = None  # for them, once they are read


class Reading:
    """A part of ``Trainer``: a step's loss and norm are read before they are needed, and not earlier.

    What is not finite must change no weight. Where rows are graphs, in one process, AdamW sees that on the GPU itself,
    and the processor reads both while the GPU computes the next step: else it would wait in each step, and the GPU
    for it afterwards. Before a validation, a checkpoint and the end they are read at once.
    """

    graphs: Graphs | None
    model: Any
    state: Any
    control: Any
    accelerator: Any
    optimizer: Any
    optimizer_name: str
    _tr_loss: Any
    unread: Unread | None
    awaited: bool  # whether something needs the numbers of this step: a validation
    read_loss: float

    def _lags(self) -> bool:
        """Whether a step may be read while the next one runs."""
        alone = self.accelerator.num_processes == 1
        return self.graphs is not None and alone and self.optimizer_name == "adamw"

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The gradient norm of the step; its loss with it is ``unread``, or as numbers before any weight changes.

        Raises ``UserError`` for what is not finite, at once or with the next step.
        """
        import torch

        norm: Any = super()._get_grad_norm(model, grad_norm)  # pyright: ignore[reportAttributeAccessIssue]
        norm = norm if isinstance(norm, torch.Tensor) else torch.tensor(float(norm))
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # pyright: ignore
        both = torch.stack([self._tr_loss, norm.to(self._tr_loss)])
        self.unread = Unread(self.state.global_step + 1, both)
        if not self._lags():
            return self._read()
        plain = getattr(self.optimizer, "optimizer", self.optimizer)  # in Accelerate's
        plain.found_inf = (
            ~both.isfinite().all()
        ).float()  # for which PyTorch's fused AdamW does nothing
        if both.is_cuda:
            self.unread.numbers = torch.empty(2, dtype=both.dtype, pin_memory=True)
            self.unread.numbers.copy_(both, non_blocking=True)
            self.unread.ready = torch.cuda.Event()
            self.unread.ready.record()
        return norm

    def _read(self) -> float:
        """The gradient norm that is ``unread``; its loss is ``read_loss``."""
        assert self.unread is not None
        unread, self.unread = self.unread, None
        if unread.ready is not None:
            unread.ready.synchronize()
        self.read_loss, norm = unread.numbers.tolist()
        for name, value in (("loss", self.read_loss), ("gradient", norm)):
            if not math.isfinite(value):
                raise UserError(
                    f"the {name} became {value} at step {unread.step}; the last "
                    f"complete checkpoint is untouched. {first_batch.advice(self.model)} `ft show` "
                    "shows the data."
                )
        return norm

    def _maybe_log_save_evaluate(
        self, tr_loss: "Tensor", grad_norm: Any, *rest: Any, **options: Any
    ) -> None:
        """Log what was read already, or leave the log to the next step."""
        import torch

        plain: Any = super()._maybe_log_save_evaluate  # pyright: ignore[reportAttributeAccessIssue]
        if self.accelerator.num_processes == 1:
            tr_loss.zero_()
            tr_loss = torch.tensor(self.read_loss)
        if self.unread is None:
            return plain(tr_loss, grad_norm, *rest, **options)
        control, over = self.control, self.state.global_step >= self.state.max_steps
        needed = control.should_save or control.should_evaluate or control.should_training_stop
        if control.should_log:
            self.unread.log = lambda loss, norm: plain(loss, norm, *rest, **options)
        if not (needed or over or self.awaited):
            control.should_log = False
            return None
        log, norm = self.unread.log, self._read()
        control.should_log = log is not None
        return plain(torch.tensor(self.read_loss), norm, *rest, **options)

    def _settle(self) -> None:
        """Read and log the step before, whose numbers are there by now or soon."""
        import torch

        if self.unread is None:
            return
        log, norm = self.unread.log, self._read()
        if log:
            self.control.should_log = True
            log(torch.tensor(self.read_loss), norm)
