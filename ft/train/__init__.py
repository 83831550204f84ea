"""Learning from examples."""

from ft.train.sft import Trained as Trained
from ft.train.sft import deadline as deadline
from ft.train.sft import sft as sft
