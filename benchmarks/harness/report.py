"""From the measured steps to a table: throughput, ratios, share of the matrix peak, agreement."""

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

COLUMNS = {  # heading: (key of a peer's summary, format)
    "tokens/s": ("tokens_per_s", ".1f"),
    "supervised/s": ("supervised_per_s", ".1f"),
    "s/step": ("wall_s", ".2f"),
    "CPU s/step": ("cpu_s", ".2f"),
    "peak MiB": ("peak_mib", ".0f"),
    "time ×": ("wall_ratio", ".2f"),
    "CPU ×": ("cpu_ratio", ".2f"),
    "memory ×": ("memory_ratio", ".2f"),
    "of fp32 peak": ("peak_share", ".0%"),
    "loss differs": ("loss_diff", ".1e"),
    "norm differs": ("norm_diff", ".1e"),
    "start s": ("start_s", ".0f"),
}


def flops(tokens: int, targets: int, limit: dict[str, int]) -> int:
    """What a LoRA step needs: forward, the gradient by every input, and by the adapter's weights.

    The head counts at supervised positions only; attention's own products are left out. A peer that
    computes more (padding, unsupervised logits, recomputation) is not credited for it.
    """
    trunk = 4 * limit["layers"] + 6 * limit["adapter"]
    return trunk * tokens + 4 * limit["head"] * targets


def summary(name: str, reference: str, result: dict[str, Any]) -> dict[str, float]:
    """One peer's figures: medians over the timed steps; differences are the largest over all steps."""
    mine, others = result["steps"][name], result["steps"][reference]
    pairs = list(zip(mine, others, strict=True))

    def rate(amounts: Sequence[float]) -> float:
        return median(a / step["wall_s"] for a, step in list(zip(amounts, mine, strict=True))[1:])

    def ratio(key: str) -> float:
        return median(a[key] / b[key] for a, b in pairs[1:])

    def difference(key: str) -> float:
        return max(abs(a[key] - b[key]) / abs(b[key]) for a, b in pairs)

    return {
        "tokens_per_s": rate(result["tokens"]),
        "supervised_per_s": rate(result["supervised_tokens"]),
        "wall_s": median(step["wall_s"] for step in mine[1:]),
        "cpu_s": median(step["cpu_s"] for step in mine[1:]),
        "peak_mib": mine[-1]["peak_mib"],
        "wall_ratio": ratio("wall_s"),
        "cpu_ratio": ratio("cpu_s"),
        "memory_ratio": mine[-1]["peak_mib"] / others[-1]["peak_mib"],
        "peak_share": rate(result["gflop"]) / result["fp32_peak_gflops"],
        "loss_diff": difference("loss"),
        "norm_diff": difference("grad_norm"),
        "start_s": result["started"][name]["start_s"],
    }


def cpu_name() -> str:
    """The processor's name as Linux has it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "CPU")


def table(result: dict[str, Any]) -> str:
    """The summaries as a Markdown table, between a line about the machine and the versions."""
    before, after = result["load_average"]
    tokens, targets = result["tokens"], result["supervised_tokens"]
    lines = [
        f"{result['cpu']}, {result['options']['threads']} threads, load average {before:.2f} before "
        f"and {after:.2f} after; fp32 matrix peak {result['fp32_peak_gflops']:.0f} GFLOP/s; steps of "
        f"{min(tokens)} to {max(tokens)} tokens, {sum(targets) / sum(tokens):.0%} supervised; × columns are multiples of {next(iter(result['summary']))}'s.",
        "",
        f"| peer | {' | '.join(COLUMNS)} |",
        f"|---|{'---:|' * len(COLUMNS)}",
    ]
    for name, row in result["summary"].items():
        cells = (format(row[key], form) for key, form in COLUMNS.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines.append("")
    users: dict[str, list[str]] = {}  # versions -> the peers that run with them
    for name, started in result["started"].items():
        versions = ", ".join(f"{k} {v}" for k, v in started["versions"].items())
        users.setdefault(versions, []).append(name)
    return "\n".join([*lines, *(f"{', '.join(who)}: {what}" for what, who in users.items())])
