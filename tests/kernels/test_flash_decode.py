"""Attention of one new token: its numbers in Triton's interpreter (interpreted_decode.py), and where it is not taken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ft.kernels import flash_decode

HERE = Path(__file__).parent
SCRIPT = HERE / "interpreted_decode.py"
CASES = SCRIPT.read_text().partition("CASES = (")[2].partition(")")[0].replace(",", "").split()


@pytest.fixture(scope="module")
def faults():
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(HERE.parents[1])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_attend_as_pytorch_does(case, faults):
    assert case not in faults, faults[case]


def test_it_is_not_taken_on_a_cpu_or_in_fp32_or_for_other_heads():
    half = torch.ones(1, 1, 1, 64, dtype=torch.bfloat16)
    assert not flash_decode.usable(half)
    assert not flash_decode.usable(half.float())
    assert not flash_decode.usable(half[..., :48])
