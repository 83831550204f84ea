"""What is trained: a base found and loaded, and what of it learns."""

from ft.models.load import Base as Base
from ft.models.load import load as load
from ft.models.load import load_config as load_config
from ft.models.load import load_tokenizer as load_tokenizer
from ft.models.lora import attach as attach_lora  # noqa: F401
from ft.models.lora import load as load_lora  # noqa: F401
from ft.models.lora import summary as summary
from ft.models.parameters import train_all as train_all
