"""What changes what is learnt: columns and keys by their names, however spelled, and texts that say nothing."""

import functools
import re
import unicodedata
from typing import Any

IMAGES = ("images", "image", "image_url", "videos", "video", "audios", "audio", "input_audio")
AROUND = ("system", "system_prompt", "system_message", "tools", "functions", "history", "documents")
AROUND += ("chat_template_kwargs",)
_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}  # Unicode's categories
_OF = "|".join(
    ("sample", "example", "row", "turn", "message", "token", "loss", "train", "training")
)
_WEIGHT = re.compile(rf"loss|train|(?:{_OF})?weights?|(?:{_OF}|label|completion|assistant)?masks?")


def blank(text: str) -> bool:
    """Whether nothing of a text can be seen: it has spaces and characters of no width alone."""
    return all(unicodedata.category(c) in _UNSEEN for c in text)


@functools.lru_cache(maxsize=4096)
def plain(name: str) -> str:
    """A name without what spelling adds: of ``systemPrompt`` and ``System_Prompt`` the same."""
    return re.sub(r"[\W_]", "", name).lower()


@functools.lru_cache(maxsize=4096)
def weighs(name: str) -> bool:
    """Whether a name says how much of something is learnt: ``weight``, ``sample_weight``, ``lossMask``."""
    return bool(_WEIGHT.fullmatch(plain(name)))


def shows(name: str) -> bool:
    """Whether a name is that of images, or of what else is no text."""
    return plain(name) in _IMAGES


def surrounds(name: str) -> bool:
    """Whether a name is that of what may stand around an exchange: ``system_prompt``, ``tools``."""
    return plain(name) in _AROUND


_IMAGES, _AROUND = ({plain(name) for name in names} for names in (IMAGES, AROUND))


def is_one(weight: Any) -> bool:
    """Whether a weight changes nothing: 1 or true, in a table as text."""
    try:
        return float(weight) == 1
    except (TypeError, ValueError):
        return str(weight).strip().lower() == "true"
