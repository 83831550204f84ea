"""Several sources of rows as one: named with commas between, mixed by share and seed, each counted."""

import math
import random
import re
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from ft.data.places import Places
from ft.data.rows import Rows, digest
from ft.errors import UserError

_WEIGHT = re.compile(r"=\s*([-+]?[\d.][\d.eE+%-]*)$")
_HUB = re.compile(r"(hub:[\w.-]+/[\w.-]+(?:/[\w.-]+)?):([\w.%+\[\]:-]+)")


@dataclass(frozen=True)
class Source:
    """One source as it is named: ``b.parquet=0.3``, ``hub:owner/name:split``."""

    place: str  # a path, ``hub:owner/name``, or whatever else opens
    split: str = "train"  # of a dataset on the Hub
    share: Fraction | None = None  # of all rows of the mixture; none: of what the others leave

    def __str__(self) -> str:
        return self.place if self.split == "train" else f"{self.place}:{self.split}"


def mixed(
    spec: str, open_one: Callable[[str, str], Rows], *, seed: int, max_rows: int | None = None
) -> Rows:
    """The rows of all sources that ``spec`` names (see ``sources``), at most ``max_rows`` of them.

    ``open_one`` reads a place and its split. Of a source with a share, as many rows are drawn by
    ``seed`` as make it that share of the mixture; the others share the rest by their sizes, and give
    all their rows unless ``max_rows`` is less. No row is taken twice: raises ``UserError``, with the
    numbers, for a source that is too small for its share. Rows stand source by source, each in its
    order. What is mixed says so in ``sources`` and ``source`` of its rows; one source alone is as it was.
    """
    named = sources(spec)
    found = [open_one(source.place, source.split) for source in named]
    if len(named) == 1:
        return found[0].sample(max_rows, seed) if max_rows else found[0]
    sizes = [len(rows) for rows in found]
    counts = _counts(named, sizes, max_rows)
    mixture: list[dict] = []
    origins, whence, places = [], array("H"), Places()
    for number, (source, rows, count) in enumerate(zip(named, found, counts, strict=True)):
        draw = random.Random(f"{seed} {number} {source}")
        chosen = sorted(draw.sample(range(len(rows)), count))
        mixture += [rows[i] for i in chosen]
        places += rows.places.only(chosen)
        whence.extend([number] * count)
        origins.append(f"{count:,} of {len(rows):,} rows of {rows.origin}")
    drawn = f", drawn by seed {seed}" if counts != sizes else ""
    name = " ".join([*(rows.sha256 for rows in found), *map(str, counts), str(seed)])
    return Rows(
        mixture,
        f"{' + '.join(origins)}{drawn}",
        digest(name.encode()),
        sum(rows.skipped for rows in found),
        tuple(dict.fromkeys(name for rows in found for name in rows.ignored)),
        places if len(places.number) == len(mixture) else Places(),
        sources=tuple(map(str, named)),
        source=whence,
        on_bad_row=found[0].on_bad_row,
    )


def sources(spec: str) -> list[Source]:
    """What ``a.jsonl,b.parquet=0.3,hub:owner/name:split`` names.

    Commas stand between sources, but not in a path that exists as it stands. ``=0.3`` behind one is
    its share of the mixture: 3 of 10 of its rows. ``hub:`` is a dataset on the Hub, whatever lies here,
    and a colon behind it names its split; elsewhere a colon is part of the name (``C:\\a.jsonl``, ``a.en:a.de``).
    Raises ``UserError`` for shares that cannot be, nothing beside a comma, and a source named twice.
    """
    words, found = spec.split(","), list[Source]()
    while words:
        many = range(len(words), 1, -1)
        count = next((n for n in many if _exists(",".join(words[:n]))), 1)
        word, words = ",".join(words[:count]).strip(), words[count:]
        if not word:
            raise UserError(f"{spec!r} names nothing beside a comma; write PATH or PATH,PATH=0.3")
        found.append(_source(word))
    for source in found:
        if sum((s.place, s.split) == (source.place, source.split) for s in found) > 1:
            raise UserError(f"{source} is named twice in {spec!r}")
    shares = [s.share for s in found if s.share is not None]
    total = sum(shares, Fraction())
    if shares and len(found) == 1:
        raise UserError(
            f"{spec!r}: a share is of a mixture, and there is one source; --max-rows takes fewer rows of it"
        )
    if len(shares) == len(found) and abs(total - 1) > Fraction(1, 10**6):
        raise UserError(
            f"{spec!r}: the shares add up to {float(total):g}; wanted is 1, or a source without one, "
            "which takes the rest"
        )
    if len(shares) < len(found) and total >= 1:
        raise UserError(
            f"{spec!r}: the shares add up to {float(total):g}, which leaves nothing for "
            f"{next(s for s in found if s.share is None)}"
        )
    return found


def _source(word: str) -> Source:
    share = None
    if (weight := _WEIGHT.search(word)) and not _path_exists(word):
        word = word[: weight.start()].strip()
        try:
            share = Fraction(weight[1])
        except (ValueError, ZeroDivisionError):
            share = Fraction(0)
        if not 0 < share < 1:
            raise UserError(
                f"{word}={weight[1]}: a source's share of the mixture is above 0 and below 1; {word}=0.3 makes "
                "3 of 10 rows its own"
            )
    if hub := _HUB.fullmatch(word):
        return Source(hub[1], hub[2], share)
    return Source(word, share=share)


def _exists(text: str) -> bool:
    """Whether a text with commas names one place, with or without a share behind it."""
    return _path_exists(text) or _path_exists(_WEIGHT.sub("", text))


def _path_exists(text: str) -> bool:
    """Whether this is a path, or two aligned ones with a colon between, as they stand."""
    try:
        if Path(text.strip()).expanduser().exists():
            return True
        return aligned(text) is not None
    except OSError:  # too long for a name
        return False


def aligned(text: str) -> tuple[str, str] | None:
    """The two files of ``a.en:a.de``, at the colon that leaves a file on each side; none without one."""
    for colon in re.finditer(":", text):
        pair = text[: colon.start()].strip(), text[colon.end() :].strip()
        if all(Path(part).expanduser().is_file() for part in pair):
            return pair
    return None


def _counts(named: Sequence[Source], sizes: Sequence[int], max_rows: int | None) -> list[int]:
    """How many rows each source gives: shares of the largest mixture that needs no row twice."""
    free = sum(n for source, n in zip(named, sizes, strict=True) if source.share is None)
    left = 1 - sum((s.share for s in named if s.share is not None), Fraction())
    shares = [
        s.share if s.share is not None else left * n / free
        for s, n in zip(named, sizes, strict=True)
    ]
    if free:
        total = Fraction(free) / left
    else:
        total = min(n / share for n, share in zip(sizes, shares, strict=True))
    total = min(total, Fraction(max_rows)) if max_rows else total
    counts = [int(total * share) for share in shares]
    rests = sorted(range(len(named)), key=lambda i: counts[i] - total * shares[i])
    for i in rests[: int(total) - sum(counts)]:
        counts[i] += 1
    for source, share, count, size in zip(named, shares, counts, sizes, strict=True):
        if count > size:
            most = size / (size + float(total * (1 - share)))
            raise UserError(
                f"{source} has {size:,} rows; to be {float(share):g} of the mixture it would have to give "
                f"{count:,} of {int(total):,}. Give it a smaller share (at most "
                f"{math.floor(most * 1000) / 1000}), or --max-rows {int(size / share)}"
            )
        if not count:
            raise UserError(
                f"{source} would give none of the {int(total):,} rows: raise --max-rows or its share"
            )
    return counts
