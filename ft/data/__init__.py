"""What a model learns from: rows to fine-tune on, text to pretrain on; every bad one named."""

from ft.data.instructions import dolly as dolly
from ft.data.instructions import instructions as instructions
from ft.data.mtnt import SPLITS as SPLITS
from ft.data.mtnt import mtnt as mtnt
from ft.data.mtnt import normalize_punctuation as normalize_punctuation
from ft.data.rows import Rows as Rows
from ft.data.rows import duplicates as duplicates
from ft.data.rows import overlap as overlap
from ft.data.rows import summary as summary
from ft.data.tables import open_pairs as open_pairs
from ft.data.tables import pairs as pairs
from ft.data.tables import parallel as parallel
