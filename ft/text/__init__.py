"""How a row reads, and the ids it becomes."""

from ft.text.template import Template
from ft.text.tokens import Encoded, encode_rows, encode_splits

__all__ = [
    "encode_rows",
    "encode_splits",
    "Encoded",
    "Template",
]
