"""What training takes of a GPU's memory beside what `ft plan` said, each combination in its own process.

Command   python benchmarks/gpu_memory.py --out gpu_memory.json
Hardware  an NVIDIA GPU of 80 GB; or none, with PyTorch for CUDA, g++ and 4 GiB of memory (`harness/stand_in.py`)
Time      10 minutes without a GPU, on two cores

Models are of zeros in published shapes, whose files are holes, and examples are all as long, or "varied": a batch of the longest, and
others of a quarter of that or more. Measured is the
most that PyTorch's allocator held in three steps (varied: 24), without what loading takes; and the same with what CUDA graphs
keep for their next replay, which it calls free: this is what a card must have, beside CUDA's own, and what is planned. A step in
which a graph is captured counts its memory twice so, and is left out. Where there is
no GPU, the stand-in's kernels compute nothing, and the allocator is PyTorch's own: what it counts is what it counts on a
GPU. Exit status 1 if a plan is off by more than 10%, or a goal is missed.
"""

import contextlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from harness import cases, stand_in
from harness.random_model import save_zeros, shape_of
from memory import TOLERANCE

from ft import config
from ft.config import Count
from ft.plan import settings as fit
from ft.plan.moments import CONTEXT, GIB
from ft.plan.peak import Plan

ROOM = 80 * GIB
STEPS, VARIED = 3, 24


@dataclass(frozen=True)
class Case:
    """One training run; the names are the recipes'."""

    model: str = "gemma-2-2b"
    precision: str = "nf4"
    lora_r: int = 16
    optim: str = "adamw"
    per_device_train_batch_size: Count = 2
    max_length: Count = 512
    packing: bool = True
    gradient_checkpointing: bool | Literal["offload"] = False
    lora_dropout: float = 0.0
    varied: bool = False
    pairs: bool = False  # DPO, of so many pairs of answers
    goal: float = 0.0  # GB at most


CASES = (
    Case(goal=6.0),
    Case(gradient_checkpointing=True, goal=6.0),
    Case(precision="bf16"),
    Case(per_device_train_batch_size=8, max_length=256),
    Case(per_device_train_batch_size=8, max_length=1024, gradient_checkpointing=True),
    Case(
        per_device_train_batch_size=8,
        max_length=1024,
        gradient_checkpointing="offload",
    ),
    Case(per_device_train_batch_size=4, max_length=256, packing=False),
    Case(lora_dropout=0.05),
    Case("gemma-2b", per_device_train_batch_size=4),
    Case("gemma-2b", "bf16", lora_r=0, optim="adamw", gradient_checkpointing=True),
    Case("gemma-2b", "auto", lora_r=0, per_device_train_batch_size=1, gradient_checkpointing=True),
    Case(
        "gemma-7b",
        per_device_train_batch_size=1,
        max_length=1024,
        gradient_checkpointing=True,
        goal=10.0,
    ),
    Case("gemma-7b", "bf16", per_device_train_batch_size=1),
    Case(
        "gemma-2-9b",
        per_device_train_batch_size=8,
        max_length=1024,
        gradient_checkpointing=True,
        goal=24.0,
    ),
    Case(
        "gemma-2-9b",
        per_device_train_batch_size=8,
        max_length=1024,
        gradient_checkpointing="offload",
    ),
    Case("gemma-3-270m", "bf16", per_device_train_batch_size=8, max_length=256),
    Case("gemma-3-270m", "auto", lora_r=0, per_device_train_batch_size=8),
    Case("gemma-3-1b", per_device_train_batch_size=4),
    Case("gemma-3-4b", gradient_checkpointing=True),
    Case(varied=True),
    Case(
        per_device_train_batch_size=8,
        max_length=1024,
        gradient_checkpointing=True,
        varied=True,
    ),
    Case(
        "gemma-2-9b",
        per_device_train_batch_size=8,
        max_length=1024,
        gradient_checkpointing=True,
        varied=True,
    ),
    Case(pairs=True),
    Case(
        per_device_train_batch_size=4,
        max_length=1024,
        gradient_checkpointing=True,
        pairs=True,
    ),
    Case("gemma-3-270m", "bf16", per_device_train_batch_size=8, max_length=256, pairs=True),
    Case(
        per_device_train_batch_size=4,
        max_length=1024,
        gradient_checkpointing=True,
        varied=True,
        pairs=True,
    ),
)


class Measured(Exception):
    """The last step was taken, and what comes after it is not looked at."""


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
    found = cases.each(__file__, CASES, c.only, line, c.out, stand_in.environment())
    worst = max(abs(f["planned"] / f["held"] - 1) for f in found)
    missed = [f["model"] for f in found if f["goal"] and f["held"] / 1e9 > f["goal"]]
    print(f"\n{found[0]['device']}: the worst of {len(found)} is off by {worst:.1%}")
    if worst > TOLERANCE or missed:
        raise SystemExit(1)


def line(f: dict[str, Any]) -> str:
    """A row of a Markdown table."""
    cells = cases.words(f)
    cells += [f"{f[key] / 1e9:.2f}" for key in ("allocated", "held", "planned")]
    cells += [f"{f['planned'] / f['held'] - 1:+.1%}", f["moment"]]
    return "| " + " | ".join([*cells, f"under {f['goal']:.0f}" if f["goal"] else ""]) + " |"


def measure(case: Case) -> dict[str, Any]:
    """Load and take some steps in this process: the most bytes that were allocated, and what the plan said."""
    import torch
    from transformers import TrainerCallback

    from ft import machine, models, train
    from ft.kernels import cuda_graph
    from ft.models import lora, parameters

    warnings.filterwarnings("ignore")
    if stand_in.here():
        stand_in.trust()
    with TemporaryDirectory() as name:
        place = Path(name) / "model"
        save_zeros(shape_of(case.model), place)
        settings = asdict(case) | {
            "model_name_or_path": str(place),
            "gradient_accumulation_steps": 1,
        }
        if case.pairs:  # and the start
            settings |= {"answers_each": 2, "copies": 1, "together": True}
        bf16 = machine.here().bf16
        planned = fit.of(settings, device="cuda", bf16=bf16, supervised=0.5, room=ROOM)
        automatic = case.precision == "auto"
        base = models.load(str(place), precision="fp32" if automatic else case.precision)
        if case.lora_r:
            model: Any = lora.attach(base, r=case.lora_r, alpha=16, dropout=case.lora_dropout)
        else:
            model = parameters.train_all(base)
        batch, steps = case.per_device_train_batch_size, VARIED if case.varied else STEPS
        each = batch * (1 + case.pairs)
        ids = cases.drawn_ids(steps * each, case.max_length, full=each if case.varied else None)
        found: list[tuple[int, int]] = []
        captured = counted_captures()
        torch.cuda.reset_peak_memory_stats()

        def watch(step: int) -> None:
            most = torch.cuda.max_memory_allocated()
            kept = cuda_graph.idle()
            found.append((most, most + (0 if captured else kept)))
            if captured or kept:  # before, it tells which rows have room as graphs
                torch.cuda.reset_peak_memory_stats()
            captured.clear()
            if step == steps:
                raise Measured

        class Watch(TrainerCallback):
            def on_step_end(self, _: Any, state: Any, *__: Any, **___: Any) -> None:
                watch(state.global_step)

        run = cases.bare_run(Path(name) / "run")
        with contextlib.suppress(Measured):
            if case.pairs:
                pairs = cases.pairs_of(ids)
                cases.prefer(model, base.tokenizer, pairs, run, case, watch, steps)
            else:
                train.sft(
                    model,
                    base.tokenizer,
                    cases.half_supervised(ids),
                    run=run,
                    validate=lambda: 0.0,
                    learning_rate=1e-5,
                    optim=case.optim,  # pyright: ignore[reportArgumentType]
                    max_steps=steps,
                    per_device_train_batch_size=batch,
                    packing=case.packing,
                    gradient_checkpointing=case.gradient_checkpointing,
                    autocast=automatic and bf16,
                    save_steps=1000,
                    accept_loss=True,
                    callbacks=[Watch()],
                )
        return of(planned, *map(max, zip(*found, strict=True)))


def counted_captures() -> list[None]:
    """What grows with each CUDA graph that is captured from now on."""
    from ft.train import graph_room

    found: list[None] = []
    plain = graph_room.CudaGraph.capture

    def capture(self: graph_room.CudaGraph, run: Any, beside: Any = None) -> None:
        found.append(None)
        plain(self, run, beside)

    graph_room.CudaGraph.capture = capture
    return found


def of(planned: Plan, allocated: int, held: int) -> dict[str, Any]:
    """What was found of a case."""
    import torch

    return {
        "device": torch.cuda.get_device_name(),
        "allocated": allocated,
        "held": held,
        "planned": planned.peak - CONTEXT,
        "moment": planned.moment,
        "parts": dict(planned.parts),
    }


if __name__ == "__main__":
    config.run(main, Config, __doc__)
