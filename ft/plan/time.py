"""How long a run takes: rates of GPUs, or of this CPU as measured, tokens a second, and an epoch."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ft.data.rows import Row
from ft.machine import matrix_peak
from ft.plan import rewards
from ft.plan.devices import CARDS
from ft.plan.moments import GIB
from ft.plan.peak import Plan
from ft.text.batches import row_length

UTILISATION = 0.4  # share of a device's rate that training's products are assumed to reach
# Seconds of a layer and row of examples beside its products, for the many small kernels and the host that starts
# them: Gemma 2 2B took 27 to 35 ms on an H100 as one CUDA graph, and 273 to 410 launched one by one, which goes on
# beside the products (benchmarks/README.md). That host is a slow one.
GRAPHED, LAUNCHED = 0.0012, 0.0135
PCIE = 12e9  # bytes a second between a GPU and the processor's memory: half of 16 lanes of PCIe 4, as is assumed
# Of a token, rows without their template: Gemma 3's tokenizer has 4.4 on Dolly, 3.9 on MTNT. With the dolly
# template's words rows have 5% more tokens than this says, with the translation's (they are short) 19%.
CHARACTERS = 4.0
IMAGE = 256  # tokens of an image, of Gemma 3


def told(
    plan: Plan,
    settings: Mapping[str, Any],
    device: str | None,
    rows: Callable[[], Sequence[Row]],
    here: bool,
    processes: int = 1,
) -> str:
    """FLOPs, and the time of an epoch of ``rows`` at an assumed share of the device's rate.

    ``device`` is one of ``CARDS``, of which ``processes`` share the rows; any other is this CPU, if the plan
    is for one. Rows are read where they are ``here``, so that nothing is downloaded.
    """
    token, supervised = (each / 1e9 for each in plan.flops)
    said = f"a step takes {token:.2f} GFLOP a token and {supervised:.2f} more if it is supervised"
    batch = settings["per_device_train_batch_size"]
    if device in CARDS:
        rate, name = rates(plan, device)[0], device

        def seconds(tokens: float) -> float:
            return on_card(plan, device, tokens)

    elif plan.device == "cpu":
        rate, name = cpu_rate(plan), "this CPU"

        def seconds(tokens: float) -> float:
            return tokens / speed(plan, rate)

    else:
        return f"{said}; --device NAME tells the time of {', '.join(CARDS)}"
    reached = plan.tokens / seconds(plan.tokens)
    said += (
        f"\n{name}: {rate / 1e12:.2f} TFLOP/s, of which {UTILISATION:.0%} are assumed; with half "
        f"of the tokens supervised {reached:,.0f} tokens/s, {plan.tokens:,} at once"
    )
    if not here:
        return f"{said}; the time of an epoch is known once {settings.get('data', '')!r} is here"
    found = rows()
    tokens, batches = tokens_of(rewards.answers_of(found)), math.ceil(len(found) / batch)
    total = duration(batches * seconds(tokens / max(batches, 1)) / processes)
    return (
        f"{said}; an epoch of {len(found):,} rows, about {tokens:,.0f} tokens, in about {total}"
        + f" on {processes}" * (processes > 1)
    )


def rates(plan: Plan, device: str) -> tuple[float, float]:
    """FLOP/s of a card, for the products of the layers and for the head's."""
    narrow, wide = (each * 1e12 for each in CARDS[device][1:])
    if plan.product == 2:
        return narrow, narrow
    return (narrow if plan.precision == "nf4" else wide), wide


def on_card(plan: Plan, device: str, tokens: float, *, supervised: float = 0.5) -> float:
    """Seconds of the forward and backward of a batch of so many tokens, of which a share is ``supervised``.

    A batch of few tokens takes as long as its kernels: one by one, or in a CUDA graph where that has room.
    """
    token, labelled = plan.flops
    trunk, head = (rate * UTILISATION for rate in rates(plan, device))
    again = passes(plan)
    work = tokens * (token * again / trunk + labelled * supervised * (1 + plan.forwards / 2) / head)
    work += 2 * plan.aside * tokens / plan.tokens / PCIE
    rows = max(1, math.ceil(tokens / row_length("cuda")))
    kernels = rows * plan.layers * again
    if tokens / rows <= plan.graphed(int(CARDS[device][0] * GIB)):
        return work + kernels * GRAPHED
    return max(work, kernels * LAUNCHED)


def passes(plan: Plan) -> float:
    """How often the layers are gone through, by a forward and a backward of a row: a forward alone is half of it."""
    return 1 + (plan.checkpointing + plan.forwards) / 2


def speed(plan: Plan, rate: float) -> float:
    """Tokens a second at ``UTILISATION`` of ``rate`` FLOP/s, half of them supervised."""
    token, supervised = plan.flops
    return rate * UTILISATION / (token * passes(plan) + supervised * (1 + plan.forwards / 2) / 2)


def cpu_rate(plan: Plan) -> float:
    """FLOP/s of this CPU's matrix products in the precision of the plan, measured in a moment."""
    import torch

    dtype = torch.bfloat16 if plan.product == 2 else torch.float32
    return matrix_peak(torch.device("cpu"), dtype, seconds=0.1)


def tokens_of(rows: Iterable[Mapping[str, Any]]) -> float:
    """About how many tokens some rows have, by the characters of their texts and by their images."""
    rows = list(rows)
    texts = [v for row in rows for k, v in row.items() if isinstance(v, str) and k != "where"]
    texts += [turn["content"] for row in rows for turn in row.get("messages", ())]
    return sum(map(len, texts)) / CHARACTERS + IMAGE * sum(len(r.get("images", ())) for r in rows)


def duration(seconds: float) -> str:
    """A time for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
