"""The fused kernels: their numbers in Triton's interpreter (interpreted.py), and what they do without it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import interpreted

from ft.kernels import fused
from ft.text import batches

SCRIPT = Path(__file__).with_name("interpreted.py")
CASES = interpreted.cases(SCRIPT)


@pytest.fixture(scope="module")
def faults():
    return interpreted.faults(SCRIPT)


@pytest.mark.parametrize("case", CASES)
def test_kernels_compute_what_pytorch_does(case, faults):
    assert case not in faults, faults[case]


def test_on_a_cpu_they_are_not_used():
    assert not fused.usable(torch.ones(2))


@pytest.mark.parametrize("why", ["", "Failed to find C compiler."])
def test_where_triton_fails_they_are_not_used(why, monkeypatch):
    """It is often installed with PyTorch where no compiler is, as in a container."""

    def norm(*_):
        if why:
            raise RuntimeError(why)

    fused.lack.cache_clear()
    monkeypatch.setattr(fused, "_norm", norm)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.empty(1, 16))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    on = torch.device("cuda", 0)
    assert fused.lack(on) == f"RuntimeError: {why}" * bool(why)
    given: Any = SimpleNamespace(dtype=torch.float16, device=on, is_cuda=True)
    assert fused.usable(given) == (not why)
    fused.lack.cache_clear()


@pytest.mark.parametrize("vocabulary", [256_000, 262_144, 1003])
@pytest.mark.parametrize("n", [0, 1, 200, 640, 1100, 8192])
@pytest.mark.parametrize("width", [2, 4])
def test_tiles_are_full_and_few(vocabulary, n, width):
    parts = batches.gpu_tiles(n, vocabulary, width)
    sizes = [part.stop - part.start for part in parts]
    assert sum(sizes) == n
    assert all(a.stop == b.start for a, b in zip(parts, parts[1:], strict=False))
    assert len(set(sizes[:-1])) <= 1
    assert all(size % batches.STEP == 0 for size in sizes[:-1])
    assert max(sizes, default=0) * vocabulary * width <= 2 * batches.GPU_TILE
    if n == 8192 and vocabulary == 256_000 and width == 2:
        assert sizes == [1024] * 8
