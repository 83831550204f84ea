"""How good answers and their models are, and how likely a model finds a text."""

from ft.score import documents, images, instructions, reasoning, translation
from ft.score.comparison import Comparison
from ft.score.likelihood import loss
from ft.score.logits import following, score, top

__all__ = [
    "Comparison",
    "documents",
    "following",
    "images",
    "instructions",
    "loss",
    "reasoning",
    "score",
    "top",
    "translation",
]
