"""What training takes in memory on this CPU beside what `ft plan` said, each combination in its own process.

Command   python benchmarks/memory.py --out memory.json
Hardware  a CPU with 10 GiB of free memory; the time does not matter, so it may be busy
Time      12 minutes on two quiet cores

Models are the embedded Gemma 3 270M and small random ones with its tokenizer. Measured is the most
resident memory of a process that loads the model and takes two steps; beside it stands what Accelerate's
`estimate-memory` says for the same model. Exit status 1 if a plan is off by more than 10%.
"""

import json
import subprocess
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from harness import cases

from ft import config, machine
from ft.config import Count
from ft.plan import peak
from ft.plan import settings as fit
from ft.plan.moments import MIB

TOLERANCE = 0.1
SMALL = {"num_hidden_layers": 6, "hidden_size": 512, "intermediate_size": 2048, "head_dim": 64}
TINY = {"num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}


@dataclass(frozen=True)
class Case:
    """One training run; the names are the recipes'."""

    model: str = "embedded"  # or small/tiny and a kind: small-gemma2
    precision: str = "fp32"
    lora_r: int = 16
    optim: str = "adamw"
    per_device_train_batch_size: Count = 2
    max_length: Count = 256
    packing: bool = True
    gradient_checkpointing: bool = False
    pairs: bool = False  # DPO, of so many pairs of answers


CASES = (
    Case(),
    Case(precision="bf16"),
    Case(precision="nf4"),
    Case(max_length=512, gradient_checkpointing=True),
    Case(per_device_train_batch_size=4, max_length=512),
    Case(precision="bf16", per_device_train_batch_size=4, max_length=128, packing=False),
    Case(precision="nf4", max_length=512, gradient_checkpointing=True),
    Case(lora_r=0, max_length=128),
    Case(lora_r=0, precision="auto"),
    Case(lora_r=0, optim="sgd", max_length=512, gradient_checkpointing=True),
    Case("small-gemma2", per_device_train_batch_size=1, max_length=512),
    Case("small-gemma", lora_r=0),
    Case("small-recurrent_gemma", lora_r=0, optim="sgd"),
    Case("tiny-gemma3_text"),
    Case("tiny-gemma3_text", precision="bf16", lora_r=0, max_length=64),
    Case(pairs=True),
    Case(max_length=512, gradient_checkpointing=True, pairs=True),
)


@dataclass(frozen=True)
class Config:
    """Which combinations, and where to."""

    only: tuple[int, ...] = ()  # numbers of combinations; none: all
    out: Path | None = None  # JSON file for the result
    case: int | None = None  # measure this one in this process and print its bytes as JSON


def main(c: Config) -> None:
    """Measure, compare, print the table."""
    if c.case is not None:
        print(json.dumps(measure(CASES[c.case])))
        return
    found = cases.each(__file__, CASES, c.only, line, c.out)
    worst = max(abs(f["predicted"] / f["measured"] - 1) for f in found)
    print(f"\nthe worst of {len(found)} is off by {worst:.1%}; the goal is {TOLERANCE:.0%}")
    if worst > TOLERANCE:
        raise SystemExit(1)


def line(f: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    cells = cases.words(f)
    cells += [f"{f[key] / MIB:,.0f}" for key in ("measured", "predicted")]
    cells += [f"{f['predicted'] / f['measured'] - 1:+.1%}", f["moment"]]
    return "| " + " | ".join([*cells, f"{f['accelerate'] / MIB:,.0f}"]) + " |"


def measure(case: Case) -> dict[str, Any]:
    """Load and take two steps in this process: the most bytes that it took, and what the plan said."""
    from transformers import TrainerCallback

    from ft import models, train
    from ft.models import lora, parameters

    warnings.filterwarnings("ignore")
    machine.use_all_cores()
    with TemporaryDirectory() as name:
        model_name = case.model
        if model_name != "embedded":
            made = Path(name) / "model"
            command = [sys.executable, "-c", MAKE, *case.model.split("-"), str(made)]
            subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent)
            model_name = str(made)
        settings = asdict(case) | {
            "model_name_or_path": model_name,
            "gradient_accumulation_steps": 1,
        }
        if case.pairs:  # and the start
            settings |= {"answers_each": 2, "copies": 1, "together": True}
        bf16 = machine.here().bf16
        planned = fit.of(settings, bf16=bf16, supervised=0.5)
        automatic = case.precision == "auto"
        base = models.load(model_name, precision="fp32" if automatic else case.precision)
        if case.lora_r:
            model: Any = lora.attach(base, r=case.lora_r, alpha=16)
        else:
            model = parameters.train_all(base)
        peak = 0

        def watch(*_: Any) -> None:
            nonlocal peak
            peak = machine.peak_memory()

        many = 2 * case.per_device_train_batch_size * (1 + case.pairs)
        ids = cases.drawn_ids(many, case.max_length)
        record = cases.bare_run(Path(name) / "run")
        if case.pairs:
            cases.prefer(model, base.tokenizer, cases.pairs_of(ids), record, case, watch, 2)
            said = accelerate_says(base.model.config)
            return of(peak, planned, said)

        class Watch(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                watch()

        train.sft(
            model,
            base.tokenizer,
            cases.half_supervised(ids),
            run=record,
            validate=lambda: 0.0,
            learning_rate=1e-5,
            optim=case.optim,  # pyright: ignore[reportArgumentType]
            max_steps=2,
            per_device_train_batch_size=case.per_device_train_batch_size,
            packing=case.packing,
            gradient_checkpointing=case.gradient_checkpointing,
            autocast=automatic and bf16,
            save_steps=1000,
            callbacks=[Watch()],
        )
        said = accelerate_says(base.model.config)
    return of(peak, planned, said)


def of(measured: int, planned: peak.Plan, said: int) -> dict[str, Any]:
    """What was found of a case."""
    return {
        "measured": measured,
        "predicted": planned.peak,
        "moment": planned.moment,
        "parts": dict(planned.parts),
        "accelerate": said,
    }


def accelerate_says(shape: Any) -> int:
    """Bytes of training with Adam, by `accelerate estimate-memory`, which knows nothing of LoRA or rows."""
    from accelerate import init_empty_weights
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes
    from transformers import AutoModelForCausalLM

    with init_empty_weights():
        empty = AutoModelForCausalLM.from_config(shape)
    total, _ = calculate_maximum_sizes(empty)
    return int(max(estimate_training_usage(total, "float32").values()))


MAKE = """
import shutil, sys
import torch, transformers as hf
from ft.models import embedded
from memory import SMALL, TINY
size, kind, folder = sys.argv[1:]
sizes = dict(SMALL if size == "small" else TINY)
common = {"num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 262_144}
if kind == "recurrent_gemma":
    del sizes["head_dim"]
    sizes["lru_width"] = sizes["hidden_size"]
config = hf.AutoConfig.for_model(kind, **sizes, **common)
torch.manual_seed(0)
model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(folder)
for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model"):
    shutil.copy(embedded.folder() / name, folder)
"""


if __name__ == "__main__":
    config.run(main, Config, __doc__)
