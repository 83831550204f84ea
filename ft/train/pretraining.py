"""What a pretraining loop leans on: a learning rate, validation in bits per byte, and checkpoints to go on from exactly."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ft import files
from ft.runs import checkpoints
from ft.score import logits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


@dataclass(frozen=True)
class Validation:
    """How well a model predicts a text, token by token."""

    eval_loss: float  # nats a token
    accuracy: float  # share of tokens that were the most likely one
    perplexity: float
    bits_per_byte: float  # of UTF-8, so that tokenizers can be compared

    def __str__(self) -> str:
        return (
            f"validation loss: {self.eval_loss:.4f}, accuracy {self.accuracy:.1%}, perplexity "
            f"{self.perplexity:.1f}, {self.bits_per_byte:.4f} bits per byte"
        )


def validate(
    model: Any,
    windows: "NDArray[np.int64]",
    size: int,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
) -> Validation:
    """Over windows [N, T + 1] that predict ``size`` bytes; each process takes its share of them."""
    import torch
    from accelerate import PartialState
    from accelerate.utils import reduce

    state = PartialState()
    total = torch.zeros(3, dtype=torch.float64, device=state.device)
    starts = range(0, len(windows), batch_size)[state.process_index :: state.num_processes]
    for start in starts:
        ids = torch.from_numpy(windows[start : start + batch_size]).to(state.device)
        with autocast():
            found = logits.top(model, ids[:, :-1], k=1, targets=ids[:, 1:])
        hits = found.ids.squeeze(-1) == ids[:, 1:]
        total += torch.stack(
            [-found.target_logprobs.double().sum(), hits.sum(), (hits | True).sum()]
        )
    nats, right, tokens = (reduce(total) if state.num_processes > 1 else total).tolist()  # pyright: ignore[reportAttributeAccessIssue]
    loss = nats / tokens
    perplexity = math.exp(min(loss, 700.0))
    return Validation(loss, right / tokens, perplexity, nats / math.log(2) / size)


def save(
    folder: Path,
    *,
    model: Any,
    optimizers: Sequence[Any],
    done: dict[str, Any],
    made_with: dict[str, Any],
) -> None:
    """Write ``checkpoint-N`` of a run after ``done["step"]`` steps, whole or not at all; older ones go.

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
        files.write_json(place / checkpoints.STATE, made_with)
    for old in checkpoints.complete(folder)[:-1]:
        shutil.rmtree(old)


def restore(place: Path, *, model: Any, optimizers: Sequence[Any]) -> dict[str, Any]:
    """Fill model and optimizers from a checkpoint, and return its ``done``."""
    from safetensors.torch import load_file, load_model

    load_model(model, place / MODEL)
    states: list[dict[int, dict[str, Any]]] = [{} for _ in optimizers]
    for key, tensor in load_file(place / OPTIMIZER).items():
        at, parameter, name = key.split(".")
        states[int(at)].setdefault(int(parameter), {})[name] = tensor
    for optimizer, state in zip(optimizers, states, strict=True):
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    return json.loads((place / DONE).read_text(encoding="utf-8"))
