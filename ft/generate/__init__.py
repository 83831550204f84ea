"""Answers of a model."""

from ft.generate.answers import generate, of_rows, write
from ft.generate.constraints import Banned, Forced, RepetitionPenalty
from ft.generate.draft import Answer, Prompt
from ft.generate.growing import stream
from ft.generate.samplers import Beam, Chain, Contrastive, Filter, Greedy, MinP, Sample, TopK, TopP

__all__ = [
    "Answer",
    "Banned",
    "Beam",
    "Chain",
    "Contrastive",
    "Filter",
    "Forced",
    "generate",
    "Greedy",
    "of_rows",
    "MinP",
    "Prompt",
    "RepetitionPenalty",
    "Sample",
    "stream",
    "TopK",
    "TopP",
    "write",
]
