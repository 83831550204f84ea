"""Flash attention of packed rows: its numbers in Triton's interpreter, and where it is not taken."""

from pathlib import Path

import pytest
import torch
from support import interpreted

from ft.kernels import attention, flash

SCRIPT = Path(__file__).with_name("interpreted_attention.py")
CASES = interpreted.cases(SCRIPT)


@pytest.fixture(scope="module")
def faults():
    return interpreted.faults(SCRIPT)


@pytest.mark.parametrize("case", CASES)
def test_the_kernels_attend_as_tiles_of_scores_do(case, faults):
    assert case not in faults, faults[case]


def test_it_is_not_taken_where_it_cannot_be_tried():
    assert not attention.flash_works(torch.device("cpu"), torch.bfloat16, 64, True)
    assert not attention.flash_works(torch.device("cuda"), torch.bfloat16, 512, True)


def test_offsets_of_lengths_can_be_kept_for_a_gradient():
    with torch.inference_mode():
        offsets = flash.offsets_of((3, 1), torch.device("cpu"))
    assert offsets.tolist() == [0, 3, 4]
    assert not offsets.is_inference()
    assert offsets is flash.offsets_of((3, 1), torch.device("cpu"))
