"""QLoRA on a GPU beside its peers: models of random weights in the true shapes, steps on real rows.

Command   python benchmarks/gpu.py --out gpu.json
          python benchmarks/gpu.py --device cpu --shape tiny      to see it run, without a GPU
Hardware  one GPU, 24 GB for the largest shape in 4 bits, and disk for the model in bf16 (17 GB for 7B)
Time      about 20 minutes (not run on a GPU yet)

Each peer is a process of its own that takes `--steps` steps on Dolly and then as many on MTNT, through
its real trainer: `ft` keeps its activations, as recipes do where the memory allows it, `ft-checkpointing`
does not; TRL's `SFTTrainer` has its defaults (checkpointing among them), the same LoRA and 4 bits, once as it is and once with what is not in 4 bits in bf16; Unsloth. All start from the same adapter and see the same rows; a loss or a
gradient norm of the first step that is not ft's makes the exit status 1, and so does a peer that fails.
FLOPs of a step are 4 N a token and 4 V H a supervised token (N weights in the layers, a head of V times H),
recomputation and padding not credited; their share is of the best bf16 product of this device, measured
before and after. Memory is `max_memory_allocated` in the steps, without what loading takes.
"""

import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from harness.process import Worker, cause, first_numbers, start
from harness.random_model import shape_of
from harness.report import cpu_name

from ft import config, machine
from ft.config import Amount, Count
from ft.errors import UserError
from ft.files import write_json
from ft.plan import layers as blocks

TOLERANCE = 0.05  # relative difference of the first loss and gradient norm, computed in bf16
SHAPES = ("gemma-2-2b", "gemma-2b", "gemma-7b", "gemma-3-4b")
SETS = ("dolly", "mtnt")  # in the order of the steps


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to train: its script, and what it is told besides."""

    script: str
    precision: str = "nf4"
    checkpointing: bool = False  # of ft; the others keep their own


PEERS = {
    "ft": Peer("peers/ft_recipe.py"),
    "ft-checkpointing": Peer("peers/ft_recipe.py", checkpointing=True),
    "trl": Peer("peers/trl_sft.py"),
    "trl-bf16": Peer("peers/trl_sft.py", "nf4, bf16"),
    "unsloth": Peer("peers/unsloth_sft.py"),
}
# shape, rows, and a figure of ft's faster way, or how many times a peer's it is: at least
GOALS = (
    ("gemma-2-2b", "dolly", "mfu", None, 0.45),
    ("gemma-2-2b", "dolly", "tokens_per_s", "trl", 2.0),
    ("gemma-2-2b", "dolly", "tokens_per_s", "unsloth", 1.0),
    ("gemma-2-2b", "mtnt", "tokens_per_s", "trl", 5.0),
)
# with checkpointing, examples that are all as long: how many, their tokens, GB at most
FULL = {"gemma-2-2b": (2, 512, 6.0), "gemma-7b": (1, 1024, 10.0), "tiny": (2, 64, 1.0)}
FULL_STEPS = 3
COLUMNS = {
    "s/step": ("s", ".3f"),
    "tokens/s": ("tokens_per_s", ",.0f"),
    "supervised/s": ("supervised_per_s", ",.0f"),
    "of the bf16 peak": ("mfu", ".1%"),
    "peak GB": ("peak_gb", ".2f"),
    "differs": ("differs", ".1%"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare, on what."""

    shape: tuple[str, ...] = SHAPES  # of these, or tiny
    peers: tuple[str, ...] = tuple(PEERS)  # the first is what the others are compared with
    device: Literal["cuda", "cpu"] = "cuda"
    unsloth_python: str = sys.executable  # an interpreter that has Unsloth; without it, left out
    # data
    dolly: Path = Path("../shared/data/dolly")  # the folder of databricks-dolly-15k.jsonl
    mtnt: str = "../shared/data/mtnt/MTNT"  # as recipes/mtnt_lora.py takes it
    tokenizer: str = "embedded"  # tells how long the rows are
    max_length: Count = 1024  # tokens; longer rows are dropped
    # training
    batch_size: int = 8  # examples per optimizer step
    steps: int = 6  # on each data set; the first one warms up and is not timed
    learning_rate: Amount = 2e-4
    lora_r: int = 16
    lora_alpha: Count = 32
    # run
    threads: int = 8
    out: Path | None = None  # JSON file for the result

    def check(self) -> list[str]:
        """Mistakes that the types cannot tell."""
        mistakes = [
            f"--{flag}: {name!r} is none of {', '.join(known)}"
            for flag, given, known in (
                ("peers", self.peers, PEERS),
                ("shape", self.shape, ("tiny", *SHAPES)),
            )
            for name in given
            if name not in known
        ]
        if not self.peers or not self.shape:
            mistakes.append("--peers and --shape must name one at least")
        if self.steps < 2:
            mistakes.append("--steps must be 2 or more: the first warms up")
        return mistakes


def main(c: Config) -> None:
    """Run every peer on every shape, print table and goals; exit 1 if one fails or disagrees."""
    import torch

    if c.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU here; --device cpu --shape tiny shows that it runs")
    peers = [name for name in c.peers if name != "unsloth" or has_unsloth(c.unsloth_python)]
    if len(peers) < len(c.peers):
        print(f"unsloth is left out: {c.unsloth_python} does not have it", file=sys.stderr)
    device = torch.device(c.device)
    peak = machine.matrix_peak(device, torch.bfloat16)
    rows: list[dict[str, Any]] = []
    for shape in c.shape:
        with tempfile.TemporaryDirectory(prefix="ft-gpu-") as folder:
            for row in train(c, shape, peers, Path(folder)):
                rows.append(row)
                if c.out:  # as far as it came
                    write_json(c.out, {"rows": rows})
    peak = max(peak, machine.matrix_peak(device, torch.bfloat16))
    for row in rows:
        if "flops_per_s" in row:
            row["mfu"] = row["flops_per_s"] / peak
    result = {
        "device": torch.cuda.get_device_name() if c.device == "cuda" else cpu_name(),
        "bf16_peak_tflops": peak / 1e12,
        "options": config.to_dict(c),
        "rows": rows,
        "goals": list(goals(rows)),
    }
    if c.out:
        write_json(c.out, result)
    print(table(result))
    failed = [row for row in rows if "error" in row or row.get("differs", 0.0) > TOLERANCE]
    for row in failed:
        print(f"FAILED: {row['shape']}, {row['peer']}: {row.get('error', 'another loss or norm')}")
    if failed:
        raise SystemExit(1)


def has_unsloth(python: str) -> bool:
    """Whether an interpreter has Unsloth, which is not imported."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('unsloth') is None)"
    return not subprocess.run([python, "-c", code]).returncode


def train(c: Config, shape: str, peers: list[str], folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of the table for one shape, each peer's as it ends."""
    place = folder / "prepared"
    batch, length, _ = FULL.get(shape, FULL["tiny"])
    task = {
        "shape": shape,
        "device": c.device,
        "dolly": str(c.dolly.resolve()),
        "mtnt": str(Path(c.mtnt).resolve()) if Path(c.mtnt).exists() else c.mtnt,
        "tokenizer": c.tokenizer,
        "max_length": c.max_length,
        "batch_size": c.batch_size,
        "steps": c.steps,
        "full": (batch * (FULL_STEPS + 1), length),
        "r": c.lora_r,
        "alpha": c.lora_alpha,
        "output": str(place),
    }
    if start(sys.executable, "harness/gpu_prepare.py", task, c.threads, c.device).wait():
        raise UserError((place / "log.txt").read_text().strip().rpartition("error: ")[2])
    examples = {
        name: [json.loads(line) for line in (place / f"{name}.jsonl").read_text().splitlines()]
        for name in ("rows", "full")
    }
    job = {
        "model": str(place / "model"),
        "adapter": str(place / "adapter"),
        "learning_rate": c.learning_rate,
        "device": c.device,
        "optim": "auto",
    }
    first: dict[str, float] = {}  # what the first peer said of the first step

    def run(
        name: str, file: str, sets: tuple[str, ...], size: int, steps: int, most: int
    ) -> list[dict[str, Any]]:
        own = job | {
            "rows": str(place / f"{file}.jsonl"),
            "output": str(folder / f"{name}-{file}"),
            "precision": PEERS[name].precision,
            "gradient_checkpointing": PEERS[name].checkpointing,
            "batch_size": size,
            "steps": steps * len(sets),
            "max_length": most,
        }
        try:
            taken = take(c, name, own)
        except UserError as error:
            return [{"shape": shape, "rows": file, "peer": name, "error": cause(str(error))}]
        found = list[dict[str, Any]]()
        for at, data in enumerate(sets):
            part = slice(at * steps, (at + 1) * steps)
            used = examples[file][part.start * size : part.stop * size]
            row = {"shape": shape, "rows": data, "peer": name}
            found.append(row | figures(taken[part], used, size, shape))
        if file == "rows":
            told = first_numbers(taken)
            first.update({} if first else told)
            off = (abs(told[k] / first[k] - 1) for k in told)
            found[0]["differs"] = max(off, default=float("inf"))
        return found

    for name in peers:
        yield from run(name, "rows", SETS, c.batch_size, c.steps, c.max_length)
    if shape in FULL and "ft-checkpointing" in peers:
        sets = (f"{batch} × {length:,}",)
        yield from run("ft-checkpointing", "full", sets, batch, FULL_STEPS, length)


def take(c: Config, name: str, job: dict[str, Any]) -> list[dict[str, float]]:
    """All steps of one peer. Raises ``UserError`` with its last words where it ends before."""
    python = c.unsloth_python if name == "unsloth" else sys.executable
    worker = Worker(name, python, PEERS[name].script, job, c.threads, c.device)
    taken = []
    try:
        for _ in range(job["steps"]):
            taken.append(worker.step())
            print(f"{job['output']} {taken[-1]['wall_s']:.3f} s", file=sys.stderr)
    finally:
        worker.stop()
    return taken


def figures(
    taken: list[dict[str, float]], examples: list[dict[str, list[int]]], size: int, shape: str
) -> dict[str, float]:
    """Seconds, rates and memory of some steps of ``size`` examples, the first of them not timed."""
    timed, seconds = examples[size:], sum(step["wall_s"] for step in taken[1:])
    tokens = sum(len(example["input_ids"]) for example in timed)
    supervised = sum(label >= 0 for example in timed for label in example["labels"])
    sizes = shape_of(shape)
    layers = sum(matrix.numbers for matrix in blocks.matrices(sizes))
    flops = 4 * layers * tokens + 4 * sizes.vocab_size * sizes.hidden_size * supervised
    return {
        "s": seconds / (len(taken) - 1),
        "tokens_per_s": tokens / seconds,
        "supervised_per_s": supervised / seconds,
        "flops_per_s": flops / seconds,
        "peak_gb": max(step["peak_mib"] for step in taken) * 2**20 / 1e9,
    }


def goals(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Each goal whose figures were measured."""

    def best(shape: str, data: str, figure: str, *names: str) -> float | None:
        seen = [r for r in rows if r["shape"] == shape and r["rows"] == data and figure in r]
        return max((r[figure] for r in seen if r["peer"] in names), default=None)

    ours = [name for name in PEERS if name.startswith("ft")]
    for shape, data, figure, peer, least in GOALS:
        reached = best(shape, data, figure, *ours)
        theirs = 1.0 if peer is None else best(shape, data, figure, peer)
        if reached is None or theirs is None:
            continue
        over = f" over {peer}'s" if peer else ""
        what = f"{shape}, {data}: {figure}{over} at least"
        yield {"goal": what, "bound": least, "reached": reached / theirs}
    for row in rows:
        if row["shape"] in FULL and row["rows"] not in (*SETS, "rows", "full"):
            what = f"{row['shape']}, {row['rows']} tokens: GB at most"
            yield {"goal": what, "bound": FULL[row["shape"]][2], "reached": row["peak_gb"]}


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table under a line about the device, and the goals."""
    lines = [
        f"{result['device']}; best bf16 product measured: {result['bf16_peak_tflops']:.2f} TFLOP/s",
        "",
        f"| shape | rows | peer | {' | '.join(COLUMNS)} |",
        f"|---|---|---|{'---:|' * len(COLUMNS)}",
    ]
    for row in result["rows"]:
        cells = [format(row[k], form) if k in row else "" for k, form in COLUMNS.values()]
        if "error" in row:
            cells[0] = "failed"
        lines.append(
            f"| {row['shape']} | {row['rows']} | {row['peer']} | " + " | ".join(cells) + " |"
        )
    lines += ["", "| goal | bound | reached |", "|---|---:|---:|"]
    lines += [f"| {g['goal']} | {g['bound']:g} | {g['reached']:.3g} |" for g in result["goals"]]
    return "\n".join(lines)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
