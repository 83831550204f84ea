"""What several chains of thought for one question come to: votes, and how often a choice of n is right."""

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from ft.data.gsm8k import final_number


@dataclass(frozen=True)
class Chain:
    """One chain of thought and how good it is held to be, higher is better."""

    text: str
    reward: float = 0.0

    @functools.cached_property
    def number(self) -> Fraction | None:
        """Its final number; none where it came to no ``ANSWER:``."""
        return final_number(self.text)


def tally(chains: Sequence[Chain]) -> list[tuple[Fraction, int]]:
    """Final numbers and their votes, the most first, of equal ones the first that was written."""
    return Counter(c.number for c in chains if c.number is not None).most_common()


def majority(chains: Sequence[Chain]) -> Fraction | None:
    """The number that most chains end in: self-consistency (Wang et al. 2022, arXiv 2203.11171)."""
    votes = tally(chains)
    return votes[0][0] if votes else None


def best(chains: Sequence[Chain]) -> Fraction | None:
    """The number of the chain with the highest reward, among those that have one."""
    having = [chain for chain in chains if chain.number is not None]
    return max(having, key=lambda chain: chain.reward).number if having else None


CHOICES: Mapping[str, Callable[[Sequence[Chain], Fraction], bool]] = {
    "majority": lambda chains, wanted: majority(chains) == wanted,
    "best": lambda chains, wanted: best(chains) == wanted,
    "any": lambda chains, wanted: any(chain.number == wanted for chain in chains),
}
"""Whether the choice among chains is right; ``any`` is the bound that no choice can pass."""


def sizes(most: int) -> list[int]:
    """1, 2, 4, … up to ``most``: the n that accuracy is given for."""
    return [2**i for i in range(most.bit_length())]


def accuracy(
    questions: Sequence[tuple[Sequence[Chain], Fraction]], choice: str, n: int
) -> dict[str, float]:
    """How often a choice among ``n`` chains is right, in per cent: ``{"score", "low", "high"}``.

    Each question comes with its chains, at least ``n``, and the right number. Of more chains, each
    disjoint group of n counts, so the score for small n uses all that was sampled. The interval is
    Wilson's at 95% with one trial for a question: right for one group, and too wide for several.
    """
    right = CHOICES[choice]
    shares = []
    for chains, wanted in questions:
        groups = [chains[i : i + n] for i in range(0, len(chains) - n + 1, n)]
        shares.append(sum(right(group, wanted) for group in groups) / len(groups))
    return per_cent(sum(shares) / len(shares), len(shares))


def per_cent(share: float, trials: int) -> dict[str, float]:
    """A share of independent trials and its ``wilson`` interval, in per cent: ``{"score", "low", "high"}``."""
    low, high = wilson(share, trials)
    return {"score": 100 * share, "low": 100 * low, "high": 100 * high}


def wilson(share: float, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share of independent trials (Wilson 1927); sound at 0 and 1, too."""
    middle = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def shown(number: Fraction) -> str:
    """A number for people: ``72``, ``2.5``; of a model that loops over digits, the first ones."""
    decimal = Decimal(number.numerator) / Decimal(number.denominator)
    text = str(number) if number.denominator == 1 else f"{decimal:.6g}"
    return text if len(text) <= 20 else f"{text[:20]}…"
