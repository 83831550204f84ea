"""What the mini-GPT's peers share: their job, and the batches that all of them train on."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import Pipe

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True)
class Job:
    """What one worker is to do: a JSON file that the driver names on the command line."""

    weights: str  # safetensors of the initial model, by ft's names
    batches: str  # .npy of ids [steps + 1, B, T + 1], in training order
    shape: dict[str, Any]  # ft's MiniGPTConfig
    flags: list[str]  # of ft's recipe
    output: str  # folder for whatever the peer insists on writing
    backend: str  # of Keras
    learning_rate: float  # constant
    max_grad_norm: float

    def load_batches(self) -> "np.ndarray[Any, Any]":
        """Ids [steps + 1, B, T + 1]."""
        import numpy as np

        return np.load(self.batches)


def open_job() -> tuple[Job, Pipe]:
    """The job named on the command line, and the pipe. Call before importing what might print."""
    return Job(**json.loads(Path(sys.argv[1]).read_text())), Pipe()


def threads() -> int:
    """How many threads the driver allows."""
    return int(os.environ["OMP_NUM_THREADS"])
