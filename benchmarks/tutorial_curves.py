r"""The tutorials' trajectories on tiny checkpoints: our recipes' losses beside those of Google's JAX libraries.

    python benchmarks/tutorial_curves.py --reference PATH/TO/REFERENCE --data PATH/TO/MTNT \
        --tokenizer PATH/TO/gemma1_tokenizer.model

The reference folder holds make_tiny.py, which writes the checkpoints, and golden.json, what gemma-llm 1.0.0 and
recurrentgemma 1.0.1 computed from them. Prints the largest difference of each; draws all.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import config

RECIPES = Path(__file__).parents[1] / "recipes"
RUNS = {  # name in golden.json -> recipe, preset, checkpoint
    "gemma_sgd": ("mtnt_full", "tutorial", "gemma"),
    "recurrentgemma_sgd": ("mtnt_recurrent", "tutorial-sgd", "recurrentgemma"),
    "recurrentgemma_adamw": ("mtnt_recurrent", "tutorial-adamw", "recurrentgemma"),
}


@dataclass(frozen=True)
class Config:
    reference: Path = Path("reference")  # the folder of make_tiny.py and golden.json
    data: Path = Path("mtnt")  # a folder of MTNT
    tokenizer: Path = Path("gemma1_tokenizer.model")  # Gemma 1's SentencePiece model
    runs: Path = Path("runs/tutorials")  # where checkpoints and runs are kept, and taken from
    out: Path = Path("recipes/tutorial_curves.png")


def main(c: Config) -> None:
    """Run what is not there yet, print the differences and draw the curves."""
    goldens = json.loads((c.reference / "golden.json").read_text())
    found = {name: trajectory(name, goldens[name], c) for name in RUNS}
    for name, (losses, evaluations) in found.items():
        golden = goldens[name]
        theirs = [golden["start"], *(evaluation for _, _, evaluation in golden["log"])]
        print(
            f"{name}: largest difference {largest(losses, golden['losses']):.1e} in {len(losses)} "
            f"training losses, {largest(evaluations, theirs):.1e} in {len(evaluations)} validations"
        )
    draw(found, goldens, c.out)


def trajectory(name: str, golden: dict[str, Any], c: Config) -> tuple[list[float], list[float]]:
    """Training and validation losses of our recipe on the checkpoint of one trajectory."""
    recipe, preset, kind = RUNS[name]
    base, folder = c.runs / kind, c.runs / name
    if not base.exists():
        script = c.reference / "make_tiny.py"
        subprocess.run([sys.executable, script, kind, base], check=True)
        shutil.copyfile(c.tokenizer, base / "tokenizer.model")
    if not (folder / "loss.png").exists():
        flags = ["--preset", preset, "--model", base, "--data", c.data, "--output-dir", folder]
        flags += ["--learning-rate", golden["lr"], "--max-steps", 100, "--no-shuffle"]
        command = [sys.executable, RECIPES / f"{recipe}.py", *map(str, flags)]
        subprocess.run(command, check=True)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, [line["eval_loss"] for line in lines if "eval_loss" in line]


def largest(ours: list[float], theirs: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


def draw(found: dict[str, Any], goldens: dict[str, Any], out: Path) -> None:
    """One panel a trajectory: theirs as wide grey lines, ours as thin ones over them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(
        1, len(found), figsize=(12, 3.6), layout="constrained", sharey=True
    )
    for axes, (name, (losses, evaluations)) in zip(panels, found.items(), strict=True):
        golden = goldens[name]
        steps, valid = range(1, len(losses) + 1), [0, *(step for step, _, _ in golden["log"])]
        axes.plot(steps, golden["losses"], color="0.8", linewidth=4, label="JAX, training")
        theirs = [golden["start"], *(evaluation for _, _, evaluation in golden["log"])]
        axes.plot(valid, theirs, color="0.6", linewidth=6, label="JAX, validation")
        axes.plot(steps, losses, color="tab:blue", linewidth=0.8, label="ours, training")
        axes.plot(valid, evaluations, color="tab:orange", marker="o", markersize=3, linewidth=1.2)
        axes.lines[-1].set_label("ours, validation")
        axes.set(title=f"{name}, rate {golden['lr']}", xlabel="step")
        axes.grid(alpha=0.3)
    panels[0].set(ylabel="loss (nats per supervised token)")
    panels[0].legend(fontsize="small")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
