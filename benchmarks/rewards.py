"""What learning from rewards changed: a run and all that began from it, on the same lines, at once.

    python benchmarks/rewards.py --start runs/mtnt_real --data PATH/TO/MTNT --out rewards.json \\
        --runs runs/reject0,runs/reject1,runs/dpo0,runs/dpo1,runs/grpo0,runs/grpo1

Translates each line of the test split greedily with the start and with each run, scores all, and tests
each against the start by paired bootstrap. Choose settings on valid (`--split valid`); this is for the end.
"""

from dataclasses import dataclass
from pathlib import Path

from ft import config, data, files, machine, models
from ft.errors import UserError
from ft.models import lora
from ft.rewards import policy
from ft.runs import opened
from ft.score import translation
from ft.score.comparison import cell


@dataclass(frozen=True)
class Config:
    start: str = "runs/mtnt_lora"  # finished run that the others began from
    runs: tuple[str, ...] = ()  # runs of mtnt_reject.py, mtnt_dpo.py or mtnt_grpo.py
    data: str = "sample"  # as the recipes take it
    split: str = "test"
    limit: int | None = None  # lines; none: all
    precision: str = "auto"  # of the base
    out: Path | None = None  # scores and translations as JSON


def main(c: Config) -> None:
    """Translate, score and print a table."""
    start = opened.finished(c.start)
    for name in c.runs:
        begun = opened.finished(name)
        if "run" not in begun.settings or begun.template != start.template:
            raise UserError(f"{name} did not begin from {c.start}")
    rows = data.mtnt(c.split, start.settings["language_pair"], c.data)
    rows = rows.head(c.limit) if c.limit else rows
    print(machine.use_all_cores())
    print(f"{len(rows):,} rows  {rows.origin}")
    base = models.load(start.settings["model_name_or_path"], precision=c.precision, inference=True)
    model = lora.load(base, start.folder)
    systems = {}
    for name in (c.start, *c.runs):
        if systems:
            policy.replace_adapter(model, opened.finished(name).folder)
        systems[name] = translation.translate(model, base.tokenizer, start.template, list(rows))
    result = translation.scores(systems, [row["target"] for row in rows])
    print(
        "| | BLEU | chrF | p of BLEU | p of chrF | loops | characters a line |\n"
        "|---|---|---|---|---|---|---|"
    )
    for name in systems:
        cells = [cell(result[name][key]) for key in ("bleu", "chrf")]
        p = result["p_value"].get(name)  # the start has none
        cells += [f"{p[key]:.3f}" if p else "" for key in ("bleu", "chrf")]
        cells.append(f"{result[name]['loops']}")
        cells.append(f"{sum(map(len, systems[name])) / len(rows):.0f}")
        print(f"| {Path(name).name} | {' | '.join(cells)} |")
    print(result["signatures"])
    if c.out:
        files.write_json(c.out, result | {"translations": systems, "origin": rows.origin})


if __name__ == "__main__":
    config.run(main, Config, __doc__)
