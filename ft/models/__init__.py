"""What is trained: a base found and loaded, and what of it learns."""

from ft.models.load import Base as Base
from ft.models.load import load as load
from ft.models.load import load_config as load_config
from ft.models.load import load_tokenizer as load_tokenizer
