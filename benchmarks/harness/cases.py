"""Combinations of settings, each measured in a process of its own: the same script with ``--case N``."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ft.files import write_json
from ft.runs import folder


def each(
    script: str,
    cases: Sequence[Any],
    only: Sequence[int],
    line: Callable[[dict[str, Any]], str],
    out: Path | None,
    env: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """What ``script`` found of each case, or of those that ``only`` numbers; printed, and in ``out``, as it comes."""
    found = []
    for number in only or range(len(cases)):
        command = [sys.executable, script, "--case", str(number)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            raise SystemExit(f"case {number} failed:\n{done.stderr[-3000:]}")
        found.append(asdict(cases[number]) | json.loads(done.stdout.splitlines()[-1]))
        print(line(found[-1]), flush=True)
        if out:
            write_json(out, found)
    return found


def words(f: Mapping[str, Any]) -> list[str]:
    """The first cells of a case's row: model, precision, what trains, its examples."""
    how = f"LoRA r {f['lora_r']}" if f["lora_r"] else f"full, {f['optim']}"
    rows = f"{f['per_device_train_batch_size']} x {f['max_length']}"
    again = f["gradient_checkpointing"]
    rows += ", recomputed" * bool(again) + ", offloaded" * (again == "offload")
    rows += ", padded" * (not f["packing"]) + ", varied" * f.get("varied", False)
    rows += ", pairs" * f.get("pairs", False) + ", dropout" * bool(f.get("lora_dropout"))
    return [f["model"], f["precision"], how, rows]


def drawn_ids(examples: int, length: int, *, full: int | None = None) -> list[list[int]]:
    """Ids of examples that are all as long, or of which the first ``full`` are, and others a quarter or more of it."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(300, 2000, (examples, length), generator=generator).tolist()
    if full is None:
        return ids
    ends = torch.randint(length // 4, length + 1, (examples,), generator=generator).tolist()
    return [row if i < full else row[: ends[i]] for i, row in enumerate(ids)]


def half_supervised(ids: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    """Examples whose first half is the prompt."""
    return [
        {"input_ids": row, "labels": [-100] * (len(row) // 2) + row[len(row) // 2 :]} for row in ids
    ]


def pairs_of(ids: Sequence[list[int]]) -> list[dict[str, list[int]]]:
    """Two answers each to the first half of every other row of ids: the second halves of it and of the next."""
    return [
        {
            "prompt_ids": a[: len(a) // 2],
            "chosen_ids": a[len(a) // 2 :],
            "rejected_ids": b[len(b) // 2 :],
        }
        for a, b in zip(ids[::2], ids[1::2], strict=True)
    ]


def prefer(
    model: Any, tokenizer: Any, pairs: list, run: Any, case: Any, watch: Any, steps: int
) -> None:
    """Steps of DPO, as a recipe takes them; ``watch`` is called after each."""
    from ft.rewards import learning, policy

    policy.remember(model)
    trainer = learning.dpo(
        model,
        tokenizer,
        pairs,
        run=run,
        learning_rate=1e-5,
        beta=0.1,
        per_device_train_batch_size=case.per_device_train_batch_size,
        gradient_checkpointing=case.gradient_checkpointing,
        max_steps=steps,
    )
    learning.learn(trainer, run=run, watch=watch, watch_steps=1)


def bare_run(place: Path) -> folder.Run:
    """A run without a record, in a new folder of this name."""
    place.mkdir()
    run = folder.Run(place, {}, "")
    run.begun = True
    return run
