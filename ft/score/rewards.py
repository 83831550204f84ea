"""Rewards: text in, number out, the same for TRL's trainers, rejection sampling and evaluation."""

import functools
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ft.data.gsm8k import final_number
from ft.errors import UserError, nearest

_GRAM = 10  # characters of a piece of text that a loop repeats; a sentence hardly does


@dataclass(frozen=True)
class Reward:
    """A named function of an answer and the row that it answers; higher is better.

    Called, it raises ``UserError`` where the function raises, and for what is no finite number.
    """

    name: str
    function: Callable[[str, Mapping[str, Any]], float]

    def __call__(self, text: str, row: Mapping[str, Any]) -> float:
        try:
            value = self.function(text, row)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"reward {self.name!r} raised {type(error).__name__}: {error}; the answer was "
                f"{_short(text)}, the row has {', '.join(sorted(row))}"
            ) from error
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise UserError(
                f"reward {self.name!r} is {value!r} for the answer {_short(text)}; it must be a "
                "finite number"
            )
        return float(value)

    def values(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The rewards of several answers. Raises ``UserError`` as a call does."""
        return [self(text, row) for text, row in zip(texts, rows, strict=True)]

    def batch(self, texts: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[float]:
        """The rewards of several answers. Raises ``UserError`` where all are the same number."""
        values = self.values(texts, rows)
        if len(values) > 1 and len(set(values)) == 1:
            raise UserError(
                f"reward {self.name!r} is {values[0]:g} for all {len(values)} answers of a batch, "
                f"such as {_short(texts[0])}: there is nothing to learn from it. Look at the answers, "
                "at the reward, or draw with a higher temperature"
            )
        return values

    def for_trl(
        self, trim: Callable[[str], str], rows: Sequence[Mapping[str, Any]] = ()
    ) -> Callable[..., list[float]]:
        """The reward as TRL's trainers call it; ``trim`` cuts an answer where its template ends.

        The column ``row`` of the data set is a number of ``rows``; without these the columns of the
        data set are the fields of the rows.
        """

        def function(completions: Sequence[str], **columns: Any) -> list[float]:
            texts = [trim(text) for text in completions]
            if rows:
                return self.batch(texts, [rows[i] for i in columns["row"]])
            fields = {
                key: values
                for key, values in columns.items()
                if isinstance(values, list) and len(values) == len(completions)
            }
            found = [
                dict(zip(fields, values, strict=True))
                for values in zip(*fields.values(), strict=True)
            ]
            return self.batch(texts, found)

        function.__name__ = self.name
        return function


def chrf_of(field: str = "target") -> Reward:
    """``chrf`` against a field of the row."""
    return Reward("chrf", lambda text, row: chrf(text, _field(row, field)))


def number_of(field: str = "answer") -> Reward:
    """``same_number`` as a field of the row."""
    return Reward("number", lambda text, row: same_number(text, _field(row, field)))


def of_reference(name: str) -> Reward:
    """``chrf`` or ``number`` against a row's ``target``, or its ``response`` where it has none."""
    of_field = {"chrf": chrf_of, "number": number_of}[name]
    return Reward(
        name,
        lambda text, row: of_field("target" if "response" not in row else "response")(text, row),
    )


def weighted(parts: Mapping[Reward, float]) -> Reward:
    """The sum of rewards, each times its weight; every weight must be finite and some not 0."""
    if not any(parts.values()) or not all(map(math.isfinite, parts.values())):
        raise UserError(f"weights {[*parts.values()]}: they must be finite, and not all 0")
    name = " + ".join(f"{weight:g} {reward.name}" for reward, weight in parts.items())
    return Reward(name, lambda text, row: sum(w * reward(text, row) for reward, w in parts.items()))


def chrf(text: str, reference: str) -> float:
    """Sentence chrF2 against a reference, 0 to 1 (Popovic 2015; sacreBLEU's, with its defaults)."""
    return _chrf().sentence_score(text, [reference]).score / 100


def same_number(text: str, reference: str) -> float:
    """1 where the final number of the text is that of the reference, else 0.

    The reference may be a number alone. Raises ``UserError`` where it holds none.
    """
    wanted = final_number(reference)
    if wanted is None:
        wanted = final_number(f"ANSWER: {reference}")
    if wanted is None:
        raise UserError(f"the reference {_short(reference)} holds no final number")
    return float(final_number(text) == wanted)


def matches(text: str, pattern: str) -> float:
    """1 where the regular expression fits the whole text, line breaks included, else 0."""
    try:
        return float(re.fullmatch(pattern, text, re.DOTALL) is not None)
    except re.error as error:
        raise UserError(f"format {pattern!r} is no regular expression: {error}") from None


def length(text: str, shortest: int, longest: int) -> float:
    """1 from ``shortest`` to ``longest`` characters; outside, the share of the bound that is missed."""
    if not 0 < shortest <= longest:
        raise UserError(f"length {shortest} to {longest}: it must be 0 < shortest <= longest")
    n = len(text.strip())
    return min(1.0, n / shortest, longest / max(n, 1))


def no_repetition(text: str) -> float:
    """The share of the text's pieces of 10 characters that are new; 1 for a text without a loop."""
    text = " ".join(text.split())
    grams = [text[i : i + _GRAM] for i in range(len(text) - _GRAM + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


_WORDS = {
    "en": "the and you is are was it its that this of to in for with not have has be my your we they "
    "he she his her what who how why when if but so just like get got would can will do does did been "
    "don't i'm it's i've can't there their from at by an because about",
    "fr": "le la les un une des du de et est sont que qui dans pour pas avec sur vous nous je tu il elle "
    "ils elles ce cette ces mon ma mes ton ta tes sa ses au aux en ne plus mais ou où être avoir fait "
    "c'est j'ai n'est qu'il d'un d'une si tout comme quand leur leurs été oui non merci",
}
_EVIDENCE = {code: frozenset(words.split()) for code, words in _WORDS.items()}
_ACCENTED = re.compile("[àâæçèéêëîïôœùûÿ]", re.IGNORECASE)
_KANA = re.compile("[\u3041-\u30ff]")


def language(text: str, code: str) -> float:
    """How much of what tells languages apart speaks for ``code``: en, fr or ja. From 0 to 1.

    Function words and, in French, accents count; in Japanese kana do. 0.5 for a text that shows
    neither way (a name, digits, emoji), and 0 for an empty one.
    """
    if code not in (known := [*_EVIDENCE, "ja"]):
        raise UserError(f"language {code!r}: one of {', '.join(known)}.{nearest(code, known)}")
    if not text.strip():
        return 0.0
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", text.lower().replace("’", "'"))
    votes = {name: sum(word in known for word in words) for name, known in _EVIDENCE.items()}
    votes["fr"] += sum(bool(_ACCENTED.search(word)) for word in words)
    votes["fr"] += sum(bool(re.match(r"(?:[ldjncsmt]|qu)'", word)) for word in words)
    votes["ja"] = len(_KANA.findall(text))
    total = sum(votes.values())
    return votes[code] / total if total else 0.5


def _field(row: Mapping[str, Any], field: str) -> str:
    if field not in row:
        raise UserError(
            f"the reward reads the field {field!r}, which the row does not have; it has "
            f"{', '.join(sorted(row))}.{nearest(field, row)}"
        )
    return row[field]


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


@functools.cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()
