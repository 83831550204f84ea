"""How the next token is chosen from its logits: frozen values that compose."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.generate.logits import Check, argmax, best, draw, read

if TYPE_CHECKING:
    from torch import Generator, Tensor

FEW = (256, 8192)  # most likely tokens that a nucleus is looked for in, before all are sorted
Ids = Sequence[Sequence[int]]


class Filter:
    """What changes the logits of the next token before one is drawn from their softmax."""

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        """New logits [B, V] for ``logits`` [B, V]; ``-inf`` where a token must not come.

        ``prompts`` and ``answers`` are each row's ids so far, for those that look at them.
        """
        raise NotImplementedError

    def __call__(self, logits: "Tensor", generator: "Generator") -> "Tensor":
        """Ids [B] for ``logits`` [B, V], all drawn with one generator."""
        ids, check = draw(self.filter(logits), [generator] * len(logits))
        read([check])
        return ids


@dataclass(frozen=True)
class Greedy(Filter):
    """The most likely token, the first of them where several are."""

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        return _only(logits, argmax(logits)[:, None])


@dataclass(frozen=True)
class Sample(Filter):
    """Any token, by its probability at a temperature; at 0 the most likely one."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_temperature(self)

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        return _at(logits, self.temperature)


@dataclass(frozen=True)
class TopK(Filter):
    """One of the ``k`` most likely tokens (Fan et al. 2018, section 5.4)."""

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_count(self, "k")
        _check_temperature(self)

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        logits = _at(logits, self.temperature)
        if self.k == 1:
            return _only(logits, argmax(logits)[:, None])
        return _only(logits, logits.topk(min(self.k, logits.shape[1])).indices)


@dataclass(frozen=True)
class TopP(Filter):
    """One of the fewest tokens whose probabilities sum to ``p`` at least (Holtzman et al. 2020)."""

    p: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_share(self)
        _check_temperature(self)

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        logits = _at(logits, self.temperature)
        if self.p == 1:
            return logits
        probabilities, size = logits.softmax(-1), logits.shape[1]
        for few in (*FEW, size):
            found = probabilities.topk(min(few, size))
            upto = found.values.double().cumsum(-1)
            if few >= size or bool((upto[:, -1] >= self.p).all()):
                break
        outside = upto - found.values >= self.p
        return _only(logits, found.indices, outside)


@dataclass(frozen=True)
class MinP(Filter):
    """A token at least ``p`` times as likely as the most likely one (Nguyen et al. 2024)."""

    p: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check_share(self)
        _check_temperature(self)

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        logits = _at(logits, self.temperature)
        least = logits.amax(-1, keepdim=True) + math.log(self.p)
        return logits.masked_fill(logits < least, -math.inf)


@dataclass(frozen=True)
class Chain(Filter):
    """Filters one after the other; the last part may be a function of one's own that draws."""

    parts: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise UserError("Chain: it has no parts")
        for part in self.parts[:-1]:
            if not isinstance(part, Filter):
                raise UserError(f"Chain: {part!r} cannot be followed by another part")
        if isinstance(self.parts[-1], Beam | Contrastive) or not callable(self.parts[-1]):
            raise UserError(f"Chain: {self.parts[-1]!r} cannot be its last part")

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        for part in self.parts:
            if isinstance(part, Filter):
                logits = part.filter(logits, prompts, answers)
        return logits


@dataclass(frozen=True)
class Beam:
    """The most likely answers that a search of ``width`` at a time finds, as ``transformers`` finds them.

    An answer's score is its log-probability over its length to the power of ``length_penalty``. With
    ``no_repeat_ngram_size``, no n-gram of tokens comes twice in an answer (there, also none of the prompt).
    """

    width: int
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0

    def __post_init__(self) -> None:
        _check_count(self, "width")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"Beam: length_penalty = {self.length_penalty}; it must be finite")
        if self.no_repeat_ngram_size:
            _check_count(self, "no_repeat_ngram_size")


@dataclass(frozen=True)
class Contrastive:
    """Of the ``k`` most likely tokens the one that is likely and unlike all before (Su et al. 2022).

    ``alpha`` weighs the penalty for likeness: 0 is greedy.
    """

    k: int
    alpha: float

    def __post_init__(self) -> None:
        _check_count(self, "k")
        if not 0 <= self.alpha <= 1:
            raise UserError(f"Contrastive: alpha = {self.alpha}; it must be from 0 to 1")


Sampler = Filter | Beam | Contrastive | Callable[["Tensor", "Generator"], "Tensor"]


def to_generation_config(sampler: Greedy | Beam) -> dict[str, Any]:
    """transformers' names of a search for the likeliest answer, as a run's record keeps them."""
    if isinstance(sampler, Greedy):
        return {"num_beams": 1}
    return {
        "num_beams": sampler.width,
        "length_penalty": sampler.length_penalty,
        "no_repeat_ngram_size": sampler.no_repeat_ngram_size,
    }


def from_generation_config(values: Mapping[str, Any]) -> Greedy | Beam:
    """The search that ``to_generation_config`` described; greedy where nothing says otherwise."""
    if values.get("num_beams", 1) == 1:
        return Greedy()
    return Beam(values["num_beams"], values["length_penalty"], values["no_repeat_ngram_size"])


def choose(
    sampler: Any,
    logits: "Tensor",
    generators: Sequence["Generator"],
    prompts: Ids = (),
    answers: Ids = (),
) -> tuple["Tensor", list[Check]]:
    """The next ids [B] for ``logits`` [B, V], each row's drawn with its own generator, and what must hold of them.

    A function of one's own is called for each row alone, [1, V], so that its draws do not depend on
    what else is in the batch. Raises ``UserError`` for its ids that do not exist.
    """
    import torch

    likeliest, finite = best(logits)
    if isinstance(sampler, Greedy):
        return likeliest, [finite]
    last = sampler.parts[-1] if isinstance(sampler, Chain) else sampler
    if isinstance(sampler, Filter):
        logits = sampler.filter(logits.float(), prompts, answers)
        if isinstance(last, Filter):
            ids, some = draw(logits, generators)
            return ids, [finite, some]
    read([finite])
    rows = zip(logits.clone().split(1), generators, strict=True)
    found = [torch.as_tensor(last(row, g)).flatten() for row, g in rows]
    for ids in found:
        if len(ids) != 1 or ids.is_floating_point() or not 0 <= int(ids) < logits.shape[1]:
            raise UserError(
                f"the sampler {last!r} answered {ids.tolist()} for logits [1, {logits.shape[1]}]; "
                f"it must answer one id from 0 to {logits.shape[1] - 1}"
            )
    return torch.cat(found).to(logits.device), []


def probabilities(sampler: Filter, logits: "Tensor") -> "Tensor":
    """The distribution [B, V] that a sampler draws from, 0 where a token never comes."""
    return sampler.filter(logits.float()).softmax(-1)


def _only(logits: "Tensor", ids: "Tensor", but: "Tensor | None" = None) -> "Tensor":
    """``logits`` [B, V] at ``ids`` [B, K] except where ``but`` [B, K] holds, ``-inf`` elsewhere."""
    import torch

    kept = logits.gather(1, ids)
    if but is not None:
        kept = kept.masked_fill(but, -math.inf)
    return torch.full_like(logits, -math.inf).scatter_(1, ids, kept)


def _at(logits: "Tensor", temperature: float) -> "Tensor":
    if temperature == 0:
        return _only(logits, argmax(logits)[:, None])
    return logits if temperature == 1 else logits / temperature


def _check_count(sampler: Any, name: str) -> None:
    value = getattr(sampler, name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(
            f"{type(sampler).__name__}: {name} = {value}; it must be a whole number from 1"
        )


def _check_share(sampler: Any) -> None:
    if not 0 < sampler.p <= 1:
        raise UserError(
            f"{type(sampler).__name__}: p = {sampler.p}; it must be above 0 and at most 1"
        )


def _check_temperature(sampler: Any) -> None:
    value = sampler.temperature
    if not (math.isfinite(value) and value >= 0):
        raise UserError(
            f"{type(sampler).__name__}: temperature = {value}; it must be 0 (the most likely token) "
            "or above"
        )
