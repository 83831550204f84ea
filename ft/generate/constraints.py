"""What must, must not or had better not be written: filters of the next token that name ids."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.generate.samplers import Filter, Ids

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class RepetitionPenalty(Filter):
    """Tokens of the prompt and of the answer so far become less likely (Keskar et al. 2019, section 4.1).

    Their logits are divided by ``penalty`` where positive and multiplied by it where negative.
    """

    penalty: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.penalty) and self.penalty > 0):
            raise UserError(
                f"RepetitionPenalty: penalty = {self.penalty}; it must be above 0 (1 changes nothing)"
            )

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        import torch

        logits = logits.clone()
        for row, prompt, answer in zip(logits, prompts, answers, strict=True):
            seen = torch.tensor(sorted({*prompt, *answer}), device=logits.device)
            found = row[seen]
            row[seen] = torch.where(found > 0, found / self.penalty, found * self.penalty)
        return logits


@dataclass(frozen=True)
class Penalty(Filter):
    """Tokens of the answer so far become less likely, as in OpenAI's completion API.

    Their logits lose ``presence``, and ``frequency`` for each time that they have come.
    """

    presence: float = 0.0
    frequency: float = 0.0

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        import torch

        logits = logits.clone()
        for row, answer in zip(logits, answers, strict=True):
            seen, counts = torch.tensor(answer, dtype=torch.long).unique(return_counts=True)
            row[seen.to(row.device)] -= (self.presence + self.frequency * counts).to(row)
        return logits


@dataclass(frozen=True)
class Bias(Filter):
    """What is added to the logits of some ids."""

    of: tuple[tuple[int, float], ...]

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        import torch

        _check_ids(self, [i for i, _ in self.of], logits.shape[1])
        ids, values = zip(*self.of, strict=True)
        index = torch.tensor(ids, device=logits.device)
        return logits.index_add(1, index, logits.new_tensor([values]).expand(len(logits), -1))


@dataclass(frozen=True)
class Banned(Filter):
    """These ids never come."""

    ids: tuple[int, ...]

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        import torch

        _check_ids(self, self.ids, logits.shape[1])
        banned = torch.tensor(self.ids, dtype=torch.long, device=logits.device)
        return logits.index_fill(1, banned, -math.inf)


@dataclass(frozen=True)
class Forced(Filter):
    """The answer begins with these ids."""

    ids: tuple[int, ...]

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        _check_ids(self, self.ids, logits.shape[1])
        logits = logits.clone()
        for row, answer in zip(logits, answers, strict=True):
            if len(answer) < len(self.ids):
                row.fill_(-math.inf)
                row[self.ids[len(answer)]] = 0
        return logits


def _check_ids(sampler: Any, ids: Sequence[int], size: int) -> None:
    for i in ids:
        if not 0 <= i < size:
            raise UserError(
                f"{type(sampler).__name__}: id {i}; this model's ids go from 0 to {size - 1}"
            )
