"""Not a peer but their limit: the fastest fp32 matrix product among the model's own shapes."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from worker import Job, open_job

if TYPE_CHECKING:
    from torch import Tensor

TOKENS = (1024, 256)  # rows that a layer and the head see at once
SECONDS = 0.3  # spent on each shape


def main() -> None:
    """Report the counts of ``count`` once, then after every step the GFLOP/s of the best shape."""
    job, pipe = open_job()
    import torch
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(job.model).get_text_config()
    h, i, v = config.hidden_size, config.intermediate_size, config.vocab_size
    shapes = [(TOKENS[0], i, h), (TOKENS[0], h, i), (TOKENS[1], v, h)]
    factors = [(torch.randn(rows, into), torch.randn(out, into)) for rows, out, into in shapes]
    result = count(job) | {"head": h * v}
    while True:
        pipe.wait(**result)
        result = {"gflops": max(gflops(x, weight) for x, weight in factors)}


def count(job: Job) -> dict[str, int]:
    """Elements of the matrices in the model's layers and in the adapter, by their files' headers."""
    from safetensors import safe_open

    sizes = {"layers": 0, "adapter": 0}
    for key, folder, part in (
        ("layers", job.model, ".layers."),
        ("adapter", job.adapter, ".lora_"),
    ):
        for path in Path(folder).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                names = [name for name in file.keys() if part in name]  # noqa: SIM118
                shapes = [file.get_slice(name).get_shape() for name in names]
            sizes[key] += sum(shape[0] * shape[1] for shape in shapes if len(shape) == 2)
    return sizes


def gflops(x: "Tensor", weight: "Tensor") -> float:
    """The best of as many products [rows, into] x [into, out] as begin within ``SECONDS``."""
    import torch

    best = float("inf")
    end = time.perf_counter() + SECONDS
    while (start := time.perf_counter()) < end:
        torch.nn.functional.linear(x, weight)
        best = min(best, time.perf_counter() - start)
    return 2 * len(x) * weight.numel() / best / 1e9


if __name__ == "__main__":
    main()
