"""How a row reads, and the ids it becomes."""

from ft.text.template import Template as Template
from ft.text.tokens import Encoded as Encoded
from ft.text.tokens import encode_rows as encode_rows
from ft.text.tokens import encode_splits as encode_splits
