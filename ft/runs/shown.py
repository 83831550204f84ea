"""Numbers as people read them: sizes, times, large counts."""

from typing import Any


def size(count: float) -> str:
    """Bytes: ``15.2 MB``, ``2.1 GB``."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds: ``42 s``, ``8 min 12 s``, ``1 h 5 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def count(value: float) -> str:
    """A large number: ``268.1 M``, ``14.2 k``, ``950``."""
    for unit, one, least in (("B", 1e9, 1e9), ("M", 1e6, 1e6), ("k", 1e3, 1e4)):
        if value >= least:
            return f"{value / one:.1f} {unit}"
    return f"{value:,.0f}"


def score(value: Any, digits: int = 1) -> str:
    """A score, with its interval where it has one: ``41.9 [41.0, 42.8]``."""
    if isinstance(value, dict):
        ends = (round(value[key], digits) + 0.0 for key in ("score", "low", "high"))  # no -0.0
        middle, low, high = (f"{end:.{digits}f}" for end in ends)
        return f"{middle} [{low}, {high}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
