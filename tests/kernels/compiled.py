"""The Triton kernels compiled for a GPU that is not here: `python compiled.py 90` prints JSON, a line of each kernel.

In a process of its own, whose Triton believes in a GPU of that compute capability. Nothing is launched: each
launch of the public functions compiles what a GPU would have run, down to its machine code.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from bitsandbytes.functional import quantize_4bit
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from ft.kernels import flash, flash_decode, fused, fused_head, fused_nf4


class Driver:
    """What Triton asks of a device before it compiles for it."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def resources(code: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of its stack, where what exceeds them lies."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        told = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
    words = dict(word.split(":") for word in (told.stdout + told.stderr).split() if ":" in word)
    return {"registers": int(words["REG"]), "stack": int(words["STACK"])}


def both_ways(function, *shapes, dtype, frozen=()):
    """Run a function and its backward on zeros of these shapes."""
    made = [
        torch.zeros(s, dtype=dtype, requires_grad=i not in frozen) for i, s in enumerate(shapes)
    ]
    out = function(*made)
    torch.autograd.grad(out, [x for x in made if x.requires_grad], torch.ones_like(out))


def run(capability: int) -> None:
    """All kernels, at the sizes of Gemma 2 2B and of the heads of Gemma 2 27B."""
    old = capability < 10 * flash.AMPERE
    half = torch.float16 if old else torch.bfloat16
    dtype = torch.float32 if old else half  # what lies between products
    for frozen in ((), (1,)):
        both_ways(
            lambda x, w: fused.rms_norm(x, w, 1e-6, 1.0),
            (8, 2304),
            2304,
            dtype=dtype,
            frozen=frozen,
        )
    both_ways(lambda x: fused.rms_norm(x, None, 1e-6), (8, 256), dtype=dtype)
    heads = lambda x: fused.rms_norm(x[..., 2048:3072].view(1, 8, 4, 256), None, 1e-6)  # noqa: E731
    both_ways(heads, (1, 8, 4096), dtype=dtype)
    part = lambda x: fused.rms_norm(x[..., :2304], None, 1e-6)  # noqa: E731
    both_ways(part, (1, 8, 2320), dtype=dtype)
    both_ways(fused.geglu, (8, 9216), (8, 9216), dtype=dtype)
    both_ways(lambda x: fused.geglu(*x[:, :18432].split(9216, 1)), (8, 18464), dtype=dtype)
    angle = (1, 64, 256)
    queries, keys = (1, 8, 64, 256), (1, 4, 64, 256)
    turn = lambda c, s, *x: fused.rotary(c, s, *x)[-1]  # noqa: E731
    both_ways(turn, angle, angle, queries, dtype=dtype, frozen=(0, 1))
    both_ways(turn, angle, angle, queries, keys, dtype=dtype, frozen=(0, 1))
    hidden, weight = torch.zeros(8, 16, dtype=dtype), torch.zeros(256000, 16, dtype=dtype)
    targets = torch.zeros(8, dtype=torch.long)
    for softcap in (None, 30.0):
        fused_head.losses(hidden, weight, targets, softcap, torch.empty_like(hidden))
        fused_head.scores(hidden, weight, targets, softcap)
    codes, state = quantize_4bit(
        torch.ones(256, 256, dtype=half), compress_statistics=True, quant_type="nf4"
    )
    fused_nf4.decode(codes.view(torch.uint8), state, half)
    offsets = torch.tensor([0, 70, 128], dtype=torch.int32)
    if old:  # refused there, and this is why
        q, k, v = torch.zeros(3, 1, 4, 128, 64, dtype=half)
        flash.attend(q, k, v, offsets, 0.125)
        return
    seen, at = torch.ones(1, 200, dtype=torch.bool), torch.tensor([99])
    for size, softcap in ((256, 50.0), (256, None), (128, 50.0), (512, None)):
        query, keys = (
            torch.zeros(1, 8, 1, size, dtype=half),
            torch.zeros(1, 4, 200, size, dtype=half),
        )
        flash_decode.put(keys, keys, query[:, :4], query[:, :4], at)
        flash_decode.attend(query, keys, keys, seen, at, 1.0, 0, softcap)
    for size, softcap in ((256, 50.0), (256, None), (128, 50.0)):
        both_ways(
            lambda q, k, v, s=size, c=softcap: flash.attend(q, k, v, offsets, s**-0.5, 40, c),
            (1, 8, 128, size), (1, 4, 128, size), (1, 4, 128, size), dtype=half,
        )  # fmt: skip


def main() -> None:
    capability = int(sys.argv[1])
    found: list[dict] = []

    def compiled(self, grid):
        def launch(*args, **options):
            kernel = self.warmup(*args, grid=grid, **options)
            line = {"kernel": self.__name__, "shared": kernel.metadata.shared}
            found.append(line | resources(kernel.asm["cubin"]))

        return launch

    triton.runtime.driver.set_active(Driver(capability))
    JITFunction.__getitem__ = compiled
    fused.usable = lambda *_: True
    flash._grouped = lambda device: capability // 10 in (9, 10)
    run(capability)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
