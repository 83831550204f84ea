"""How good answers and their models are, and how likely a model finds a text."""

from ft.score import images as images
from ft.score import instructions as instructions
from ft.score import reasoning as reasoning
from ft.score import translation as translation
from ft.score.comparison import Comparison as Comparison
from ft.score.likelihood import loss as loss
from ft.score.logits import following as following
from ft.score.logits import score as score
from ft.score.logits import top as top
