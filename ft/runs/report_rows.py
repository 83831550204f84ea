"""The rows that a run's page shows: answers before and after with their differing words, kinds of noise, tokens."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ft.text.noise import KINDS, kinds, loops

MOST = 400  # rows of a page
LONGEST = 2000  # characters of an answer
FEW = 10  # lines of a slice that say little
SHADES = (0.5, 0.1, 0.01, 0.001, 0.0)  # least probabilities of a heat map's colours
Piece = tuple[str, str]  # text, and how it is marked


def asked(sample: Mapping[str, Any]) -> str:
    """What a sample asks: its source, its prompt, its instruction with the text to read, or its last message."""
    if messages := sample.get("messages"):
        return str(messages[-1].get("content", ""))
    texts = [sample.get(key) for key in ("source", "prompt", "instruction", "context")]
    return "\n\n".join(text.strip() for text in texts if text)


def rows(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A page's rows, of the first ``MOST`` samples: see the template for what an entry has."""
    if not samples:  # of a run that goes on: nothing is imported
        return []
    from sacrebleu.metrics.chrf import CHRF

    judge, found = CHRF(), []
    for number, sample in enumerate(samples[:MOST], 1):
        texts = {name: sample[name][:LONGEST] for name in ("base", "tuned") if name in sample}
        reference = sample.get("reference", "")
        chrf = {k: judge.sentence_score(v, [reference]).score for k, v in texts.items()}
        others = dict(zip(texts, reversed(texts.values()), strict=True)) if len(texts) > 1 else {}
        answers = [
            {
                "name": name,
                "pieces": marked(text, others.get(name, text), reference),
                "loops": loops(text),
                "chrf": chrf[name] if reference else None,
                "votes": sample.get(f"{name}_votes", ""),
            }
            for name, text in texts.items()
        ]
        entry = {"number": number, "asked": asked(sample)[:LONGEST], "answers": answers}
        entry |= {"reference": reference[:LONGEST], "images": sample.get("images", "")}
        entry["kinds"] = sorted(kinds(sample["source"])) if "source" in sample else []
        entry["gain"] = chrf["tuned"] - chrf["base"] if reference and len(texts) > 1 else 0.0
        found.append(entry)
    return found


def marked(text: str, other: str, reference: str) -> list[Piece]:
    """The text in pieces: words that ``other`` has there too are plain, the rest is a ``hit`` or a ``miss``.

    A hit is a word that the reference has, wherever.
    """
    words, others = text.split(), other.split()
    matcher = difflib.SequenceMatcher(None, words, others, autojunk=False)
    same = {i for a, _, size in matcher.get_matching_blocks() for i in range(a, a + size)}
    known, pieces, at = {_plain(word) for word in reference.split()}, list[Piece](), 0
    for part in re.findall(r"\s+|\S+", text):
        if part.isspace():
            pieces.append((part, "space"))
            continue
        mark = "" if at in same else "hit" if _plain(part) in known else "miss"
        pieces.append((part, mark))
        at += 1
    return _joined(pieces)


def slices(samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Corpus chrF of base and tuned on the sources of each kind of noise and on the clean ones.

    Of the rows that both answered. Empty without sources and references, and where nearly no source is noisy.
    """
    needed = {"source", "reference", "base", "tuned"}
    samples = [sample for sample in samples if needed <= sample.keys()]
    if not samples:
        return []
    from sacrebleu.metrics.chrf import CHRF

    groups: dict[str, list[Mapping[str, Any]]] = {kind: [] for kind in (*KINDS, "none of these")}
    for sample in samples:
        for kind in kinds(sample["source"]) or {"none of these"}:
            groups[kind].append(sample)
    if sum(map(len, list(groups.values())[:-1])) < len(samples) / 10:
        return []
    return [
        {"kind": kind, "n": len(group), "few": len(group) < FEW}
        | {
            name: CHRF()
            .corpus_score([s[name] for s in group], [[s["reference"] for s in group]])
            .score
            for name in ("base", "tuned")
        }
        for kind, group in groups.items()
        if group
    ]


def shaded(losses: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Texts whose tokens have a colour each, by their probability, for each model that judged them."""
    return [
        {
            "prompt": entry["prompt"],
            "models": [
                {
                    "name": name,
                    "mean": sum(entry[name]) / len(entry[name]),
                    "tokens": [
                        (token.replace("\n", "↵\n"), shade(loss), loss, math.exp(-loss))
                        for token, loss in zip(entry["tokens"], entry[name], strict=True)
                    ],
                }
                for name in ("base", "tuned")
                if name in entry
            ],
        }
        for entry in losses
    ]


def shade(loss: float) -> int:
    """Which colour a token with this loss in nats has; 0 is the one of what the model was sure of."""
    return next(i for i, least in enumerate(SHADES) if math.exp(-loss) >= least)


def _plain(word: str) -> str:
    """A word without its case and the marks around it."""
    return re.sub(r"^\W+|\W+$", "", word).lower() or word


def _joined(pieces: Sequence[Piece]) -> list[Piece]:
    """Neighbours with one mark as one piece; a space belongs to what stands on both sides of it."""
    found = list[Piece]()
    for at, (text, mark) in enumerate(pieces):
        if mark == "space":
            after = pieces[at + 1][1] if at + 1 < len(pieces) else ""
            mark = after if found and found[-1][1] == after else ""
        if found and found[-1][1] == mark:
            found[-1] = (found[-1][0] + text, mark)
        else:
            found.append((text, mark))
    return found
