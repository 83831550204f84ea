"""What peers make of the rows of a finished run in a given time: their jobs, and what they leave behind."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.environments import python_of
from harness.process import cause, start

from ft import files
from ft.errors import UserError
from ft.runs.opened import Finished

RESULT, ADAPTER = "result.json", "adapter"
WARMUP = 0.05  # share of the time, as recipes/mtnt_lora.py has of its steps


@dataclass(frozen=True)
class Rival:
    """A peer: its script, the environment that runs it (None: this one), whose settings it takes."""

    script: str
    environment: str | None
    ours: bool  # the run's rate, adapter, examples a step and warm-up, instead of its own


RIVALS = {
    "trl": Rival("peers/trl_timed.py", None, ours=False),
    "trl-ours": Rival("peers/trl_timed.py", None, ours=True),
    "unsloth": Rival("peers/unsloth_timed.py", "unsloth", ours=False),
    "unsloth-ours": Rival("peers/unsloth_timed.py", "unsloth", ours=True),
}


def settings_of(run: Finished) -> dict[str, Any]:
    """Those of a run that its peers may train with. Raises ``UserError`` for a run without an adapter of plain LoRA."""
    adapter = {} if run.whole else files.read_json(run.folder / "adapter_config.json")
    if not adapter or adapter.get("use_dora") or adapter.get("use_rslora"):
        raise UserError(
            f"{run.folder} has no adapter of plain LoRA, whose rank and targets a peer could take; leave out "
            f"{', '.join(name for name, rival in RIVALS.items() if rival.ours)}"
        )
    names = ("r", "lora_alpha", "lora_dropout", "target_modules")
    copied = ("learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps")
    found = {name: adapter[name] for name in names}
    found |= {name: run.settings[name] for name in (*copied, "gradient_checkpointing")}
    return found | {"warmup_ratio": WARMUP}


def trained(name: str, job: dict[str, Any], work: Path, command: list[str] | None = None) -> Path:
    """The folder of a peer that did ``job``: as it lies there, or after its training now.

    Raises ``UserError`` where another job was done there, and with the peer's last words where it fails.
    ``command`` stands for interpreter and script in tests.
    """
    folder = (work / name).resolve()
    job = job | {"output": str(folder)}
    if (folder / RESULT).is_file():
        done = files.read_json(folder / "job.json")
        if differing := [key for key in job if done.get(key) != job[key]]:
            told = ", ".join(f"{key} {done.get(key)!r}, not {job[key]!r}" for key in differing[:2])
            raise UserError(
                f"{folder} was trained for another job ({told}); name another folder with --work, or remove it"
            )
        print(f"{name}: as trained before in {folder}", file=sys.stderr)
        return folder
    if (folder / "job.json").is_file():  # it was stopped on its way
        shutil.rmtree(folder)
    rival = RIVALS[name]
    python, script = command or [python_of(rival.environment), rival.script]
    print(f"{name}: {job['seconds']:.0f} s from its first step on", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    process = start(python, script, job, len(os.sched_getaffinity(0)))
    try:
        status = process.wait()
    finally:
        _end(process)
    if status or not (folder / RESULT).is_file():
        log = (folder / "log.txt").read_text(errors="replace")
        end = "\n  ".join(log.splitlines()[-10:])
        raise UserError(
            f"{name} ended with status {status}; its last words:\n  {end}\n{cause(log)}"
        )
    return folder


def made(folder: Path) -> dict[str, Any]:
    """What a peer reports of itself: steps, seconds, precision, settings, versions."""
    return files.read_json(folder / RESULT)


def precision_of(result: dict[str, Any]) -> str:
    """Of weights, adapter and products, in words."""
    products = "bf16 autocast" if result["autocast_bf16"] else "no autocast"
    return f"{result['weights']} weights, {result['adapter_weights']} adapter, {products}"


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()
