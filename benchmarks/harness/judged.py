"""Judging what several models learnt: sets of lines that none has seen, answers that are kept, scores beside each other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import data, files
from ft.runs.opened import Finished
from ft.score import splits, translation
from ft.score.comparison import cell
from ft.text.noise import KINDS, kinds

OWN = "ft, as it answers"
CHUNK = 64  # lines that a break loses at most
FEWEST = 10  # lines of a kind of noise that have a score of their own


@dataclass(frozen=True)
class Set:
    """Lines that translations are judged on."""

    name: str
    origin: str
    rows: list[dict[str, str]]  # "source", "target"


def other(run: Finished, spec: str, seen: Sequence[data.Rows], limit: int | None = None) -> Set:
    """The first lines of ``spec`` that no row of ``seen`` asks, with a line on those that are left out.

    ``spec`` is a table of pairs as ``ft.data`` reads it, or MTNT with its split behind a colon
    (``sample:valid``, ``PATH/TO/MTNT:test``). Raises ``UserError`` if nothing is left.
    """
    named, _, split = spec.rpartition(":")
    if not named or split not in data.SPLITS:
        named, split = spec, "test"
    found = splits.rows_of(run, named, split)
    if shared := data.overlap(found, *seen):
        first = found[shared[0]]["source"]
        print(
            f"{spec}: {len(shared)} of {len(found)} lines are asked in the run's training or validation rows "
            f"and are left out, the first is {first[:60]!r}"
        )
        found = found.without(shared, "without those that were trained on or watched")
    rows = [{"source": row["source"], "target": row["target"]} for row in found][:limit]
    return Set(spec, found.origin, rows)


class Answers:
    """The answers of one model by one way of decoding: in a file, so that each line is asked for once."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[str, str] = files.read_json(file) if file.is_file() else {}

    def add(self, rows: Sequence[Mapping[str, str]], answers: Sequence[str]) -> None:
        """Keep what is known already."""
        for row, answer in zip(rows, answers, strict=True):
            self._known.setdefault(row["source"], answer)

    def to(
        self, rows: Sequence[dict[str, str]], ask: Callable[[list[dict[str, str]]], list[str]]
    ) -> list[str]:
        """The answer to each of ``rows``; ``ask`` is called for those that are missing, some at a time."""
        missing = {row["source"]: row for row in rows if row["source"] not in self._known}
        left = list(missing.values())
        for at in range(0, len(left), CHUNK):
            part = left[at : at + CHUNK]
            self.add(part, ask(part))
            self.file.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(self.file, self._known)
        return [self._known[row["source"]] for row in rows]


def compared(
    judged: Set,
    answers: Mapping[str, Mapping[str, Sequence[str]]],
    own: str,
    *,
    pair: str,
) -> dict[str, Any]:
    """Scores of ``answers`` (by way of decoding, then by system, ``ft`` first) on the lines of a set.

    Each system has its ``p`` against ``ft`` decoded ``likewise``, and against ``ft`` as it ``answers``, by the
    way ``own``; ``ahead`` is what ``ft`` has more of chrF. Both are none of what is compared with itself.
    """
    references = [row["target"] for row in judged.rows]
    options: dict[str, Any] = {"tokenizer": translation.tokenizer_of(pair)[0]}
    result: dict[str, Any] = {"origin": judged.origin, "n": len(judged.rows), "ways": {}}
    for way, systems in answers.items():
        against = {
            "answers": translation.scores(
                {OWN: answers[own]["ft"], **systems}, references, **options
            )
        }
        if len(systems) > 1:
            against["likewise"] = translation.scores(systems, references, **options)
        scored = against["answers"]
        result["signatures"] = scored["signatures"]
        result["ways"][way] = {
            name: scored[name] | {"chrf_by_kind": by_kind(judged, lines)}
            for name, lines in systems.items()
        }
        for name, values in result["ways"][way].items():
            for kind, first in (("likewise", "ft"), ("answers", OWN)):
                itself = name == "ft" and (kind == "likewise" or way == own)
                values[kind] = (
                    None
                    if itself
                    else {
                        "ahead": chrf(against[kind][first]) - chrf(values),
                        "p": against[kind]["p_value"][name],
                    }
                )
    return result | {"kinds": {kind: len(of_kind(judged, kind)) for kind in (*KINDS, "none")}}


def chrf(scored: Mapping[str, Any]) -> float:
    """The chrF of one system of ``translation.scores``."""
    return scored["chrf"]["score"]


def of_kind(judged: Set, kind: str) -> list[int]:
    """Indices of the lines whose source shows a kind of noise; ``none``: of those that show no kind."""
    found = [kinds(row["source"]) for row in judged.rows]
    return [i for i, shown in enumerate(found) if (kind in shown if kind != "none" else not shown)]


def by_kind(judged: Set, lines: Sequence[str]) -> dict[str, float]:
    """Corpus chrF on the lines of each kind of noise that has enough of them."""
    result = {}
    for kind in (*KINDS, "none"):
        if len(chosen := of_kind(judged, kind)) >= FEWEST:
            references = [judged.rows[i]["target"] for i in chosen]
            result[kind] = translation.corpus_chrf([lines[i] for i in chosen], references)
    return result


def table(name: str, result: Mapping[str, Any], steps: Mapping[str, int]) -> str:
    """A set's scores as a table in Markdown, and chrF by kind of noise below it."""
    heads = ["", "decoding", "steps", "chrF", "BLEU", "loops", "ft ahead, decoded likewise", "p"]
    heads += ["ft ahead, as it answers", "p"]
    lines = [f"{name}: {result['n']:,} lines, {result['origin']}", "", _line(heads)]
    lines.append(_line(["---"] * len(heads)))
    rows = [(way, who, r) for way, found in result["ways"].items() for who, r in found.items()]
    for way, who, r in rows:
        cells = [who, way, str(steps[who]), cell(r["chrf"]), cell(r["bleu"]), str(r["loops"])]
        for kind in ("likewise", "answers"):
            gap = r[kind]
            cells += [f"{gap['ahead']:+.1f}", f"{gap['p']['chrf']:.3f}"] if gap else ["", ""]
        lines.append(_line(cells))
    shown = [kind for kind in result["kinds"] if kind in rows[0][2]["chrf_by_kind"]]
    if shown:
        counts = [f"{kind} ({result['kinds'][kind]})" for kind in shown]
        lines += ["", _line(["chrF by noise", "decoding", *counts])]
        lines.append(_line(["---"] * (2 + len(shown))))
        for way, who, r in rows:
            lines.append(_line([who, way, *(f"{r['chrf_by_kind'][kind]:.1f}" for kind in shown)]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
