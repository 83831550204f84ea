"""Train a reward model on pairs of a better and a worse answer."""

import argparse
import json
import random
from pathlib import Path

from ft.errors import UserError
from ft.files import write_json


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft reward``."""
    parser.epilog = (
        "example: ft reward runs/mtnt_dpo/pairs.jsonl --run runs/mtnt_lora --out reward/"
    )
    a = parser.add_argument
    a(
        "pairs",
        help="a table of prompt (or source, instruction, messages), chosen and rejected, "
        "as recipes/mtnt_dpo.py leaves pairs.jsonl",
    )
    a(
        "--run",
        required=True,
        dest="run_folder",
        metavar="RUN",
        help="run whose base model and template it takes",
    )
    a("--out", type=Path, required=True, help="folder to write")
    a("--learning-rate", type=float, default=1e-4, help="at a constant schedule (default 1e-4)")
    a("--epochs", type=float, default=1.0, help="passes over the pairs (default 1)")
    a("--batch-size", type=int, default=8, help="pairs of a step (default 8)")
    a("--held-out", type=float, default=0.1, help="share of pairs to judge it by (default 0.1)")
    a("--seed", type=int, default=0, help="of head, adapter, order and held-out pairs (default 0)")


def command(
    pairs: str,
    run_folder: str,
    out: Path,
    learning_rate: float,
    epochs: float,
    batch_size: int,
    held_out: float,
    seed: int,
) -> None:
    """Train it. Raises ``UserError`` for pairs that cannot be used, and too few of them."""
    from ft import machine
    from ft.data.preferences import preferences
    from ft.rewards import reward_model
    from ft.runs import opened
    from ft.score import comparison

    start = opened.finished(run_folder)
    start.check_own("to make a reward model of")
    translates = start.task == "translation"
    rows = preferences(pairs, asked="source" if translates else "instruction")
    if "chosen" not in rows[0]:
        raise UserError(f"{pairs} has single answers with labels; a reward is learnt from pairs")
    if out.exists():
        raise UserError(f"{out} exists already; name another folder")
    order = random.Random(seed).sample(list(rows), len(rows))
    held = max(1, round(held_out * len(order)))
    if held >= len(order):
        raise UserError(f"{len(order)} pairs are too few to hold {held} of them out")
    print(f"{len(order) - held:,} pairs to learn from, {held:,} held out, {rows.origin}")
    print(machine.use_all_cores())
    reward_model.train(
        start.base,
        start.template,
        order[held:],
        out,
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        seed=seed,
    )
    right = reward_model.accuracy(reward_model.load(out), order[:held])
    low, high = comparison.wilson(right, held)
    print(f"right on {right:.1%} [{low:.1%}, {high:.1%}] of {held:,} held-out pairs")
    file = out / reward_model.RECORD
    made = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, made | {"accuracy": right, "held_out": held, "pairs": rows.sha256})
    recipe = "accelerate launch recipes/mtnt_grpo.py --run"
    use = "ft eval" if start.task == "reasoning" else recipe
    print(f"use it: {use} {run_folder} --reward {out}")
