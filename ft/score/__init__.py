"""How good answers and their models are, and how likely a model finds a text."""

from ft.score import decoding, documents, images, instructions, reasoning, translation
from ft.score.comparison import Comparison
from ft.score.likelihood import loss
from ft.score.logits import following, score, top

__all__ = [
    "Comparison",
    "decoding",
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
