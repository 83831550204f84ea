"""RecurrentGemma's RG-LRU beside transformers' loop: the layer, and a training step; interleaved in one run.

Command   python benchmarks/recurrent.py --out recurrent.json
          python benchmarks/recurrent.py --device cuda --dtype bfloat16
Hardware  two CPU cores and 8 GiB of memory with nothing else running, or a GPU
Time      4 minutes on two CPU cores

Forward and backward at RecurrentGemma 2B's width of 2,560: `scan` is h = a * h before + x alone, `layer`
the whole RG-LRU with its gates, `step` a training step of a model of 2B's widths in three layers (two
recurrent, one attention) with a small vocabulary. `products` are the matrix products of the gates and
`bound` is a step whose RG-LRU does nothing at all: neither side can be faster than these. Both must
agree to 1e-4, or the exit status is 1.
"""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.interleaved import measure
from harness.report import cpu_name

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
        for title, make in (("scan", scans), ("layer", layers)):
            sides = make(c, batch, tokens)
            differences.append(difference(sides))
            result[f"{title} {shape}"] = measure(sides, c.repeats, c.device)
            print(line(f"{title} {shape}", result[f"{title} {shape}"]), flush=True)
    sides = steps(c)
    differences.append(difference(sides))
    result["step"] = measure(sides, c.repeats, c.device)
    print(line(f"step {c.tokens}", result["step"]))
    result["load_average"].append(os.getloadavg()[0])
    result["differences"] = differences
    load = " to ".join(f"{x:.1f}" for x in result["load_average"])
    print(f"{device}, {c.threads} threads, {c.dtype}, load average {load}")
    print(f"largest relative difference {max(differences):.1e}")
    if c.out:
        write_json(c.out, result)
    if c.dtype == "float32" and not max(differences) <= TOLERANCE:
        raise SystemExit(1)


def scans(c: Config, batch: int, tokens: int) -> dict[str, Callable[[], list[Any]]]:
    """Forward and backward of the recurrence alone by each side: the states, and both gradients."""
    import torch
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    from ft.kernels import recurrent

    kind = getattr(torch, c.dtype)
    x, a, upward = (torch.rand(batch, tokens, 2560, device=c.device).to(kind) for _ in range(3))
    for leaf in (x, a):
        leaf.requires_grad_()
    reset = torch.zeros(batch, tokens, 1, dtype=torch.bool, device=c.device)
    reset[:, 0] = True

    class Scan(
        torch.autograd.Function
    ):  # what `ft.kernels.recurrent` does of it, between its gates
        @staticmethod
        def forward(ctx: Any, x: Any, a: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            states, a = x.float().clone(), a.float()
            recurrent.advance(states, a)
            ctx.save_for_backward(states, a)
            return states.to(x.dtype)

        @staticmethod
        def backward(ctx: Any, d: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
            states, a = ctx.saved_tensors
            dx, da = d.float().clone(), torch.empty_like(a)
            recurrent.advance(dx, a, reverse=True)
            da[:, 0] = 0  # a document starts here
            torch.mul(dx[:, 1:], states[:, :-1], out=da[:, 1:])
            return dx.to(d.dtype), da.to(d.dtype)

    def loop(x: Any, a: Any) -> Any:
        return RecurrentGemmaRglru._rnn_scan(None, x, a, reset, None)[0]  # pyright: ignore[reportArgumentType]

    def run(scan: Callable[[Any, Any], Any]) -> list[Any]:
        found = scan(x, a)
        return [found, *torch.autograd.grad(found, [x, a], upward)]

    return {
        "transformers": lambda: run(loop),
        "ft": lambda: run(lambda x, a: Scan.apply(x, a * ~reset)),
    }


def layers(c: Config, batch: int, tokens: int) -> dict[str, Callable[[], list[Any]]]:
    """Forward and backward of one layer by each side, which answers with its results and gradients."""
    import torch
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

    from ft.kernels import recurrent

    kind = getattr(torch, c.dtype)
    plain = RecurrentGemmaRglru(RecurrentGemmaConfig())
    for name, parameter in plain.named_parameters():
        (torch.nn.init.uniform_ if "param" in name else torch.nn.init.normal_)(parameter)
        if "weight" in name:
            parameter.data.mul_(parameter.shape[1] ** -0.5)
    plain.to(c.device, kind)
    fast = copy.deepcopy(plain)
    fast.__class__ = recurrent.RgLru
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

    from ft.kernels import recurrent

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
    theirs, ours = ([x.detach().clone() for x in sides[k]()] for k in ("transformers", "ft"))
    pairs = zip(ours, theirs, strict=True)
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs)


def line(title: str, found: dict[str, dict[str, float]]) -> str:
    """One row for people."""
    slow, fast = found["transformers"], found["ft"]
    text = f"{title:<13} transformers {slow['wall_s']:.4f} s {slow['peak_mib']:.0f} MiB, "
    text += f"ft {fast['wall_s']:.4f} s {fast['peak_mib']:.0f} MiB, "
    text += f"{slow['wall_s'] / fast['wall_s']:.1f} times as fast "
    text += f"({slow['cpu_s'] / fast['cpu_s']:.1f} in CPU time)"
    for name in found.keys() - {"transformers", "ft"}:
        limit = slow["wall_s"] / found[name]["wall_s"]
        text += f"; {name} {found[name]['wall_s']:.4f} s, so at most {limit:.1f}"
    return text


if __name__ == "__main__":
    config.run(main, Config, __doc__)
