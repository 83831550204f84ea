"""One step of LoRA in one process: plain, with fused kernels, as a CUDA graph, and both; and attention alone."""

import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from common import (
    DEV,
    GPU,
    SHAPE,
    autocast_of,
    clean,
    clock,
    failed,
    flops,
    fresh,
    graphed,
    left,
    peak_of,
    prepared,
    say,
    typical_rows,
)

ALL = bool(os.environ.get("ALL"))

USABLE: list[Callable[..., bool]] = []  # the first is the true one


def switch(model: Any, fused_on: bool) -> bool:
    """Turn the fused kernels on or off; whether there are any."""
    from ft.kernels import joined, lora_copies

    try:
        from ft.kernels import fused, fused_layers
    except ImportError:
        return False
    USABLE.append(fused.usable)
    fused.usable = USABLE[0] if fused_on else lambda *_: False
    joined.DEVICES = ("cuda",) if fused_on else ()
    if fused_on:
        fused_layers.install(model.get_base_model())
        say(
            "   fused:",
            fused_layers.install(model.get_base_model()) or "installed",
            "copies",
            lora_copies.refresh(model),
        )
    else:
        lora_copies.release(model)
    return True


class Step:
    """A training step as the trainer takes it: rows, one look at loss and norm, an optimizer of rate 0."""

    def __init__(self, model: Any, as_graphs: bool) -> None:
        import torch
        from support.replayed import Replayed

        from ft.train import graph_room, graphed, graphs, optim

        self.model, self.total = model, torch.zeros((), device=DEV)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = optim.create(model, "adamw", learning_rate=0.0, joint=True)
        make = graph_room.CudaGraph if GPU else Replayed
        self.context = autocast_of(model)
        self.run: Any = self.row
        if as_graphs:
            report = lambda text: say("  ", text)  # noqa: E731
            both = graphed.halves(model, self.context, self.back)
            self.run = graphs.Graphs(*both, self.parameters, report, make=make)

    def row(self, inputs: Mapping[str, Any]) -> None:
        """Plain: all of it one pass."""
        given = dict(inputs)
        share = given.pop("share")
        with self.context():
            part = self.model(**given)["loss"] * share
        self.back(part)

    def back(self, part: Any) -> None:
        part.backward()
        self.total += part.detach()

    def __call__(self, inputs: Mapping[str, Any], renew: bool) -> tuple[float, float]:
        import torch

        from ft.kernels import lora_copies

        self.total.zero_()
        self.run(inputs)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        loss, norm = torch.stack([self.total, norm]).tolist()
        self.optimizer.step()
        if renew:
            lora_copies.refresh(self.model)
        self.optimizer.zero_grad(set_to_none=False)
        return loss, norm


def inputs_of(name: str, vocabulary: int, filled: bool) -> tuple[dict[str, Any], int, int]:
    """A row of 8 examples on the device, its tokens and how many of them are supervised."""
    import torch

    from ft.text import batches, row_inputs

    row = row_inputs.of(batches.packed_row(typical_rows(name, 8, vocabulary)), 8)
    n, s = row["input_ids"].shape[1], len(row["targets"])
    row = row_inputs.padded(row) if filled else row
    given = {k: v.to(DEV) if hasattr(v, "to") else v for k, v in row.items()}
    return given | {"share": torch.full((), 1 / s, device=DEV)}, n, s


def measure(
    label: str, step: Step, name: str, vocabulary: int, peak: float, first: dict, renew: bool
) -> Any:
    """A line of one way to take a step on one row."""
    import torch

    quick = step.run != step.row
    inputs, n, s = inputs_of(name, vocabulary, quick)
    start = time.perf_counter()
    steps = 3 if quick else 1  # plain, captured, replayed
    found = [step(inputs, renew) for _ in range(steps)][-1]
    ready = time.perf_counter() - start
    ms = clock(lambda: step(inputs, renew), 12 if quick else 2, 0)
    gb = peak_of(lambda: step(inputs, renew))
    first.setdefault(name, found)
    off = [abs(a / b - 1) for a, b in zip(found, first[name], strict=True)]
    held = torch.cuda.memory_reserved() / 1e9 if GPU else 0.0
    wrong = "" if off[0] < 5e-3 and off[1] < 5e-2 else " WRONG"
    say(
        f"{label} {name}: {ms:.1f} ms, {1e3 * n / ms:,.0f} tokens/s, "
        f"{flops(SHAPE, n, s) / ms * 1e3 / peak:.1%} of the bf16 peak; {n} tokens as "
        f"{inputs['input_ids'].shape[1]}, {s} supervised as {len(inputs['targets'])}; loss {found[0]:.4f}, "
        f"norm {found[1]:.4f}, off {off[0]:.1e} {off[1]:.1e}{wrong}; peak {gb:.2f} GB more, reserved {held:.1f}; "
        f"{'three steps' if quick else 'the first step'} took {ready:.1f} s"
    )
    return inputs


def profile(label: str, step: Step, inputs: Mapping[str, Any]) -> None:
    """Kernels of a step and how long they keep the GPU busy."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    start = time.perf_counter()
    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        step(inputs, True)
        torch.cuda.synchronize()
    kinds: Any = torch.autograd
    events: Any = seen.events()
    kernels = [e for e in events if e.device_type == kinds.DeviceType.CUDA]
    groups: dict[str, list[float]] = {}
    for e in kernels:
        one = groups.setdefault(e.name[:100], [0, 0.0])
        one[0], one[1] = one[0] + 1, one[1] + e.time_range.elapsed_us() / 1e3
    busy = sum(ms for _, ms in groups.values())
    say(
        f"{label}: {len(kernels)} kernels, busy {busy:.1f} ms (profiled in {time.perf_counter() - start:.0f} s)"
    )
    for name, (number, ms) in sorted(groups.items(), key=lambda x: -x[1][1])[:14]:
        say(f"   {ms:8.2f} ms {number:5d} x {name}")


def step() -> None:
    """Plain and the best way, in 4 bits and bf16; ALL=1: every way, on rows of both data sets.

    Each failure is one line.
    """
    import torch
    from harness.random_model import shape_of

    from ft import machine
    from ft.kernels import cross_entropy
    from ft.models import load, lora

    place, vocabulary = prepared(SHAPE), shape_of(SHAPE).vocab_size
    peak = machine.matrix_peak(torch.device(DEV), torch.bfloat16)
    say(f"{SHAPE}: best bf16 product {peak / 1e12:.1f} TFLOP/s")
    for precision in ("nf4", "bf16"):
        first: dict[str, tuple[float, float]] = {}
        base = load(str(place / "model"), precision=precision)
        say("\n".join(base.notes))
        model = lora.attach(base, r=16, alpha=32)
        cross_entropy.install(model.get_base_model())
        generator = torch.Generator().manual_seed(1)
        for name, p in sorted(model.named_parameters()):
            if "lora_B" in name:
                p.data.copy_(torch.randn(p.shape, generator=generator) * 0.01)
        model.train()
        # the plain way first, as the others are compared with it; then the best
        ways = ((False, False), (True, True), (False, True), (True, False))
        for fused, graphs in ways if ALL else ways[:2]:
            label = f"{precision} {'fused' if fused else 'plain'}{', graphs' if graphs else ''}"
            if left() < 8:
                return say("no time left")
            try:
                there = switch(model, fused)
                if fused and not there:
                    continue
                way = Step(model, graphs)
                for name in ("dolly", "mtnt") if ALL else ("dolly",):
                    inputs = measure(label, way, name, vocabulary, peak, first, fused and there)
                    if GPU and graphs and fused and name == "dolly" and left() > 15:
                        profile(label, way, inputs)
                del way
            except Exception as error:
                failed(label, error)
            clean()
        if ALL or precision == "nf4":
            checkpointed(model, precision, vocabulary, peak, first)
        del model, base
        clean()


def checkpointed(model: Any, precision: str, vocabulary: int, peak: float, first: dict) -> None:
    """With recomputed layers, as a graph."""
    if left() < 12:
        return
    try:
        switch(model, True)
        options = {"use_reentrant": False, "preserve_rng_state": False}
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
        model.enable_input_require_grads()
        way = Step(model, True)
        measure(f"{precision} recomputed, graphs", way, "dolly", vocabulary, peak, first, True)
    except Exception as error:
        failed(f"{precision} recomputed", error)


def attention() -> None:
    """Packed rows in the heads of Gemma 2 2B: the ways that ft takes, launched and as a graph."""
    import torch

    from ft.kernels import attention, flash, tiled

    ours: Any = attention
    attend: Any = flash.attend
    heads, kv, size = (8, 4, 256) if GPU else (4, 2, 16)
    cases = {"dolly": [len(r["input_ids"]) for r in typical_rows("dolly", 8, 1000)]}
    cases |= {"2 x 1,024": [1024] * 2, "8 x 1,024": [1024] * 8} if GPU else {}
    device, scale = torch.device(DEV, 0) if GPU else torch.device(DEV), size**-0.5
    for width in (64, 128, 256):
        say(
            f"varlen_attn with heads of {width} is right: {ours.works(device, torch.bfloat16, width)}, "
            f"flash, capped: {ours.flash_works(device, torch.bfloat16, width, True)}"
        )
    for name, lengths in cases.items():
        t = sum(lengths)
        made = [
            torch.randn(1, h, t, size, device=DEV).bfloat16().requires_grad_()
            for h in (heads, kv, kv)
        ]
        g = torch.randn(1, t, heads, size, device=DEV).bfloat16()
        offsets = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=DEV)
        ways: dict[str, Callable[..., Any]] = {
            "varlen": lambda q, k, v, o=offsets, t=t: ours.varlen(q, k, v, o, t, scale),
            "flash": lambda q, k, v, o=offsets: attend(q, k, v, o, scale),
            "flash, capped": lambda q, k, v, o=offsets: attend(q, k, v, o, scale, 0, 50.0),
            "one by one": lambda q, k, v, n=lengths: ours._one_by_one(q, k, v, n, 0.0, scale, 0),
            "tiled, by lengths": lambda q, k, v, n=lengths: tiled.attend(q, k, v, n, None, scale),
            "tiled, capped, by lengths": lambda q, k, v, n=lengths: tiled.attend(
                q, k, v, n, None, scale, 0, 50.0
            ),
            "tiled, capped": lambda q, k, v, o=offsets: tiled.attend(
                q, k, v, None, o, scale, 0, 50.0
            ),
        }
        for way, run in ways.items():
            if way in ("varlen", "flash", "flash, capped") and not GPU:
                continue
            if left() < 2:
                return say("no time left")
            try:
                both = lambda m, run=run, g=g: torch.autograd.grad(run(*m), m, g)  # noqa: E731
                step, alone = (functools.partial(both, m) for m in (made, [fresh(x) for x in made]))
                say(
                    f"{name} ({t} tokens) {way}: {clock(step, 5, 2):.3f} ms, {peak_of(step):.3f} GB, "
                    f"as a graph {graphed(alone):.3f} ms"
                )
            except Exception as error:
                failed(f"{name} {way}", error)
        with suppress(NameError):
            del made, g
        clean()
