"""What a translation recipe learns from, watches and is scored on: MTNT, or pairs of the user's own."""

import dataclasses
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.data.delimited import Quoting
from ft.data.encodings import suffix_of
from ft.data.mtnt import PAIRS, SPLITS, mtnt
from ft.data.mtnt import normalize_punctuation as as_mtnt_has_it
from ft.data.rows import Rows
from ft.data.tables import FORMATS, open_pairs
from ft.errors import UserError
from ft.text import languages

HELD_OUT = {"test": 1000, "valid": 200}  # rows of the user's own at most, and a tenth of them


def translation_splits(
    splits: Sequence[str] = SPLITS,
    data: str = "sample",
    language_pair: str = "en-fr",
    *,
    valid_data: str | None = None,
    test_data: str | None = None,
    extra_data: str | None = None,
    extra_rows: int | None = None,
    normalize_punctuation: bool = False,
    quoting: Quoting = "auto",
    reading: str = "text",
    on_bad_row: str = "error",
    seed: int = 42,
    max_rows: int | None = None,
) -> dict[str, Rows]:
    """The rows of the ``splits``, of train, valid and test, in the direction of ``language_pair``.

    ``data`` is MTNT as ``mtnt`` takes it, with its own splits, or pairs as ``open_pairs`` does,
    ``max_rows`` of them in all, of several sources mixed by ``seed``. Of these, what ``valid_data`` and
    ``test_data`` do not name is held out by ``seed``: a tenth, at most 1,000 rows for the test and 200 to
    watch; the origins say so. ``extra_data`` are more pairs to train on, ``extra_rows`` how many of them. ``normalize_punctuation`` is done to French training
    targets only. Raises ``UserError`` as these do, and for fewer rows than can be held out of.
    """
    _, target = languages.pair(language_pair)

    def opened(spec: str, most: int | None = None) -> Rows:
        options: dict[str, Any] = {"quoting": quoting, "on_bad_row": on_bad_row, "seed": seed}
        return open_pairs(spec, pair=language_pair, **options, max_rows=most)

    given = {"valid": valid_data, "test": test_data}
    found = {split: opened(spec) for split, spec in given.items() if spec and split in splits}
    if is_mtnt(data):
        if max_rows:
            raise UserError(
                "--max-rows is of your own pairs; MTNT is taken whole, --max-steps ends sooner"
            )
        if language_pair not in PAIRS:
            raise UserError(
                f"language pair {language_pair!r}: MTNT has {', '.join(PAIRS)}; for another name pairs "
                "of your own with --data (docs/data.md)"
            )
        wanted = [split for split in splits if split not in found]
        options: dict[str, Any] = {"reading": reading, "on_bad_row": on_bad_row}
        found |= {split: mtnt(split, language_pair, data, **options) for split in wanted}
    else:
        if reading != "text":
            raise UserError(
                f"--reading {reading} is of MTNT; for your own pairs there is --quoting"
            )
        found |= _held_out(opened(data, max_rows), [s for s in HELD_OUT if not given[s]], seed)
    if extra_data and "train" in splits:
        more = opened(extra_data)
        found["train"] += more.sample(extra_rows, seed) if extra_rows else more
    if normalize_punctuation and "train" in splits and target.base == "fr":
        found["train"] = found["train"].map_targets(as_mtnt_has_it)
    return {split: found[split] for split in splits}


def translation_split(
    split: str, data: str, language_pair: str, *, quoting: Quoting = "auto"
) -> Rows:
    """Rows to score a finished run on: a split of MTNT, or all pairs of the user's own.

    Raises ``UserError`` for another split than ``test`` of these, which have none.
    """
    if is_mtnt(data):
        return mtnt(split, language_pair, data)
    if split != "test":
        raise UserError(f"--split {split}: other data than the run's is scored whole; leave it out")
    return open_pairs(data, pair=language_pair, quoting=quoting)


def one_line(splits: Mapping[str, Rows], reading: str = "text") -> bool:
    """Whether every translation is one line, so that a line break may end it.

    MTNT's are; where its ``reading`` as CSV merges some, the tutorials end answers at a line all the same.
    """
    return reading == "tfds" or not any(
        "\n" in row["target"] for found in splits.values() for row in found
    )


def is_mtnt(data: str) -> bool:
    """Whether ``--data`` names MTNT (``sample``, ``release``, its folder or archive) and not own pairs."""
    path = Path(data).expanduser()
    if data in ("sample", "release") or path.name.lower().endswith((".tar.gz", ".tgz")):
        return True
    if path.is_dir():
        layout = ("MTNT", "MTNT2019", "*.final.tsv", *(f"{s}/{s}.*-*.tsv" for s in SPLITS))
        return any(any(path.glob(part)) for part in layout)
    if path.is_file():
        import tarfile

        return suffix_of(path) not in FORMATS and tarfile.is_tarfile(path)
    return path.name in ("MTNT", "mtnt")


def _held_out(own: Rows, splits: list[str], seed: int) -> dict[str, Rows]:
    """Rows to train on, and those held out of them for each split; of two rows one is held out for all."""
    if not splits:
        return {"train": own}
    if len(own) == 1:
        raise UserError(
            f"{own.origin} has one row, so none can be held out to watch and to score; name others with "
            "--valid-data and --test-data"
        )
    sizes = {split: min(HELD_OUT[split], max(1, len(own) // 10)) for split in splits}
    if len(own) == 2:
        drawn = dict.fromkeys(splits, [random.Random(seed).randrange(2)])
    else:
        order = random.Random(seed).sample(range(len(own)), sum(sizes.values()))
        drawn = {split: [order.pop() for _ in range(n)] for split, n in sizes.items()}
    held = {i for chosen in drawn.values() for i in chosen}
    found = {"train": own.without(held, f"without {len(held)} held out by seed {seed}")}
    for split, chosen in drawn.items():
        rest = set(range(len(own))) - set(chosen)
        counted = dataclasses.replace(own, skipped=0)  # bad ones are, among those to train on
        found[split] = counted.without(rest, f"{len(chosen)} held out by seed {seed}")
    return found
