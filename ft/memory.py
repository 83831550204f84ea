"""What full-parameter training takes in memory, from a model's configuration, before any weight is read."""

import os
from dataclasses import dataclass
from typing import Any

from ft import machine
from ft.errors import UserError
from ft.models import parameters
from ft.train.optim import STATE_BYTES

GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes that stay for a whole run; the activations of a batch come on top."""

    parameters: int  # their number, towers included
    weights: int
    gradients: int  # the tied embedding's twice: as the head's and as the input's, before they add
    states: int  # of the optimizer

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.states

    def __str__(self) -> str:
        parts = [self.total, self.weights, self.gradients, self.states]
        total, weights, gradients, states = (f"{part / GIB:.1f}" for part in parts)
        return (
            f"{self.parameters:,} parameters need {total} GiB (weights {weights}, gradients "
            f"{gradients}, optimizer states {states}), and the activations on top"
        )


def full_training(config: Any, *, optim: str, precision: str) -> Need:
    """The need of training all parameters of the language model of ``config``.

    Parameters are counted on a model without storage. Gradients and the states of ``adamw`` have the
    parameters' dtype; 8-bit states take a byte each.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    sizes = [
        (parameters.in_language_model(name), p.numel()) for name, p in model.named_parameters()
    ]
    total, trained = sum(n for _, n in sizes), sum(n for trains, n in sizes if trains)
    width = 2 if precision == "bf16" else 4
    head = model.get_input_embeddings().weight.numel() if model.config.tie_word_embeddings else 0
    states = STATE_BYTES[optim] * (width / 4 if optim == "adamw" else 1)
    return Need(total, total * width, (trained + head) * width, int(trained * states))


def check(config: Any, *, optim: str, precision: str) -> str:
    """The estimate as a line. Raises ``UserError`` with it where the training will not fit.

    Where parameters are sharded (FSDP), the processes share gradients and states.
    """
    need = full_training(config, optim=optim, precision=precision)
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false") == "true"
    processes = int(os.environ.get("WORLD_SIZE", "1")) if sharded else 1
    least = need.weights + (need.gradients + need.states) // processes
    room, where = machine.free_memory()
    if least > room:
        ways = ["--optim sgd, which keeps no states"] * bool(need.states)
        ways += ["--precision bf16, which halves all"] * (precision != "bf16")
        ways += ["--lora-r 16, which trains an adapter alone"]
        raise UserError(
            f"full-parameter training with optim={optim} will not fit: {need}; {where} has "
            f"{room / GIB:.1f} GiB free. Use {', or '.join(ways)}."
        )
    return f"memory: {need}; {room / GIB:.1f} GiB are free"
