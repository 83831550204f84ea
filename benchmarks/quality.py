"""What `trl sft` reaches on the rows of a finished run, in the same wall-clock time.

    accelerate launch recipes/mtnt_lora.py --data PATH/TO/MTNT …        makes runs/mtnt_lora
    python benchmarks/quality.py --run runs/mtnt_lora --out quality.json

TRL's own script trains on the same prompts and completions, with its defaults and LoRA (`--use_peft`),
until the time that the run spent on training and validation is over. Both are then compared on the
run's test lines: greedy decoding, the same stop rules, paired bootstrap.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ft import config, files, machine
from ft.errors import UserError
from ft.runs import opened
from ft.score import translation

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Config:
    run: Path = Path("runs/mtnt_lora")  # a finished run of recipes/mtnt_lora.py
    seconds: float | None = None  # time for TRL; none: as long as the run trained and validated
    limit: int | None = None  # test lines to score; none: those of the run
    work: Path = Path("runs/trl")  # TRL's data, log and checkpoints; one that is there is scored
    out: Path | None = None  # where the result goes, as JSON


def train(model: Path, rows: list[dict[str, str]], folder: Path, seconds: float) -> Path:
    """Run TRL's script for ``seconds`` from its first step on; its last checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "train.jsonl").write_text(lines, encoding="utf-8")
    out = folder / "trl"
    command = ["trl", "sft", "--model_name_or_path", str(model)]
    command += ["--dataset_name", str(folder / "data")]
    command += ["--use_peft", "--use_cpu", "--save_steps", "5", "--save_total_limit", "2"]
    command += ["--report_to", "none", "--output_dir", str(out)]
    first = f" 0/{3 * math.ceil(len(rows) / 8)} "  # the bar of training: 3 epochs in batches of 8
    cores = str(len(os.sched_getaffinity(0)))
    with open(folder / "log.txt", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": cores},
            start_new_session=True,  # it trains in a child of its own, which must end with it
        )
        started = None
        while process.poll() is None:
            text = (folder / "log.txt").read_text(errors="replace")
            if started is None and first in text:
                started = time.monotonic()
            if started is not None and time.monotonic() - started > seconds:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(1)
    found = checkpoints(folder)
    if not found:
        raise UserError(
            f"trl saved nothing in {seconds:.0f} s:\n{(folder / 'log.txt').read_text()[-2000:]}"
        )
    return found[-1]


def checkpoints(folder: Path) -> list[Path]:
    """TRL's complete checkpoints, oldest first."""
    found = [p.parent for p in folder.glob("trl/checkpoint-*/trainer_state.json")]
    return sorted(found, key=lambda p: int(p.name.split("-")[1]))


def main(c: Config) -> None:
    """Train with TRL, translate, compare."""
    from peft import PeftModel

    from ft import models

    run = opened.finished(c.run)
    recipe, settings = opened.recipe(
        RECIPES / f"{run.record['recipe']}.py", ["--config", str(run.folder / "config.yaml")]
    )
    pairs = [run.template.render(row) for row in recipe.rows(settings)["train"]]
    seconds = c.seconds or run.record["training"]["wall_seconds"]
    base = models.load(settings.model_name_or_path)
    done = checkpoints(c.work)
    checkpoint = done[-1] if done else train(base.path, pairs, c.work, seconds)
    steps = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    print(f"{steps} steps of TRL in {seconds:.0f} s")

    test = run.record.get("evaluation", {}).get("test", {}).get("samples", [])[: c.limit]
    if not test:
        raise UserError(f"{c.run} is not finished: it has no translations of the test split yet")
    machine.use_all_cores()
    model = PeftModel.from_pretrained(base.model, str(checkpoint))
    found = translation.translate(model, base.tokenizer, run.template, test)
    systems = {"trl": found, "ft": [row["tuned"] for row in test]}
    result = translation.scores(systems, [row["reference"] for row in test])
    result |= {"seconds": seconds, "trl_steps": steps, "versions": machine.versions()}
    for system in systems:
        print(system, json.dumps(result[system]))
    print("p", result["p_value"], result["signatures"])
    if c.out:
        files.write_json(c.out, result)


if __name__ == "__main__":
    if shutil.which("trl") is None:
        sys.exit(
            "error: `trl` is not on the PATH; activate the environment that ft is installed in"
        )
    config.run(main, Config, __doc__)
