"""How fast this processor multiplies in bf16 and in fp32, in the shapes of Gemma 3 270M's training.

python benchmarks/precision.py

`--precision auto` takes bf16 on a CPU where these are faster (`ft.machine.fast_bf16`). Each figure is the best of half a
second, both precisions in turn.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

SHAPES = {  # rows, inputs, outputs
    "square": (1024, 1024, 1024),
    "up": (400, 640, 2048),
    "down": (400, 2048, 640),
    "head": (128, 640, 262_144),
}


def rate(product: Callable[[], Any], flops: float, seconds: float = 0.5) -> float:
    """GFLOP/s of the fastest call."""
    product()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        product()
        best = min(best, time.perf_counter() - start)
    return flops / best / 1e9


def main() -> None:
    torch.manual_seed(0)
    print(f"{'':<8}{'bf16':>8}{'fp32':>8}   GFLOP/s, {torch.get_num_threads()} threads")
    for name, (rows, inputs, outputs) in SHAPES.items():
        found = []
        for dtype in (torch.bfloat16, torch.float32):
            a, b = torch.randn(rows, inputs).to(dtype), torch.randn(outputs, inputs).to(dtype)
            flops = 2 * rows * inputs * outputs
            found.append(rate(lambda a=a, b=b: torch.nn.functional.linear(a, b), flops))
        print(f"{name:<8}{found[0]:>8.0f}{found[1]:>8.0f}   {found[0] / found[1]:.2f}")


if __name__ == "__main__":
    main()
