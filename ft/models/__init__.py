"""What is trained: a base found and loaded, and what of it learns."""

from ft.models.load import Base, load, load_config, load_tokenizer
from ft.models.lora import attach as attach_lora
from ft.models.lora import load as load_lora
from ft.models.lora import summary
from ft.models.parameters import train_all

__all__ = [
    "attach_lora",
    "Base",
    "load",
    "load_config",
    "load_lora",
    "load_tokenizer",
    "summary",
    "train_all",
]
