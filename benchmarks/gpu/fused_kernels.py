"""The fused kernels on a GPU against PyTorch's own operations, and the head against its bare products.

Command   python benchmarks/gpu/fused_kernels.py            DEV=cpu: tiny sizes, in Triton's interpreter
Hardware  one GPU with bf16 and 20 GB
Time      about 30 s on an H100

Each line: milliseconds of forward and backward, and the largest difference to fp64 relative to its norm.
"""

import functools
import os
import sys
import time
from collections.abc import Callable
from typing import Any

GPU = os.environ.get("DEV", "cuda") == "cuda"
if not GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

import torch  # noqa: E402
from common import clean, clock, failed, fresh, graphed, peak_of, sync  # noqa: E402

from ft.kernels import (  # noqa: E402
    cross_entropy,
    flash_decode,
    fused,
    fused_layers,
    fused_nf4,
    joined,
    lora_copies,
    lora_linear,
)

DEV = "cuda" if GPU else "cpu"
HALF = torch.bfloat16
CAP = 30.0
Run = Callable[..., torch.Tensor]


def both_ways(run: Run, inputs: list[torch.Tensor], gradient: torch.Tensor) -> list[torch.Tensor]:
    out = run(*inputs)
    wanted = [x for x in inputs if x.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, gradient.to(out.dtype))]


def compared(name: str, ours: Run, plain: Run, inputs: list[torch.Tensor]) -> None:
    """One line: our time, PyTorch's, and how far each is from fp64."""
    gradient = torch.randn(ours(*inputs).shape, device=DEV, dtype=HALF)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in inputs]
    truth = both_ways(plain, exact, gradient)
    words = []
    for label, run in (("fused", ours), ("PyTorch", plain)):
        found = both_ways(run, inputs, gradient)
        off = max(
            ((f.double() - t).norm() / t.norm()).item() for f, t in zip(found, truth, strict=True)
        )
        step, alone = (
            functools.partial(both_ways, run, given, gradient)
            for given in (inputs, [fresh(x) for x in inputs])
        )
        words.append(
            f"{label} {clock(step):.3f} ms ({graphed(alone):.3f} in a graph), off {off:.1e}"
        )
    print(f"{name}: {'; '.join(words)}", flush=True)


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (wide * scale * (1.0 + weight.to(wide.dtype))).type_as(x)


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.chunk(2, -1)
    return x * cos[:, None] + torch.cat([-high, low], -1) * sin[:, None]


def elementwise() -> None:
    new = functools.partial(torch.randn, device=DEV, dtype=HALF)
    for rows in (571, 8192) if GPU else (3,):
        width, inner, head = (2304, 9216, 256) if GPU else (48, 96, 16)
        x, weight = new(1, rows, width, requires_grad=True), new(width)
        ours: Run = lambda x, w: fused.rms_norm(x, w, 1e-6, 1.0)  # noqa: E731
        compared(f"RMSNorm {rows} x {width}", ours, norm, [x, weight])
        compared(
            f"RMSNorm {rows} x {width}, trained", ours, norm, [x, new(width, requires_grad=True)]
        )
        heads = new(1, rows, 4, head).transpose(1, 2).requires_grad_()
        compared(f"RMSNorm {rows} x 4 x {head}", ours, norm, [heads, new(head)])
        pair = [new(1, rows, inner, requires_grad=True) for _ in range(2)]
        plain: Run = lambda g, u: torch.nn.functional.gelu(g, approximate="tanh") * u  # noqa: E731
        compared(f"GEGLU {rows} x {inner}", fused.geglu, plain, pair)
        angle = torch.randn(1, rows, head, device=DEV)
        inputs = [new(1, rows, 8, head).transpose(1, 2).requires_grad_()]
        inputs += [angle.cos().to(HALF), angle.sin().to(HALF)]
        turned: Run = lambda x, c, s: fused.rotary(c, s, x)[0]  # noqa: E731
        compared(f"rotary {rows} x 8 x {head}", turned, rotated, inputs)


def products(hidden: torch.Tensor, weight: torch.Tensor) -> None:
    logits = hidden.new_empty(min(len(hidden), 2048), len(weight))
    result = torch.empty_like(hidden)
    for at in range(0, len(hidden), 2048):
        part = hidden[at : at + 2048]
        torch.mm(part, weight.T, out=logits[: len(part)])
        torch.mm(logits[: len(part)], weight, out=result[at : at + 2048])


def ours(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy.cross_entropy(hidden, weight, targets, CAP)


def head() -> None:
    width, vocabulary = (2304, 256_000) if GPU else (32, 1003)
    weight = torch.randn(vocabulary, width, device=DEV, dtype=HALF) * width**-0.5
    for rows in (8192, 640, 200) if GPU else (5,):
        losses(rows, weight, {"ft": ours})
    scored(weight, width)


def peers() -> None:
    """The head's losses of other projects, where they can be imported, at 8,192 rows."""
    from gpu_parts import LOSSES

    names = [name for name in LOSSES if name not in ("ft", "PyTorch")] * GPU
    found: Any = {name: lambda *x, name=name: LOSSES[name]()(*x) for name in names}
    weight = torch.randn(256_000 if GPU else 1003, 2304 if GPU else 32, device=DEV, dtype=HALF)
    losses(8192 if GPU else 5, weight * weight.shape[1] ** -0.5, found)


def losses(rows: int, weight: torch.Tensor, functions: dict[str, Run]) -> None:
    """A line for each function: time beside the bare products', memory, distance from fp64 on 200 rows."""
    hidden = torch.randn(rows, weight.shape[1], device=DEV, dtype=HALF, requires_grad=True)
    targets = torch.randint(len(weight), (rows,), device=DEV)
    wide = hidden[:200].detach().double().requires_grad_()
    logits = CAP * torch.tanh(wide @ weight.double().T / CAP)
    truth = torch.nn.functional.cross_entropy(logits, targets[:200], reduction="sum")
    (slope,) = torch.autograd.grad(truth, wide)
    del logits
    bare = clock(lambda: products(hidden.detach(), weight))
    print(f"head, {rows} rows, bare products: {bare:.2f} ms", flush=True)
    for name, loss in functions.items():

        def once(h=hidden, t=targets, loss=loss):  # noqa: ANN001, ANN202
            value = loss(h, weight, t)
            return value, torch.autograd.grad(value, h)[0]

        try:
            took, more = clock(once), peak_of(once)
            value, found = once(hidden[:200].detach().requires_grad_(), targets[:200])
        except Exception as error:
            print(f"head, {rows} rows, {name}: FAILED {str(error)[:200]}", flush=True)
            continue
        off = ((found.double() - slope).norm() / slope.norm()).item()
        line = f"{took:.2f} ms = {took / bare:.2f} x bare, {more:.2f} GB besides, loss off "
        line += f"{abs(value.item() / truth.item() - 1):.1e}, gradient off {off:.1e}"
        line += f"; {graphed(once):.2f} ms in a graph" if name == "ft" else ""
        print(f"head, {rows} rows, {name}: {line}", flush=True)


def scored(weight: torch.Tensor, width: int) -> None:
    """The validation's loss, and its share of highest logits, against PyTorch's of full logits."""
    hidden = torch.randn(1, 201 if GPU else 6, width, device=DEV, dtype=HALF)
    logits = (hidden[0, :-1] @ weight.T).float()
    labels = torch.nn.functional.pad(logits.argmax(-1), (1, 0))[None]
    labels[:, ::2] = 7
    total, correct = cross_entropy.supervised_score(hidden, weight, labels, CAP)
    capped = CAP * torch.tanh(logits / CAP)
    wanted = torch.nn.functional.cross_entropy(capped, labels[0, 1:], reduction="sum")
    most = (labels[0, 1:] == logits.argmax(-1)).sum()
    print(
        f"scores: loss off {(total / wanted - 1).abs().item():.1e}; {correct:.1f} correct of {most}"
    )


def adapted(quantized: bool) -> torch.nn.Module:
    import bitsandbytes
    from peft import LoraConfig, get_peft_model

    inputs, outputs = (2304, 9216) if GPU else (64, 128)
    layer = torch.nn.Linear(inputs, outputs, bias=False).to(HALF)
    if quantized:
        plain = layer
        four: Any = bitsandbytes.nn.Linear4bit  # pyright: ignore[reportPrivateImportUsage]
        layer = four(inputs, outputs, bias=False, compute_dtype=HALF, quant_type="nf4")
        layer.load_state_dict(plain.state_dict())
    model: Any = get_peft_model(
        torch.nn.Sequential(layer).to(DEV), LoraConfig(r=16, lora_alpha=32, target_modules=["0"])
    )
    torch.nn.init.normal_(model.base_model.model[0].lora_B["default"].weight, std=0.02)
    return model


def weights() -> None:
    """A 4-bit weight brought to bf16 by bitsandbytes and by one kernel."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for shape in ((2304, 9216), (1024, 2304)) if GPU else ((75, 256),):
        plain = torch.randn(shape, device=DEV, dtype=HALF)
        codes, state = quantize_4bit(plain, compress_statistics=True, quant_type="nf4")
        theirs = functools.partial(dequantize_4bit, codes, state)
        ours = functools.partial(fused_nf4.decode, codes, state, HALF)
        same = torch.equal(ours(), theirs())
        times = [graphed(lambda run=run: [run() for _ in range(20)]) / 20 for run in (theirs, ours)]
        rates = [2.5 * plain.numel() / 1e9 / ms for ms in times]
        print(
            f"nf4 {shape}: bitsandbytes {times[0]:.4f} ms ({rates[0]:.2f} TB/s), one kernel "
            f"{times[1]:.4f} ms ({rates[1]:.2f} TB/s), in a graph; the same bits: {same}; used: "
            f"{fused_nf4.works(plain.device, HALF)}",
            flush=True,
        )


def answers() -> None:
    """Attention of one new token with a soft cap, beside PyTorch's operations for it, each as a graph."""
    heads, shared, size = (8, 4, 256) if GPU else (4, 2, 16)
    new = functools.partial(torch.randn, device=DEV, dtype=HALF if GPU else torch.float16)
    for batch, length in ((1, 512), (16, 512), (1, 8192)) if GPU else ((2, 70),):
        query, k, v = (new(batch, n, 1, size) for n in (heads, shared, shared))
        keys, values = (new(batch, shared, length, size) for _ in range(2))
        seen = torch.ones(batch, length, dtype=torch.bool, device=DEV)
        at = torch.tensor([length - 3], device=DEV)
        given = query, keys, values, seen, at, size**-0.5, 0, 50.0

        def ours(given=given, k=k, v=v):  # noqa: ANN001, ANN202
            flash_decode.put(given[1], given[2], k, v, given[4])
            return flash_decode.attend(*given)

        def plain(given=given, k=k, v=v):  # noqa: ANN001, ANN202
            for places, x in zip(given[1:3], (k, v), strict=True):
                places.index_copy_(2, given[4], x)
            return flash_decode.plain(*given)

        off = ((ours() - plain()).float().norm() / plain().float().norm()).item()
        print(
            f"one token's attention, {batch} x {length}: {graphed(ours):.4f} ms, PyTorch "
            f"{graphed(plain):.4f} ms, {off:.1e} apart",
            flush=True,
        )


def layers() -> None:
    """A LoRA layer as PEFT has it, with our low-rank function, and as one function."""
    for quantized in (True, False):
        torch.manual_seed(0)
        model = adapted(quantized)
        rows = 571 if GPU else 3
        x = torch.randn(1, rows, 2304 if GPU else 64, device=DEV, dtype=HALF, requires_grad=True)
        leaves = [x, *(p for p in model.parameters() if p.requires_grad)]
        gradient, truth, words = torch.randn_like(model(x), dtype=HALF), None, []

        def step(model=model, x=x, gradient=gradient, leaves=leaves):  # noqa: ANN001, ANN202
            with torch.autocast(DEV, HALF):
                out = model(x)
            return [out, *torch.autograd.grad(out, leaves, gradient)]

        for name in ("PEFT", "apart", "whole"):
            if name == "apart":
                lora_linear.install(model)
            joined.DEVICES = (DEV,) if name == "whole" else ()
            found = [t.detach().double() for t in step()]
            truth = truth or found
            off = max(((f - t).norm() / t.norm()).item() for f, t in zip(found, truth, strict=True))
            words.append(
                f"{name} {clock(step):.3f} ms ({graphed(step):.3f} in a graph), {off:.1e} from PEFT"
            )
        print(
            f"LoRA on {'nf4' if quantized else 'bf16'}, {rows} rows: {'; '.join(words)}", flush=True
        )


def step() -> None:
    """Kernels and milliseconds of a forward and a backward of Gemma 2 2B in bf16 with LoRA."""
    from harness.random_model import build, shape_of
    from peft import LoraConfig, get_peft_model

    shape = shape_of("gemma-2-2b" if GPU else "tiny")
    base: Any = build(shape, DEV)
    base.set_attn_implementation("eager")
    config = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = get_peft_model(base, config)
    cross_entropy.install(base)
    lora_linear.install(model)
    ids = torch.randint(5, shape.vocab_size, (1, 571 if GPU else 4), device=DEV)
    for parameter in model.parameters():
        parameter.data = parameter.data.float() if parameter.requires_grad else parameter.data

    def once() -> torch.Tensor:
        with torch.autocast(DEV, HALF):
            value = model(input_ids=ids, labels=ids)["loss"]
        value.backward()
        return value.detach()

    kind_of: Any = torch.autograd.DeviceType  # pyright: ignore[reportPrivateImportUsage]
    has_triton, kinds = fused._has_triton, [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] * GPU
    for name in ("before", "fused"):
        fused._has_triton = has_triton if name == "fused" else lambda: False
        joined.DEVICES = (DEV,) if name == "fused" else ()
        if name == "fused":
            print("fused kernels:", fused_layers.install(base))
            print(f"{lora_copies.refresh(model)} copies of A and B")
        model.zero_grad()
        value = once()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9).item()
        took = clock(once)
        with torch.profiler.profile(activities=kinds) as profile:
            once()
            sync()
        kind = kind_of.CUDA if GPU else kind_of.CPU
        found: Any = profile.events()
        events = [e for e in found if e.device_type == kind]
        busy = sum(e.time_range.elapsed_us() for e in events) / 1e3
        print(
            f"step, {name}: {len(events)} kernels, busy {busy:.1f} ms, {took:.1f} ms in all; loss "
            f"{value.item():.2f}, gradient norm {norm:.4f}",
            flush=True,
        )


def main(names: list[str]) -> None:
    """The parts that are named, or all; what fails is a line, and the next goes on."""
    start = time.perf_counter()
    for part in (head, weights, elementwise, answers, layers, step, peers):
        if names and part.__name__ not in names:
            continue
        try:
            part()
        except Exception as error:
            failed(part.__name__, error)
        clean()
        print(f"({part.__name__}: {time.perf_counter() - start:.0f} s so far)", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
