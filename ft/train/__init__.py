"""Learning from examples."""

from ft.train.sft import Trained, deadline, sft

__all__ = [
    "deadline",
    "sft",
    "Trained",
]
