"""The curves of a run as one PNG."""

import io
from pathlib import Path
from typing import Any

from ft.files import write_bytes
from ft.runs.folder import METRICS, RECORD, read, read_lines


def curve(folder: Path) -> None:
    """Draw ``loss.png`` from ``metrics.jsonl``: training loss, its running mean, validation loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = read_lines(folder / METRICS)
    train = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    valid = [(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line]
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training")
        window = max(1, len(losses) // 20)
        means = [
            sum(losses[max(0, i - window) : i + 1]) / (i - max(0, i - window) + 1)
            for i in range(len(losses))
        ]
        axes.plot(steps, means, color="tab:blue", label=f"training, mean of {window + 1} steps")
    if valid:
        axes.plot(*zip(*valid, strict=True), color="tab:orange", marker="o", label="validation")
    training = read(folder).get("training", {}) if (folder / RECORD).exists() else {}
    for step, loss in valid:
        if step == training.get("kept_step"):
            label = f"kept: step {step}"
            axes.plot(step, loss, "*", color="tab:red", markersize=14, label=label)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)", title=folder.name)
    axes.grid(alpha=0.3)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    write_bytes(folder / "loss.png", image.getvalue())


def learning_rate(folder: Path) -> None:
    """Draw ``learning_rate.png`` from ``metrics.jsonl``: warm-up and what follows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = [line for line in read_lines(folder / METRICS) if "learning_rate" in line]
    figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
    axes.plot([line["step"] for line in lines], [line["learning_rate"] for line in lines])
    axes.set(xlabel="optimizer step", ylabel="learning rate", title=folder.name)
    axes.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    write_bytes(folder / "learning_rate.png", image.getvalue())


def accuracy(result: dict[str, Any], file: Path) -> None:
    """Draw how often ``reasoning.before_after`` found the right number, over n, with its intervals."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = result["sizes"]
    choices = {"any": "any of n", "best": "best of n", "majority": "majority of n"}
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, style in (("tuned", "-"), ("base", "--")):
        for (choice, label), colour in zip(choices.items(), ("C2", "C1", "C0"), strict=True):
            found = [result[name][f"{choice}_{n}"] for n in sizes]
            scores = [value["score"] for value in found]
            axes.plot(sizes, scores, style, color=colour, marker="o", label=f"{name}, {label}")
            if name == "tuned":
                low, high = ([value[end] for value in found] for end in ("low", "high"))
                axes.fill_between(sizes, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(n) for n in sizes])
    axes.set_ylim(bottom=0)
    title = f"{result['n']} questions, temperature {result['temperature']:g}"
    axes.set(xlabel="chains n", ylabel="right (% of questions, 95% Wilson)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", handlelength=4)  # long enough to tell dashes
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    write_bytes(file, image.getvalue())
