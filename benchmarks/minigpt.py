"""The mini-GPT's training step beside its peers, and generation with and without a cache; one run.

Command   python benchmarks/minigpt.py --out minigpt.json
          python benchmarks/minigpt.py --peers ft --batch-size 64 --steps 3       the book's batch
Hardware  two CPU cores and 20 GiB of memory, and nothing else running on them
Time      about 10 minutes, and a few more the first time, which installs the peers

The architecture of the book (41.8 M parameters, windows of 256) in fp32, from the same weights and on
the same batches: ft's recipe with all that belongs to it (data from text, clipping, AdamW, logging),
the same model in Keras 3 on two backends, in a plain eager PyTorch loop, and transformers' GPT-2 of
that size under ``Trainer``. Each is a process that sleeps until it may take one step; then the next
one takes the same step. Before the first, models of one architecture must agree in the loss of a
batch without dropout to 1e-4, or the exit status is 1.
"""

import dataclasses
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, Literal

from harness.environments import python_of
from harness.interleaved import measure as take_turns
from harness.process import Worker, start
from harness.report import cpu_name

from ft import config
from ft.errors import UserError
from ft.files import write_json

TOLERANCE = 1e-4  # relative difference of the loss without dropout
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "minigpt_pretrain.py"


@dataclasses.dataclass(frozen=True)
class Peer:
    """A way to train: its script, the environment that runs it (None: this one), Keras's backend."""

    script: str
    environment: str | None = None
    backend: str = ""
    same: bool = True  # the book's architecture


PEERS = {
    "ft": Peer("peers/minigpt_ft.py"),
    "eager": Peer("peers/minigpt_eager.py"),
    "keras-jax": Peer("peers/minigpt_keras.py", "keras", "jax"),
    "keras-torch": Peer("peers/minigpt_keras.py", "keras", "torch"),
    "gpt2-trainer": Peer("peers/minigpt_trainer.py", "hf", same=False),
}
LIMIT = "limit"  # beside the peers, the fp32 matrix products that bound them


@dataclasses.dataclass(frozen=True)
class Config:
    """What to compare, on what."""

    data: str = "../shared/data/wikitext-2"  # a corpus, as the recipe takes it
    vocab_size: int = 32_000  # pieces of the tokenizer that is made of it
    batch_size: int = 16  # windows of 256; the book's 64 need 15 GB for each peer but ft
    precision: Literal["fp32", "bf16"] = "fp32"  # of ft's products; the peers' are in fp32
    steps: int = 5  # the first one warms up and is not timed
    peers: tuple[str, ...] = tuple(PEERS)  # the first is what the others are compared with
    generate: bool = True  # also 256 tokens with and without a cache
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


def main(c: Config) -> None:
    """Install what is missing, run the steps, print the table; exit 1 if models disagree."""
    pythons = {name: python_of(PEERS[name].environment) for name in c.peers}
    if c.setup:
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="ft-bench-") as temporary:
        job = prepare(c, Path(temporary))
        result = steps(c, pythons, job, Path(temporary))
    from ft.minigpt import MiniGPTConfig

    flops = MiniGPTConfig(**job["shape"]).flops_per_token(256)
    peak = max(step["gflops"] for step in result["steps"][LIMIT])
    result |= {
        "cpu": cpu_name(),
        "load_average": [load, os.getloadavg()[0]],
        "options": config.to_dict(c),
        "mflop_per_token": flops / 1e6,
        "fp32_peak_gflops": peak,
        "summary": {name: summary(c, result, name, flops / 1e9 / peak) for name in c.peers},
    }
    if c.generate:
        result["generation"] = generation(c, MiniGPTConfig(**job["shape"]))
    if c.out:
        write_json(c.out, result)
    print(table(c, result))
    checks = {n: result["started"][n]["check"] for n in c.peers if PEERS[n].same}
    middle = median(checks.values())
    wrong = [name for name, loss in checks.items() if not abs(loss / middle - 1) <= TOLERANCE]
    if wrong or not result.get("generation", {"same_tokens": True})["same_tokens"]:
        print(f"FAILED: {', '.join(wrong) or 'generation'} disagrees: {checks}")
        raise SystemExit(1)


def prepare(c: Config, folder: Path) -> dict[str, Any]:
    """Make tokenizer, batches and initial weights: the job that all peers share."""
    flags = [
        "--preset",
        "book",
        "--data",
        str(Path(c.data).resolve() if Path(c.data).exists() else c.data),
    ]
    flags += ["--vocab-size", str(c.vocab_size), "--per-device-train-batch-size", str(c.batch_size)]
    flags += ["--max-steps", str(c.steps + 1), "--valid-tokens", "1024", "--logging-steps", "1"]
    flags += ["--warmup-steps", "1", "--eval-steps", "1000000", "--save-steps", "1000000"]
    flags += ["--precision", c.precision]
    place = folder / "prepared"
    task = {"recipe": str(RECIPE), "flags": flags, "steps": c.steps + 1, "output": str(place)}
    if start(sys.executable, "harness/minigpt_prepare.py", task, c.threads).wait():
        raise UserError((place / "log.txt").read_text().strip().rpartition("error: ")[2])
    return {
        "weights": str(place / "model" / "model.safetensors"),
        "batches": str(place / "batches.npy"),
        "shape": json.loads((place / "model" / "config.json").read_text()),
        "flags": flags,
        "learning_rate": 2e-4,
        "max_grad_norm": 1.0,
    }


def steps(c: Config, pythons: dict[str, str], job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every step of all peers before the next step: what each said when it started and after each."""
    workers: list[Worker] = []
    started: dict[str, Any] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for name in (*c.peers, LIMIT):
            peer = PEERS.get(name, Peer("peers/minigpt_limit.py"))
            own = job | {"output": str(folder / name), "backend": peer.backend}
            python = pythons.get(name, sys.executable)
            workers.append(Worker(name, python, peer.script, own, c.threads))
            started[name], found[name] = workers[-1].started, []
            print(f"{name} is ready after {started[name]['start_s']:.1f} s", file=sys.stderr)
        for step in range(c.steps):
            turn = step % len(workers)  # another one begins each time
            for worker in workers[turn:] + workers[:turn]:
                done = worker.step()
                found[worker.name].append(done)
                text = f"step {step + 1}/{c.steps} {worker.name} {done['wall_s']:.2f} s"
                print(text, file=sys.stderr)
    finally:
        for worker in workers:
            worker.stop()
    return {"started": started, "steps": found}


def summary(c: Config, result: dict[str, Any], name: str, share_of: float) -> dict[str, float]:
    """One peer's medians over the timed steps; ratios are those of the same step."""
    mine, others = result["steps"][name][1:], result["steps"][c.peers[0]][1:]
    rate = c.batch_size * 256 / median(step["wall_s"] for step in mine)
    pairs = list(zip(mine, others, strict=True))
    return {
        "tokens_per_s": rate,
        "peak_share": rate * share_of,
        "wall_s": median(step["wall_s"] for step in mine),
        "cpu_s": median(step["cpu_s"] for step in mine),
        "wall_ratio": median(a["wall_s"] / b["wall_s"] for a, b in pairs),
        "cpu_ratio": median(a["cpu_s"] / b["cpu_s"] for a, b in pairs),
        "peak_mib": mine[-1]["peak_mib"],
        "loss": mine[-1]["loss"],
    }


def generation(c: Config, shape: Any) -> dict[str, Any]:
    """The most likely tokens up to 256 after 8, by the model with and without a cache, in turns."""
    import torch

    from ft.generate.decoding import Decoder
    from ft.generate.samplers import argmax
    from ft.minigpt import MiniGPTForCausalLM

    torch.set_num_threads(c.threads)
    torch.manual_seed(0)
    model, written = MiniGPTForCausalLM(shape).eval(), {}

    def write(cached: bool) -> None:
        decoder, ids = Decoder(model, [list(range(2, 10))], 0, use_cache=cached), []
        for _ in range(256 - 8):
            ids.append(argmax(decoder.logits))
            decoder.step(ids[-1])
        written[cached] = torch.stack(ids).tolist()

    found = take_turns({"cached": lambda: write(True), "uncached": lambda: write(False)}, 3, "cpu")
    ratio = found["uncached"]["wall_s"] / found["cached"]["wall_s"]
    return found | {"ratio": ratio, "same_tokens": written[True] == written[False]}


def table(c: Config, result: dict[str, Any]) -> str:
    """The summaries as a Markdown table, between a line about the machine and the versions."""
    before, after = result["load_average"]
    lines = [
        f"{result['cpu']}, {c.threads} threads, load average {before:.2f} before and {after:.2f} after; "
        f"fp32 matrix peak {result['fp32_peak_gflops']:.0f} GFLOP/s, {result['mflop_per_token']:.0f} "
        f"MFLOP a token; {c.batch_size} windows of 256 a step; × columns are multiples of {c.peers[0]}'s.",
        "",
        "| peer | tokens/s | of fp32 peak | s/step | CPU s/step | time × | CPU × | peak MiB | loss without dropout |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, row in result["summary"].items():
        check = result["started"][name].get("check")
        lines.append(
            f"| {name} | {row['tokens_per_s']:.0f} | {row['peak_share']:.0%} | {row['wall_s']:.2f} | "
            f"{row['cpu_s']:.2f} | {row['wall_ratio']:.2f} | {row['cpu_ratio']:.2f} | "
            f"{row['peak_mib']:.0f} | {'' if check is None else f'{check:.5f}'} |"
        )
    if found := result.get("generation"):
        lines.append(
            f"\n256 tokens, 8 of them given: {found['cached']['wall_s']:.2f} s with a cache, "
            f"{found['uncached']['wall_s']:.2f} s without, {found['ratio']:.1f} times as long; "
            f"{'the same tokens' if found['same_tokens'] else 'OTHER TOKENS'}"
        )
    lines.append("")
    users: dict[str, list[str]] = {}  # versions -> the peers that run with them
    for name, started in result["started"].items():
        versions = ", ".join(f"{k} {v}" for k, v in started["versions"].items())
        users.setdefault(versions, []).append(name)
    return "\n".join([*lines, *(f"{', '.join(who)}: {what}" for what, who in users.items())])


if __name__ == "__main__":
    config.run(main, Config, __doc__)
