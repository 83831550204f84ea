"""What of a step would wait for a GPU, counted on a CPU."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")


class Waits(TorchDispatchMode):
    """Notes what would wait: sizes and numbers that depend on values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in WAITS:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


class Steps(TrainerCallback):
    """The waits of each step of a training: ``read`` where loss and norm are."""

    def __init__(self) -> None:
        self.waits = Waits()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count in here."""
        plain, found = torch.Tensor.tolist, self.waits.found
        read = lambda x: (found.append("read"), plain(x))[1]  # noqa: E731
        with self.waits, mock.patch.object(torch.Tensor, "tolist", read):
            yield

    def on_step_begin(self, *_, **__) -> None:
        self.waits.found.append("begin")

    def on_step_end(self, *_, **__) -> None:
        self.waits.found.append("end")

    def of_each(self) -> list[list[str]]:
        steps = " ".join(self.waits.found).split("begin")[1:]
        return [step.partition(" end")[0].split() for step in steps]
