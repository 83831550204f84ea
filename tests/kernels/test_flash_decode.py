"""Attention of one new token: its numbers in Triton's interpreter (interpreted_decode.py), and where it is not taken."""

from pathlib import Path

import pytest
import torch
from support import interpreted

from ft.kernels import flash_decode

SCRIPT = Path(__file__).with_name("interpreted_decode.py")
CASES = interpreted.cases(SCRIPT)


@pytest.fixture(scope="module")
def faults():
    return interpreted.faults(SCRIPT)


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_attend_as_pytorch_does(case, faults):
    assert case not in faults, faults[case]


def test_it_is_not_taken_on_a_cpu_or_in_fp32_or_for_other_heads():
    half = torch.ones(1, 1, 1, 64, dtype=torch.bfloat16)
    assert not flash_decode.usable(half)
    assert not flash_decode.usable(half.float())
    assert not flash_decode.usable(half[..., :48])
