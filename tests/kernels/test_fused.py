"""The fused kernels: their numbers in Triton's interpreter (interpreted.py), and what they do without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ft.kernels import fused
from ft.text import batches

HERE = Path(__file__).parent
SOURCE = (HERE / "interpreted.py").read_text()
CASES = SOURCE.partition("CASES = (")[2].partition(")")[0].replace(",", "").split()


@pytest.fixture(scope="module")
def faults():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(HERE / "interpreted.py")],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_kernels_compute_what_pytorch_does(case, faults):
    assert case not in faults, faults[case]


def test_on_a_cpu_they_are_not_used():
    assert not fused.usable(torch.ones(2))


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
