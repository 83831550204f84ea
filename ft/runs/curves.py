"""The curves of a run: as PNG files for its folder, and as SVG for a page, in that page's colours."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.files import json_lines, write_bytes

Lines = Sequence[Mapping[str, Any]]  # of metrics.jsonl
# matplotlib's colours in a page's drawing, each of which stands for a variable of the page's style
_COLOURS = {f"#00000{i + 1}": name for i, name in enumerate(("ink", "muted", "line", "best"))}
_COLOURS |= {f"#00001{i}": f"c{i}" for i in range(6)}
_INK, _MUTED, _LINE, _BEST, *_SERIES = _COLOURS


def points(lines: Lines, key: str) -> list[tuple[int, float]]:
    """Steps and values of the lines that have ``key``."""
    return [(line["step"], line[key]) for line in lines if line.get(key) is not None]


def running_mean(values: Sequence[float]) -> tuple[list[float], int]:
    """The mean of each value and those before it, a twentieth of all; and of how many at most."""
    window = max(1, len(values) // 20)
    spans = (values[max(0, i - window) : i + 1] for i in range(len(values)))
    return [sum(span) / len(span) for span in spans], window + 1


def curve(folder: Path) -> None:
    """Draw ``loss.png`` from ``metrics.jsonl``: training loss, its running mean, validation loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    lines = _metrics(folder)
    train, valid = points(lines, "loss"), points(lines, "eval_loss")
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    if train:
        steps, losses = zip(*train, strict=True)
        axes.plot(steps, losses, color="tab:blue", alpha=0.3, linewidth=1, label="training")
        means, window = running_mean(losses)
        axes.plot(steps, means, color="tab:blue", label=f"training, mean of {window} steps")
    if valid:
        axes.plot(*zip(*valid, strict=True), color="tab:orange", marker="o", label="validation")
    for step, loss in valid:
        if step == kept_step(folder):
            label = f"kept: step {step}"
            axes.plot(step, loss, "*", color="tab:red", markersize=14, label=label)
    axes.set(xlabel="optimizer step", ylabel="loss (nats per supervised token)")
    axes.set_title(folder.name, parse_math=False)  # a `$` is one
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, folder / "loss.png")


def svg(runs: Mapping[str, Lines], best: Mapping[str, int | None]) -> str:
    """The loss of one run, training and validation, or the validation losses of several, as an SVG.

    ``best`` are the steps to mark. Empty where no curve has two points yet.
    """
    alone = len(runs) == 1
    series = {name: points(lines, "eval_loss") for name, lines in runs.items()}
    train = points(next(iter(runs.values())), "loss") if alone else []
    if max((len(each) for each in (*series.values(), train)), default=0) < 2:
        return ""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    colours: Any = {"text.color": _INK, "axes.labelcolor": _MUTED, "axes.edgecolor": _LINE}
    colours |= {"xtick.color": _MUTED, "ytick.color": _MUTED, "grid.color": _LINE}
    style = {"svg.fonttype": "none", "svg.hashsalt": "ft", "font.size": 11.5}
    style |= {"text.parse_math": False}  # a run's name is one
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False}
    with matplotlib.rc_context(colours | style):
        figure = Figure(figsize=(5.6, 3.5), layout="constrained")
        axes = figure.add_subplot()
        if train:
            steps, losses = zip(*train, strict=True)
            means, window = running_mean(losses)
            axes.plot(steps, losses, color=_SERIES[0], alpha=0.4, linewidth=0.9)
            label = f"training, mean of {window} steps"
            axes.plot(steps, means, color=_SERIES[0], linewidth=1.6, label=label)
        for at, (name, valid) in enumerate(series.items()):
            colour = _SERIES[(at + alone) % len(_SERIES)]
            label = "validation" if alone else f"\u200b{name}"  # one in _ would have none
            axes.plot(*zip(*valid, strict=True), "o-", color=colour, markersize=4, label=label)
            for step, loss in valid:
                if step == best.get(name):
                    shown = f"best: {loss:.3f} at step {step}" if alone else None
                    axes.plot(
                        step, loss, "*", color=_BEST, markersize=13, label=shown, linestyle=""
                    )
        axes.set(xlabel="optimizer step", ylabel="loss, nats a token")
        axes.grid(axis="y", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.tick_params(length=0)
        axes.legend(frameon=False)
        image = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(image, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(image.getvalue())


def learning_rate(folder: Path) -> None:
    """Draw ``learning_rate.png`` from ``metrics.jsonl``: warm-up and what follows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 2.5), layout="constrained")
    axes.plot(*zip(*points(_metrics(folder), "learning_rate"), strict=True))
    axes.set(xlabel="optimizer step", ylabel="learning rate")
    axes.set_title(folder.name, parse_math=False)
    axes.grid(alpha=0.3)
    _save(figure, folder / "learning_rate.png")


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
    _save(figure, file)


def kept_step(folder: Path) -> int | None:
    """The step whose weights a run has, once it is known."""
    file = folder / "run.json"
    record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return record.get("training", {}).get("kept_step")


def _metrics(folder: Path) -> Lines:
    file = folder / "metrics.jsonl"
    return json_lines(file.read_text(encoding="utf-8")) if file.exists() else []


def _save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot as plt

    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150)
    plt.close(figure)
    write_bytes(file, image.getvalue())


def _for_a_page(drawn: str) -> str:
    """Matplotlib's SVG as a part of HTML: no prolog, no names that another may have, the page's font and colours."""
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<style.*?</style>|<!--.*?-->", "", drawn, flags=re.DOTALL)
    drawn = re.sub(r' id="[\w.]+_\d+"', "", drawn)
    drawn = re.sub(r' (?:width|height)="[\d.]+pt"', "", drawn)
    drawn = re.sub(r"font: (?:\w+ )*([\d.]+px)[^;\"]*", r"font-size: \1", drawn)
    drawn = re.sub(r"font-family: [^;\"]*;? ?", "", drawn)
    return re.sub(
        "|".join(_COLOURS), lambda found: f"var(--{_COLOURS[found.group()]})", drawn
    ).strip()
