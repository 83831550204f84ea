"""Where the memory of full, LoRA and QLoRA training goes: weights, gradients, optimizer states, activations.

Command   python benchmarks/lora_memory.py --out lora_memory.png
          python benchmarks/lora_memory.py --measured memory.json --out lora_memory.png
Hardware  any; it is planned, and 270M is measured by benchmarks/memory.py on a CPU
Time      3 seconds

Bars are the plans of `ft plan` for the embedded Gemma 3 270M on a CPU and for Gemma 2B and 7B on a GPU,
one row of 512 tokens without gradient checkpointing. Each part is drawn at its own highest; as they are
not all so at one time, the peak, written above, can be lower, or higher where loading is the peak. Black
ticks are measured peaks, from the JSON that `benchmarks/memory.py --out` writes, where it holds the run. The figure of chapter 16 of F. Chollet's
Deep Learning with Python, third edition, in numbers.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import config
from ft.errors import UserError
from ft.plan import peak, shapes
from ft.plan.moments import GIB
from ft.plan.peak import Plan

LENGTH = 256  # tokens of an example; two of them
WAYS = {
    "full": {"precision": "fp32", "lora_r": 0},
    "LoRA": {"precision": "bf16", "lora_r": 16},
    "QLoRA": {"precision": "nf4", "lora_r": 16},
}
MODELS = {
    "Gemma 3 270M, CPU": ("embedded", "cpu"),
    "Gemma 2B, GPU": ("google/gemma-2b", "cuda"),
    "Gemma 7B, GPU": ("google/gemma-7b", "cuda"),
}
KINDS = {
    "weights": ("base", "LoRA", "image and audio", "dequantised"),
    "gradients": ("gradient",),
    "optimizer states": ("optimizer",),
    "activations": ("activations", "backward of", "attention masks", "loss of"),
    "libraries, context, fragmentation": ("libraries", "tokenizer", "CUDA", "fragmentation"),
}
# gone before training, and part of the gradients later
LEFT_OUT = ("checkpoint, mapped", "linear layers before quantisation", "gradient of the head")


@dataclass(frozen=True)
class Config:
    """What to draw, and where to."""

    out: Path = Path("lora_memory.png")  # the figure
    measured: Path | None = None  # JSON of benchmarks/memory.py

    def check(self) -> list[str]:
        """Mistakes that the types cannot tell."""
        missing = self.measured is not None and not self.measured.is_file()
        return [f"--measured {self.measured}: there is no such file"] * missing


def main(c: Config) -> None:
    """Plan, print and draw."""
    found = json.loads(c.measured.read_text()) if c.measured else []
    bars: dict[str, dict[str, dict[str, float]]] = {}
    peaks: dict[tuple[str, str], float] = {}
    ticks: dict[tuple[str, str], float] = {}
    for title, (name, device) in MODELS.items():
        bars[title] = {}
        for way, options in WAYS.items():
            plan = planned(name, device, options)
            bars[title][way] = grouped(plan)
            peaks[title, way] = plan.peak / GIB
            print(f"{title}, {way}: {plan.peak / GIB:.2f} GiB {plan.moment}")
            for kind, size in bars[title][way].items():
                print(f"    {kind:<36}{size:>7.2f} GiB")
            if name == "embedded" and (peak := measured(found, options)):
                ticks[title, way] = peak / GIB
                print(f"    {'measured':<36}{peak / GIB:>7.2f} GiB")
    if found and not ticks:
        raise UserError(f"{c.measured}: none of its runs is one of the figure's")
    draw(bars, peaks, ticks, c.out)
    print(c.out)


def planned(name: str, device: str, options: dict[str, Any]) -> Plan:
    """The plan of one bar."""
    return peak.plan_of(
        shapes.of(name),
        **options,
        optim="adamw",
        batch=2,
        max_length=LENGTH,
        device=device,
        supervised=0.5,
    )


def grouped(plan: Plan) -> dict[str, float]:
    """GiB of each kind of the figure, at its highest in training; every part belongs to one."""
    result = dict.fromkeys(KINDS, 0.0)
    for name, size in plan.most:
        if name in LEFT_OUT:
            continue
        kind = [k for k, starts in KINDS.items() if name.startswith(starts)]
        assert len(kind) == 1, name
        result[kind[0]] += size / GIB
    return result


def measured(found: list[dict[str, Any]], options: dict[str, Any]) -> int | None:
    """The measured peak of the same run of the embedded model."""
    same = options | {
        "model": "embedded",
        "optim": "adamw",
        "per_device_train_batch_size": 2,
        "max_length": LENGTH,
        "packing": True,
        "gradient_checkpointing": False,
    }
    peaks = [f["measured"] for f in found if all(f[key] == value for key, value in same.items())]
    return peaks[0] if peaks else None


def draw(
    bars: dict[str, Any],
    peaks: dict[tuple[str, str], float],
    ticks: dict[tuple[str, str], float],
    out: Path,
) -> None:
    """Stacked bars, a panel for each model, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(bars), figsize=(11, 4.2), layout="constrained")
    colours = ["#4c72b0", "#dd8452", "#c44e52", "#55a868", "#bbbbbb"]
    for axis, (title, ways) in zip(axes, bars.items(), strict=True):
        floor = [0.0] * len(ways)
        for kind, colour in zip(KINDS, colours, strict=True):
            sizes = [ways[way][kind] for way in ways]
            axis.bar(list(ways), sizes, bottom=floor, color=colour, label=kind)
            floor = [a + b for a, b in zip(floor, sizes, strict=True)]
        for at, (way, top) in enumerate(zip(ways, floor, strict=True)):
            above = max(top, ticks.get((title, way), 0))
            axis.text(at, above, f"{peaks[title, way]:.1f}", ha="center", va="bottom", fontsize=9)
            if (title, way) in ticks:
                axis.hlines(ticks[title, way], at - 0.45, at + 0.45, color="black")
        axis.set_title(title)
        axis.set_ylabel("GiB")
        axis.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(KINDS), fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
