"""RecurrentGemma's RG-LRU beside transformers' loop: the layer, and a training step; interleaved in one run.

Command   python benchmarks/recurrent.py --out recurrent.json
          python benchmarks/recurrent.py --device cuda --dtype bfloat16
Hardware  two CPU cores and 8 GiB of memory with nothing else running, or a GPU
Time      4 minutes on two CPU cores

Layers have RecurrentGemma 2B's width of 2,560, the model its widths in three layers (two recurrent,
one attention) and a small vocabulary. Forward and backward each time. `products` are the gates' matrix
products alone, which both need: without them is what the scan is. `bound` is a step whose RG-LRU does
nothing at all. Both sides must agree to 1e-4, or the exit status is 1.
"""

import copy
import ctypes
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peers.report import cpu_name

from ft import config
from ft.files import write_json

TOLERANCE = 1e-4  # largest difference of results and gradients, relative to the largest entry


@dataclass(frozen=True)
class Config:
    """What to measure, on what."""

    shapes: tuple[str, ...] = ("8x64", "4x256", "1x1024")  # batch x tokens of the layer
    tokens: int = 256  # of the training step, in one row
    vocab_size: int = 8192  # of the model: its head costs both sides the same
    repeats: int = 3  # of each side, in turn, after one to warm up
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 2
    out: Path | None = None  # JSON file for the result


def main(c: Config) -> None:
    """Measure in turn, print medians, peaks of memory and ratios; exit 1 if the sides disagree."""
    import torch

    torch.set_num_threads(c.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    device = torch.cuda.get_device_name() if c.device == "cuda" else cpu_name()
    result: dict[str, Any] = {
        "device": device,
        "torch": torch.__version__,
        "options": config.to_dict(c),
        "load_average": [os.getloadavg()[0]],
    }
    differences = []
    for shape in c.shapes:
        batch, tokens = map(int, shape.split("x"))
        sides = layers(c, batch, tokens)
        differences.append(difference(sides))
        result[shape] = measure(sides, c)
        print(line(f"layer ({batch}, {tokens:,})", result[shape], "products"), flush=True)
    sides = steps(c)
    differences.append(difference(sides))
    result["step"] = measure(sides, c)
    print(line(f"step of {c.tokens} tokens", result["step"], "bound"))
    result["load_average"].append(os.getloadavg()[0])
    result["differences"] = differences
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    print(f"{device}, {c.threads} threads, {c.dtype}, load average {load}")
    print(f"largest relative difference {max(differences):.1e}")
    if c.out:
        write_json(c.out, result)
    if c.dtype == "float32" and not max(differences) <= TOLERANCE:
        raise SystemExit(1)


def layers(c: Config, batch: int, tokens: int) -> dict[str, Callable[[], list[Any]]]:
    """Forward and backward of one layer by each side, which answers with its results and gradients."""
    import torch
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    from ft import recurrent

    kind = getattr(torch, c.dtype)
    plain = RecurrentGemmaRglru(RecurrentGemmaConfig())
    for name, parameter in plain.named_parameters():
        (torch.nn.init.uniform_ if "param" in name else torch.nn.init.normal_)(parameter)
        if "weight" in name:
            parameter.data.mul_(parameter.shape[1] ** -0.5)
    plain.to(c.device, kind)
    fast = copy.deepcopy(plain)
    fast.__class__ = recurrent._classes().RgLru
    x = torch.randn(batch, tokens, 2560, device=c.device).to(kind).requires_grad_()
    upward = torch.randn_like(x)
    positions = torch.arange(tokens, device=c.device).expand(batch, tokens)

    def run(layer: Any) -> list[Any]:
        plain.recurrent_states = None
        found = layer(x, positions)
        found = found if isinstance(found, torch.Tensor) else found[0]
        return [found, *torch.autograd.grad(found, [x, *layer.parameters()], upward)]

    heads, width = plain.num_attention_heads, plain.block_width
    rows = x.detach().reshape(-1, heads, width).transpose(0, 1).requires_grad_()
    weights = [plain.input_gate_weight, plain.recurrent_gate_weight]
    gradient = torch.randn_like(rows)

    def products() -> list[Any]:
        both = [rows @ weight for weight in weights]
        return [
            torch.autograd.grad(one, [rows, w], gradient)
            for one, w in zip(both, weights, strict=True)
        ]

    return {"transformers": lambda: run(plain), "ft": lambda: run(fast), "products": products}


def steps(c: Config) -> dict[str, Callable[[], list[Any]]]:
    """A training step of all parameters by each side: loss, backward and plain SGD."""
    import torch
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    from ft import recurrent

    shape = RecurrentGemmaConfig(
        num_hidden_layers=3,
        intermediate_size=15360,
        num_key_value_heads=1,
        vocab_size=c.vocab_size,
    )
    plain: Any = RecurrentGemmaForCausalLM(shape)
    plain.to(c.device, getattr(torch, c.dtype)).train()
    shared = {id(p): p for p in plain.parameters()}
    fast, bound = (copy.deepcopy(plain, dict(shared)) for _ in range(2))
    recurrent.install(fast)
    recurrent.install(bound)
    for module in bound.modules():
        if hasattr(module, "recurrent_param"):
            module.forward = lambda x, positions, state: (x, x[:, -1])
    ids = torch.randint(10, c.vocab_size, (1, c.tokens), device=c.device)
    parameters = list(plain.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.0)  # the sides stay comparable

    def run(model: Any) -> list[Any]:
        optimizer.zero_grad(set_to_none=True)
        loss = model(ids, labels=ids, use_cache=False).loss
        loss.backward()
        optimizer.step()
        return [loss, *(p.grad for p in parameters if p.grad is not None and p.dim() < 2)]

    return {
        name: lambda model=model: run(model)
        for name, model in (("transformers", plain), ("ft", fast), ("bound", bound))
    }


def difference(sides: dict[str, Callable[[], list[Any]]]) -> float:
    """The largest between what both sides found, relative to the largest entry of a tensor."""
    theirs = [x.detach().clone() for x in sides["transformers"]()]
    ours = sides["ft"]()
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def measure(sides: dict[str, Callable[[], Any]], c: Config) -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of each side, taken in turn, and the memory that it needs at most."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    peaks = {name: peak(run, c.device) for name, run in sides.items()}  # warms up, too
    for _ in range(c.repeats):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            synchronise(c.device)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_s": statistics.median(wall for wall, _ in found),
            "cpu_s": statistics.median(cpu for _, cpu in found),
            "peak_mib": peaks[name],
        }
        for name, found in seconds.items()
    }


def synchronise(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def peak(run: Callable[[], Any], device: str) -> float:
    """MiB that ``run`` needs at most above what is held before (on a CPU as Linux counts it)."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # free memory that the process still holds would hide the need
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
    before = status("VmRSS")
    run()
    return (status("VmHWM") - before) / 2**10


def status(key: str) -> int:
    """KiB of one of this process's memory counts."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))


def line(title: str, found: dict[str, dict[str, float]], third: str) -> str:
    """One row for people."""
    slow, fast, other = (found[name] for name in ("transformers", "ft", third))
    ratio = slow["wall_s"] / fast["wall_s"]
    text = (
        f"{title:<20} transformers {slow['wall_s']:.4f} s {slow['peak_mib']:.0f} MiB, "
        f"ft {fast['wall_s']:.4f} s {fast['peak_mib']:.0f} MiB, ratio {ratio:.1f} "
        f"({slow['cpu_s'] / fast['cpu_s']:.1f} in CPU time); {third} {other['wall_s']:.4f} s"
    )
    if third == "bound":
        return f"{text}, at most {slow['wall_s'] / other['wall_s']:.1f}"
    scan = (slow["wall_s"] - other["wall_s"]) / max(fast["wall_s"] - other["wall_s"], 1e-9)
    return f"{text}, without them {scan:.1f}"


if __name__ == "__main__":
    config.run(main, Config, __doc__)
