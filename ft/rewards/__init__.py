"""Learning from rewards."""

from ft.rewards.guards import Guards, Vitals, Watch
from ft.score.rewards import (
    Reward,
    chrf_of,
    language,
    length,
    matches,
    no_repetition,
    number_of,
    weighted,
)

__all__ = [
    "chrf_of",
    "Guards",
    "language",
    "length",
    "matches",
    "no_repetition",
    "number_of",
    "Reward",
    "Vitals",
    "Watch",
    "weighted",
]
