"""A tiny Gemma 3 that sees, with a small tokenizer, for tests offline."""

from pathlib import Path
from typing import Any

from support import tiny

from ft.data import pictures
from ft.models import tiny_vision

WORDS = sorted({word for values in pictures.PARTS.values() for v in values for word in v.split()})


def tokenizer(place: Path) -> Any:
    """The tests' tokenizer with Gemma 3's tokens for turns and images, and a token for each word of a picture."""
    from transformers import PreTrainedTokenizerFast

    plain = tiny.tokenizer()
    special = ["<start_of_turn>", "<end_of_turn>", *tiny_vision.NAMES.values()]
    plain.add_special_tokens({"additional_special_tokens": special})
    plain.add_tokens(WORDS)
    plain.save_pretrained(place)
    return PreTrainedTokenizerFast.from_pretrained(place, extra_special_tokens=tiny_vision.NAMES)


def folder(place: Path, **language: Any) -> Path:
    """Write model, tokenizer and processor, and return ``place``."""
    tiny_vision.write(place, tokenizer(place), **language)
    return place
