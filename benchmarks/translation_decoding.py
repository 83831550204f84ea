"""Ways in which one translation run can look for its answers, on lines that it was not trained on.

    python benchmarks/translation_decoding.py --run runs/mtnt_lora --ways greedy,beam4,beam4n4,mbr8 --out decoding.json

A way is `greedy`; `beamB`, B beams, with `nN` none of whose answers has the same N tokens twice and with `lP` whose
length penalty is P; or `mbrN`, of N answers drawn the one most like the others by chrF (`ft translate --mbr N`), with
`tT` drawn at temperature T. Each is scored on the same rows, and tested against the first.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import config, data, files, machine
from ft.config import Count
from ft.errors import UserError
from ft.generate.samplers import Beam, Greedy
from ft.runs import opened
from ft.score import decoding, translation
from ft.score.comparison import cell


@dataclass(frozen=True)
class Config:
    run: str = "runs/mtnt_lora"  # finished run
    ways: tuple[str, ...] = ("greedy", "beam4n4", "mbr8")
    data: str | None = None  # as the recipe takes it; none: what the run was trained with
    split: str = "valid"
    rows: Count = 80  # its first rows
    precision: str = "auto"  # of the base
    out: Path | None = None  # scores and translations as JSON


def way(name: str) -> Greedy | Beam | dict[str, Any]:
    """A sampler, or the options of ``minimum_risk``."""
    if name == "greedy":
        return Greedy()
    if found := re.fullmatch(r"mbr(\d+)(?:t([\d.]+))?", name):
        return {"n": int(found[1])} | ({"temperature": float(found[2])} if found[2] else {})
    found = re.fullmatch(r"beam(\d+)(?:n(\d+))?(?:l([\d.]+))?", name)
    if not found:
        raise UserError(
            f"ways: {name!r} is no way; they are greedy, beam4, beam4n4, beam4l0.8, mbr16, mbr16t0.7"
        )
    return Beam(int(found[1]), float(found[3] or 1), int(found[2] or 0))


def main(c: Config) -> None:
    """Translate in each way, score, print a table."""
    ways = {name: way(name) for name in c.ways}
    run = opened.finished(c.run)
    source, pair = c.data or run.settings["data"], run.settings["language_pair"]
    rows = list(data.translation_splits((c.split,), source, pair)[c.split].head(c.rows))
    print(machine.use_all_cores())
    o = opened.load(run, c.precision)
    asked: Any = (o.model, o.tokenizer, run.template, rows)
    found, seconds = {}, {}
    for name, how in ways.items():
        start = time.process_time()
        if isinstance(how, dict):
            found[name] = decoding.minimum_risk(*asked, **how)
        else:
            found[name] = translation.translate(*asked, sampler=how)
        seconds[name] = time.process_time() - start
    result = translation.scores(found, [row["target"] for row in rows])
    print(f"{len(rows)} rows, {c.split} of {source}")
    print("| | chrF | BLEU | p of chrF | loops | CPU s |\n|---|---|---|---|---|---|")
    for name, took in seconds.items():
        chrf, bleu = (cell(result[name][key]) for key in ("chrf", "bleu"))
        p = result["p_value"].get(name, {}).get("chrf")
        told = "" if p is None else f"{p:.3f}"
        print(f"| {name} | {chrf} | {bleu} | {told} | {result[name]['loops']} | {took:.0f} |")
    if c.out:
        files.write_json(c.out, result | {"cpu_seconds": seconds, "translations": found})


if __name__ == "__main__":
    config.run(main, Config, __doc__)
