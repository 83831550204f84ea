"""Make a run's page again, or one that compares several runs."""

import argparse
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError

COMPARED = "compared.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft report``."""
    parser.epilog = "example: ft report runs/mtnt_lora runs/mtnt_r32 --output ranks.html"
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or one on the Hub")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"where to (default: report.html in the folder of one run, here of one on the Hub; {COMPARED} here of several)",
    )


def command(runs: list[str], output: Path | None) -> None:
    """Write the page and say where it lies. Raises ``UserError`` for what is not a run."""
    from ft.files import write_text
    from ft.runs import report

    folders = named(runs)
    alone, local = len(folders) == 1, Path(runs[0]).expanduser()
    usual = (local if local.is_dir() else Path()) / report.REPORT if alone else Path(COMPARED)
    place = output or usual
    if place.is_dir() or not place.parent.is_dir():
        raise UserError(f"--output {place}: name a file in a folder that exists")
    if alone:
        ((name, folder),) = folders.items()
        page = report.page(folder, name)
    else:
        page = report.compared(folders, paired(folders))
    write_text(place, page)
    print(place)


def named(runs: Sequence[str]) -> dict[str, Path]:
    """The runs' folders by names that tell them apart: as much of a folder as that takes, or the Hub's.

    Raises ``UserError`` for what is not a run, and for one that is named twice.
    """
    from ft.runs import hub

    local = [Path(run).expanduser() for run in runs]
    folders = [
        path if path.is_dir() else hub.pull(run) for path, run in zip(local, runs, strict=True)
    ]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("a run is named twice: there is nothing to compare it with")
    parts = [p.resolve().parts if p.is_dir() else (r,) for p, r in zip(local, runs, strict=True)]
    names = [each[-1] for each in parts]
    count = 1
    while len(set(names)) < len(names):
        count += 1
        names = ["/".join(each[-count:]) for each in parts]
    return dict(zip(names, folders, strict=True))


def paired(folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The test of every two runs on each score of a split whose rows are the same in both."""
    from ft.runs.folder import read

    found = []
    records = ((name, read(folder)) for name, folder in folders.items())
    for (first, one), (second, two) in itertools.combinations(records, 2):
        for split, left in one.get("evaluation", {}).items():
            right = two.get("evaluation", {}).get(split, {})
            for metric, a, b, p in _tested(left, right):
                found.append({"split": split, "metric": metric, "first": first, "second": second})
                found[-1] |= {"a": a, "b": b, "p": p}
    return found


def _tested(
    left: Mapping[str, Any], right: Mapping[str, Any]
) -> list[tuple[str, float, float, float]]:
    """Each score's name, both values and p; none where rows, references or ways to score differ."""
    from ft.runs.card_header import METRICS
    from ft.score import instructions, translation

    one, two = left.get("samples", []), right.get("samples", [])
    signatures = left.get("signatures", {})
    same = [_without_answers(s) for s in one] == [_without_answers(s) for s in two]
    if not one or not same or signatures != right.get("signatures"):
        return []
    if not all({"reference", "tuned"} <= sample.keys() for sample in one):
        return []
    systems = {"a": [s["tuned"] for s in one], "b": [s["tuned"] for s in two]}
    references = [sample["reference"] for sample in one]
    if "bleu" in signatures:
        tokenizer = re.search(r"tok:([\w-]+)", signatures["bleu"])
        assert tokenizer is not None
        found = translation.scores(systems, references, tokenizer=tokenizer[1])
    elif "rouge_l" in signatures:
        found = instructions.scores(systems, references)
    else:
        return []
    # sacreBLEU's test gives equal answers the smallest p that there is
    p_values = found["p_value"]["b"]
    if systems["a"] == systems["b"]:
        p_values = dict.fromkeys(p_values, 1.0)
    return [
        (METRICS[key][0], found["a"][key]["score"], found["b"][key]["score"], p)
        for key, p in p_values.items()
    ]


def _without_answers(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a sample asks and expects."""
    return {k: v for k, v in sample.items() if not k.startswith(("base", "tuned"))}
