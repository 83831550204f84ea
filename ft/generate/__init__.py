"""Answers of a model."""

from ft.generate.answers import generate as generate
from ft.generate.answers import greedy as greedy
from ft.generate.answers import stream as stream
from ft.generate.answers import write as write
from ft.generate.constraints import Banned as Banned
from ft.generate.constraints import Forced as Forced
from ft.generate.constraints import RepetitionPenalty as RepetitionPenalty
from ft.generate.draft import Answer as Answer
from ft.generate.draft import Prompt as Prompt
from ft.generate.samplers import Beam as Beam
from ft.generate.samplers import Chain as Chain
from ft.generate.samplers import Contrastive as Contrastive
from ft.generate.samplers import Filter as Filter
from ft.generate.samplers import Greedy as Greedy
from ft.generate.samplers import MinP as MinP
from ft.generate.samplers import Sample as Sample
from ft.generate.samplers import TopK as TopK
from ft.generate.samplers import TopP as TopP
