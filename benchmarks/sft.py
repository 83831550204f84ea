"""LoRA fine-tuning beside its peers: same rows, same adapter, same steps, interleaved in one run.

Command   python benchmarks/sft.py --data ../shared/data/mtnt/MTNT --dataset mtnt --out mtnt.json
          python benchmarks/sft.py --data ../shared/data/dolly --dataset dolly --batch-size 4 --steps 5
Hardware  two CPU cores and 20 GiB of memory, and nothing else running on them
Time      about 10 minutes, and a few more the first time, which installs the peers

Each peer is a process that trains through its real trainer and sleeps until it may take one step;
then the next peer takes the same step. What slows the machine for a while so slows all of them.
Peers in fp32 must agree in loss and gradient norm to 1e-4, or the exit status is 1.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

from harness.environments import python_of
from harness.process import Worker, start
from harness.report import cpu_name, flops, summary, table

from ft import config
from ft.config import Amount, Count
from ft.errors import UserError
from ft.files import write_json
from ft.models import embedded

TOLERANCE = 1e-4  # relative difference of loss and gradient norm among fp32 peers


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to train: its script, the environment that runs it (None: this one), its precision."""

    script: str
    environment: str | None
    precision: Literal["fp32", "auto"]


PEERS = {
    "ft": Peer("peers/ft_recipe.py", None, "fp32"),
    "ft-auto": Peer("peers/ft_recipe.py", None, "auto"),
    "trl": Peer("peers/trl_sft.py", "hf", "auto"),
    "trl-fp32": Peer("peers/trl_sft.py", "hf", "fp32"),
    "unsloth": Peer("peers/unsloth_sft.py", "unsloth", "auto"),
    "unsloth-fp32": Peer("peers/unsloth_sft.py", "unsloth", "fp32"),
    "trainer": Peer("peers/transformers_trainer.py", "hf", "fp32"),
}
LIMIT = "limit"  # beside the peers, the fp32 matrix products that bound them
SCRIPTS = {name: peer.script for name, peer in PEERS.items()} | {LIMIT: "peers/roofline.py"}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare, on what."""

    # data
    data: Path = Path("../shared/data/mtnt/MTNT")  # MTNT's folder, or Dolly's
    dataset: Literal["mtnt", "dolly"] = "mtnt"  # what lies there
    max_length: Count = 1024  # tokens; longer rows are dropped
    # training
    model_name_or_path: str = "embedded"  # "embedded" or a local Hugging Face folder
    batch_size: int = 8  # examples per optimizer step
    steps: int = 6  # the first one warms up and is not timed
    learning_rate: Amount = 2e-4
    lora_r: int = 16
    lora_alpha: Count = 16
    # run
    peers: tuple[str, ...] = tuple(PEERS)  # the first is what the others are compared with
    threads: int = 2
    out: Path | None = None  # JSON file for the result
    setup: bool = False  # only install the peers' environments

    def check(self) -> list[str]:
        """Mistakes that the types cannot tell."""
        mistakes = [
            f"--peers: {name!r} is none of {', '.join(PEERS)}"
            for name in self.peers
            if name not in PEERS
        ]
        if not self.peers:
            mistakes.append("--peers names no peer")
        if self.steps < 2:
            mistakes.append("--steps must be 2 or more: the first warms up")
        return mistakes


def main(options: Config) -> None:
    """Install what is missing, run the steps, print the table; exit 1 if fp32 peers disagree."""
    pythons = {name: python_of(PEERS[name].environment) for name in options.peers}
    if options.setup:
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as temporary:
        job = prepare(options, Path(temporary))
        result = measure(options, pythons, job, Path(temporary))
        rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    size = options.batch_size
    batches = [rows[i * size : (i + 1) * size] for i in range(options.steps)]
    tokens = [sum(len(row["input_ids"]) for row in batch) for batch in batches]
    targets = [sum(label != -100 for row in batch for label in row["labels"]) for batch in batches]
    limit = result["started"][LIMIT]
    result |= {
        "cpu": cpu_name(),
        "load_average": [load, os.getloadavg()[0]],
        "options": config.to_dict(options),
        "tokens": tokens,
        "supervised_tokens": targets,
        "gflop": [flops(n, m, limit) / 1e9 for n, m in zip(tokens, targets, strict=True)],
        "fp32_peak_gflops": max(step["gflops"] for step in result["steps"][LIMIT]),
    }
    first = options.peers[0]
    rows = result["summary"] = {name: summary(name, first, result) for name in options.peers}
    if options.out:
        write_json(options.out, result)
    print(table(result))
    fp32 = [name for name in options.peers if PEERS[name].precision == "fp32"]
    agree = [
        max(rows[n]["loss_diff"], rows[n]["norm_diff"]) <= TOLERANCE for n in fp32
    ]  # NaN fails
    if first in fp32 and not all(agree):
        wrong = [name for name, right in zip(fp32, agree, strict=True) if not right]
        print(f"FAILED: loss or gradient norm of {', '.join(wrong)} is not that of {first}")
        raise SystemExit(1)


def prepare(options: Config, folder: Path) -> dict[str, Any]:
    """Encode the rows and make the initial adapter: the job that all peers share."""
    local = options.model_name_or_path != "embedded"
    model = Path(options.model_name_or_path).resolve() if local else embedded.folder()
    place = folder / "prepared"
    task = {
        "model": str(model),
        "data": str(options.data.resolve()),
        "dataset": options.dataset,
        "max_length": options.max_length,
        "rows": options.batch_size * (options.steps + 1),  # one batch is fetched ahead
        "r": options.lora_r,
        "alpha": options.lora_alpha,
        "output": str(place),
    }
    if start(sys.executable, "harness/prepare.py", task, options.threads).wait():
        raise UserError((place / "log.txt").read_text().strip().rpartition("error: ")[2])
    return {
        "model": str(model),
        "adapter": str(place / "adapter"),
        "rows": str(place / "rows.jsonl"),
        "batch_size": options.batch_size,
        "steps": options.steps,
        "learning_rate": options.learning_rate,
        "max_length": options.max_length,
    }


def measure(
    options: Config, pythons: dict[str, str], job: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Every step of all peers before the next step: what each said when it started and after each."""
    workers: list[Worker] = []
    started: dict[str, Any] = {}
    steps: dict[str, list[dict[str, Any]]] = {}
    try:
        for name in (*options.peers, LIMIT):
            precision = PEERS[name].precision if name in PEERS else "fp32"
            own = job | {"output": str(folder / name), "precision": precision}
            python = pythons.get(name, sys.executable)
            workers.append(Worker(name, python, SCRIPTS[name], own, options.threads))
            started[name], steps[name] = workers[-1].started, []
            print(f"{name} is ready after {started[name]['start_s']:.1f} s", file=sys.stderr)
        for step in range(options.steps):
            turn = step % len(workers)  # another one begins each time
            for worker in workers[turn:] + workers[:turn]:
                done = worker.step()
                steps[worker.name].append(done)
                text = f"step {step + 1}/{options.steps} {worker.name} {done['wall_s']:.2f} s"
                print(text, file=sys.stderr)
    finally:
        for worker in workers:
            worker.stop()
    return {"started": started, "steps": steps}


if __name__ == "__main__":
    config.run(main, Config, __doc__)
