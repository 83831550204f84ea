"""What a model learns from: rows to fine-tune on, text to pretrain on; every bad one named."""

from ft.data.doubles import duplicates, overlap
from ft.data.instructions import dolly, instructions
from ft.data.mtnt import SPLITS, mtnt, normalize_punctuation
from ft.data.rows import Rows, held_out, summary
from ft.data.tables import open_pairs, pairs, parallel
from ft.data.translation import one_line, translation_splits

__all__ = [
    "dolly",
    "duplicates",
    "held_out",
    "instructions",
    "mtnt",
    "normalize_punctuation",
    "one_line",
    "open_pairs",
    "overlap",
    "pairs",
    "parallel",
    "Rows",
    "SPLITS",
    "summary",
    "translation_splits",
]
