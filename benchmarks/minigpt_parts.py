"""Which parts of the `modern` mini-GPT lower the validation loss, each changed in turn, at equal time.

    python benchmarks/minigpt_parts.py --data PATH/TO/wikitext-2/train.txt --valid-data PATH/TO/wikitext-2/valid.txt

Trains `recipes/minigpt_pretrain.py --preset modern` once as it is and once with each part changed, on one core
each and as many beside one another as there are cores, and prints bits per byte, best first. The whole of
`modern` can be trained with several seeds, to see what a difference must exceed.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from typing import Any

from ft import config, minigpt
from ft.config import Amount, Count
from ft.runs import opened

RECIPE = Path(__file__).parents[1] / "recipes" / "minigpt_pretrain.py"
# what stands in `modern`'s place; the last keeps the parameters, two matrices for three
PARTS: dict[str, dict[str, Any]] = {
    "qk_norm": {"qk_norm": False},
    "rope": {"rope": False},
    "rms_norm": {"rms_norm": False},
    "pre_norm": {"pre_norm": False},
    "bias": {"bias": True},
    "dropout": {"dropout": 0.1},
    "gated": {"gated": False, "intermediate_size": 2056},
}


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("builtin",)
    valid_data: tuple[str, ...] = ()
    vocab_size: int = 8000  # of the tokenizer
    parts: tuple[str, ...] = tuple(PARTS)  # that are changed, one at a time
    seeds: tuple[str, ...] = ("42",)  # of the whole of `modern`; the parts take the first
    max_minutes: Amount = 6.0  # of training steps, each
    per_device_train_batch_size: Count = 4
    learning_rate: Amount = 1e-3
    warmup_steps: int = 50
    only: str | None = None  # used by this script: train with this part changed, here and now
    output_dir: Path | None = None  # used by this script
    seed: int = 42  # used by this script

    def check(self) -> list[str]:
        wrong = [part for part in (*self.parts, self.only) if part and part not in PARTS]
        return [f"no part {part!r}; there are {', '.join(PARTS)}" for part in wrong]


def flags(c: Config) -> list[str]:
    """The settings that all have in common."""
    found = ["--vocab-size", str(c.vocab_size), "--warmup-steps", str(c.warmup_steps)]
    found += ["--data", ",".join(c.data)]
    found += ["--valid-data", ",".join(c.valid_data)] if c.valid_data else []
    found += ["--learning-rate", str(c.learning_rate), "--max-minutes", str(c.max_minutes)]
    return [*found, "--per-device-train-batch-size", str(c.per_device_train_batch_size)]


def train(c: Config) -> None:
    """One run in this process, with a part of ``modern`` changed."""
    changed = PARTS[c.only] if c.only else {}
    minigpt.MODERN |= changed
    words = ["--preset", "modern", *flags(c), "--lr-scheduler-type", "cosine"]
    words += ["--eval-steps", "100000", "--save-steps", "100000", "--seed", str(c.seed)]
    words += ["--output-dir", str(c.output_dir)]
    for name in ("dropout", "intermediate_size"):  # the recipe's own settings come over the style's
        if name in changed:
            words += [f"--{name}", str(changed[name])]
    module, settings = opened.recipe(RECIPE, words)
    module.main(settings)


def main(c: Config) -> None:
    """Train all, print what each reached."""
    if c.output_dir:
        return train(c)
    cores: SimpleQueue[int] = SimpleQueue()
    for core in os.sched_getaffinity(0):
        cores.put(core)

    def run(place: Path, part: str | None, seed: str) -> dict[str, Any]:
        core, folder = cores.get(), place / f"{part}-{seed}"
        command = [sys.executable, __file__, *flags(c), "--seed", seed]
        command += ["--output-dir", str(folder)] + (["--only", part] if part else [])
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        pinned = ["taskset", "-c", str(core), *command]
        try:
            done = subprocess.run(pinned, env=environment, capture_output=True, text=True)
        finally:
            cores.put(core)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return json.loads((folder / "run.json").read_text())

    jobs = [(None, seed) for seed in c.seeds] + [(part, c.seeds[0]) for part in c.parts]
    with TemporaryDirectory() as name, ThreadPoolExecutor(cores.qsize()) as pool:
        records = list(pool.map(lambda job: run(Path(name), *job), jobs))
    lines = []
    for (part, seed), record in zip(jobs, records, strict=True):
        reached, model = record["training"], record["model"]
        changed = ", ".join(f"`{key}={value}`" for key, value in PARTS.get(part or "", {}).items())
        label = changed or f"modern, seed {seed}"
        figures = (reached["bits_per_byte"], reached["steps"], model["parameters"])
        lines.append((figures[0], "| {} | {:.3f} | {:,} | {:,} |".format(label, *figures)))
    print("| | bits per byte | steps | parameters |\n|---|---|---|---|")
    print("\n".join(line for _, line in sorted(lines)))


if __name__ == "__main__":
    config.run(main, Config, __doc__)
