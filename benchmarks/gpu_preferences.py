"""Milliseconds of a step of DPO on a GPU, by `ft` and by TRL's own trainer as it comes, and the memory that they take.

Command   python benchmarks/gpu_preferences.py --rounds 2
Hardware  an NVIDIA GPU; or none, with PyTorch for CUDA and g++ (`harness/stand_in.py`)
Time      4 minutes without a GPU, on two cores

Both learn the same adapter on the same pairs of answers, in turn, each time in a process of its own. The model is of zeros in a
published shape; TRL computes activations again unless it is told not to (`trl, kept`), and `ft` where they do not fit. Where there is no GPU no kernel
computes: what is left of a step is what the processor does for it, which a GPU has to wait for where its own work is shorter.
"""

import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

from harness import cases, stand_in
from harness.random_model import save_zeros, shape_of

from ft import config
from ft.config import Count

WAYS = ("ft", "trl, kept", "ft, recomputed", "trl")
LORA: dict[str, Any] = {"r": 16, "lora_alpha": 16, "target_modules": "all-linear"}


@dataclass(frozen=True)
class Config:
    """What is learnt, and how often."""

    model: str = "gemma-2-2b"
    precision: Literal["bf16", "nf4"] = "nf4"
    per_device_train_batch_size: Count = 4  # pairs
    max_length: Count = 320  # tokens of an answer with its prompt; some have a quarter
    steps: Count = 30
    rounds: Count = 2  # of all ways
    way: str | None = None  # take this one in this process and print its numbers as JSON


def main(c: Config) -> None:
    """Measure each way in turn, and print a table with ratios to ``ft``."""
    if c.way:
        print(json.dumps(measure(c)))
        return
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(c.rounds):
        for way in WAYS:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            given: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
            done = subprocess.run(command, env=stand_in.environment(), **given)
            if done.returncode:
                raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    ours = statistics.median(each["ms"] for each in found["ft"])
    print(f"{found['ft'][0]['device']}; {c.model} in {c.precision}")
    print("| | ms a step | to ft | GB |\n|---|---:|---:|---:|")
    for way, each in found.items():
        ms = statistics.median(one["ms"] for one in each)
        most = max(one["bytes"] for one in each) / 1e9  # allocated at once
        print(f"| {way} | {ms:.1f} | {ms / ours:.1f} | {most:.2f} |")


def measure(c: Config) -> dict[str, Any]:
    """The median of the second half of the steps, when sizes of rows have come, and the most bytes."""
    import torch

    warnings.filterwarnings("ignore")
    if stand_in.here():
        stand_in.trust()
    ends: list[float] = []

    def watch(_: int) -> None:
        torch.cuda.synchronize()
        ends.append(time.perf_counter())

    count = 2 * c.per_device_train_batch_size * c.steps
    pairs = cases.pairs_of(cases.drawn_ids(count, c.max_length, full=0))
    with TemporaryDirectory() as name:
        place = Path(name) / "model"
        save_zeros(shape_of(c.model), place)
        learn = theirs if c.way and c.way.startswith("trl") else ours
        learn(c, place, pairs, watch)
    taken = [b - a for a, b in zip(ends, ends[1:], strict=False)]
    return {
        "device": torch.cuda.get_device_name(),
        "ms": 1e3 * statistics.median(taken[len(taken) // 2 :]),
        "bytes": torch.cuda.max_memory_allocated(),
    }


def ours(c: Config, place: Path, pairs: list, watch: Callable[[int], None]) -> None:
    """As the recipes learn."""
    from ft import models
    from ft.models import lora

    base = models.load(str(place), precision=c.precision)
    model = lora.attach(base, r=LORA["r"], alpha=LORA["lora_alpha"])
    size = c.per_device_train_batch_size
    again = c.way == "ft, recomputed"
    case = SimpleNamespace(per_device_train_batch_size=size, gradient_checkpointing=again)
    run = cases.bare_run(place.parent / "run")
    cases.prefer(model, base.tokenizer, pairs, run, case, watch, c.steps)


def theirs(c: Config, place: Path, pairs: list, watch: Callable[[int], None]) -> None:
    """As TRL's documentation shows; ids as they are."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer, BitsAndBytesConfig
    from transformers.trainer_callback import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    class Watch(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch(state.global_step)

    class Trainer(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    again: dict[str, Any] = {} if c.way == "trl" else {"gradient_checkpointing": False}
    Trainer(
        model=str(place),
        args=DPOConfig(
            output_dir=str(place.parent / "out"),
            per_device_train_batch_size=c.per_device_train_batch_size,
            max_steps=c.steps,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            model_init_kwargs={"dtype": "bfloat16"},
            **again,
        ),
        quantization_config=four_bit if c.precision == "nf4" else None,
        train_dataset=Dataset.from_list(pairs),
        processing_class=AutoTokenizer.from_pretrained(place),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[Watch()],
    ).train()


if __name__ == "__main__":
    config.run(main, Config, __doc__)
