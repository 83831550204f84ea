"""Device, precision and attention: what is chosen where, and what is refused."""

import subprocess
import sys

import pytest
import torch

from ft.errors import UserError
from ft.kernels import attention
from ft.machine import Machine
from ft.models.precision import check_gpu, choose_attention, choose_precision, lacks_kernels

AMPERE = Machine("cuda:0", True, True, "NVIDIA A100")
TURING = Machine("cuda:0", False, True, "Tesla T4")
OLD_CPU = Machine("cpu", False, True, "CPU without bf16")
NEW_CPU = Machine("cpu", True, True, "CPU with avx512_bf16")
BARE = Machine("cuda:0", True, False, "NVIDIA A100")


@pytest.mark.parametrize(
    ("on", "asked", "expected"),
    [
        (AMPERE, "auto", ("nf4", "bfloat16")),
        (TURING, "auto", ("nf4", "float32")),
        (BARE, "auto", ("bf16", "bfloat16")),
        (OLD_CPU, "auto", ("fp32", "float32")),
        (NEW_CPU, "auto", ("bf16", "bfloat16")),
        (OLD_CPU, "nf4", ("nf4", "float32")),
        (NEW_CPU, "nf4", ("nf4", "bfloat16")),
        (AMPERE, "fp32", ("fp32", "float32")),
        (TURING, "bf16", ("bf16", "bfloat16")),
    ],
)
def test_precision_fits_the_machine(on: Machine, asked: str, expected: tuple[str, str]) -> None:
    choice = choose_precision(asked, on)
    assert (choice.precision, choice.compute) == expected
    assert choice.reason


def test_reasons_name_what_matters() -> None:
    assert "float16 would overflow" in choose_precision("auto", TURING).reason
    assert "float32 faster" in choose_precision("bf16", OLD_CPU).reason


@pytest.mark.parametrize(
    ("on", "asked", "message"),
    [
        (AMPERE, "fp16", "activations of Gemma 2, 3 and 4 overflow"),
        (AMPERE, "fp23", "fp23.*allowed: auto, fp32, bf16, nf4.*Did you mean 'fp32'"),
        (BARE, "nf4", "nf4.*bitsandbytes is not installed"),
    ],
)
def test_impossible_precisions_are_refused(on: Machine, asked: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_precision(asked, on)


CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@pytest.mark.parametrize(
    ("capability", "built", "lacks"),
    [
        ((6, 0), CUDA_13, True),  # a P100 of Kaggle's
        ((7, 0), CUDA_13, True),
        ((7, 5), CUDA_13, False),
        ((8, 9), CUDA_13, False),  # by code for 8.6
        ((12, 1), CUDA_13, False),
        ((13, 0), CUDA_13, False),  # compiled when it is loaded
        ((13, 0), CUDA_13[:-1], True),
        ((9, 0), ["sm_90a"], False),
        ((6, 1), ["sm_50", "sm_60", "sm_70"], False),
        ((9, 4), ["gfx942"], False),
    ],
)
def test_a_gpu_that_pytorch_has_no_kernels_for_is_told(capability, built, lacks) -> None:
    assert lacks_kernels(capability, built) == lacks


def test_such_a_gpu_is_refused_before_its_first_operation(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (6, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: CUDA_13)
    with pytest.raises(UserError, match=r"none for Tesla P100, an sm_60: install .* CUDA 12\.6"):
        check_gpu(Machine("cuda:0", False, True, "Tesla P100"))
    check_gpu(OLD_CPU)


@pytest.mark.parametrize("on", [AMPERE, OLD_CPU])
@pytest.mark.parametrize("kind", ["gemma", "gemma3_text", "gemma3n", "gemma4", "recurrent_gemma"])
def test_attention_is_sdpa(on: Machine, kind: str) -> None:
    assert choose_attention("auto", kind, 256, on, "bfloat16").startswith("sdpa: ")


def test_gemma2_keeps_its_soft_cap() -> None:
    assert choose_attention("auto", "gemma2", 256, OLD_CPU, "float32").startswith("eager: ")
    with pytest.raises(UserError, match="sdpa would leave out the soft cap"):
        choose_attention("sdpa", "gemma2", 256, OLD_CPU, "float32")


def test_recurrent_gemma_is_not_offered_flash_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(
        UserError, match="flash_attention_2 is not possible: RecurrentGemma's window"
    ):
        choose_attention("flash_attention_2", "recurrent_gemma", 256, AMPERE, "bfloat16")


def test_unknown_attention_is_refused() -> None:
    with pytest.raises(UserError, match="'spda'; allowed: .*Did you mean 'sdpa'"):
        choose_attention("spda", "gemma", 256, OLD_CPU, "float32")


@pytest.mark.parametrize(
    ("on", "compute", "head", "message"),
    [
        (OLD_CPU, "bfloat16", 256, "needs an NVIDIA GPU, and this is CPU without bf16"),
        (TURING, "float32", 256, "computes in bfloat16, and this run in float32"),
        (AMPERE, "bfloat16", 512, "heads of 256 at most, and this model has 512"),
    ],
)
def test_flash_attention_says_why_not(
    monkeypatch: pytest.MonkeyPatch, on: Machine, compute: str, head: int, message: str
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with pytest.raises(UserError, match=message):
        choose_attention("flash_attention_2", "gemma4", head, on, compute)
    assert choose_attention("flash_attention_2", "gemma", 256, AMPERE, "bfloat16").startswith(
        "flash"
    )


@pytest.mark.parametrize(
    ("kernel", "on", "kind", "head", "message"),
    [
        ("flash", OLD_CPU, "gemma", 256, "flash is not possible: it needs an NVIDIA GPU.*a cpu"),
        ("flash", TURING, "gemma", 256, "it computes in 16 bits, and this run in float32"),
        ("flash", AMPERE, "gemma4", 512, "heads of 256 at most, and this model has 512"),
        ("varlen", AMPERE, "gemma2", 256, "varlen is not possible: it has no soft cap"),
        ("varlen", AMPERE, "recurrent_gemma", 256, "RecurrentGemma's rows are not packed"),
    ],
)
def test_a_kernel_of_packed_rows_is_had_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch, kernel: str, on: Machine, kind: str, head: int, message: str
) -> None:
    compute = "bfloat16" if on.bf16 else "float32"
    answers = dict.fromkeys(("works", "flash_works"), True)
    for name in answers:
        monkeypatch.setattr(attention, name, lambda *_, name=name: answers[name])
    with pytest.raises(UserError, match=message):
        choose_attention(kernel, kind, head, on, compute)
    assert choose_attention("varlen", "gemma", 256, AMPERE, "bfloat16") == "sdpa: varlen asked for"
    assert choose_attention("flash", "gemma2", 256, AMPERE, "bfloat16") == "eager: flash asked for"
    answers["works"] = False
    with pytest.raises(UserError, match="cannot be compiled here"):
        choose_attention("varlen", "gemma", 256, AMPERE, "bfloat16")


def test_flex_attention_which_learns_on_no_cpu_is_refused_there() -> None:
    with pytest.raises(UserError, match="flex_attention is not possible: PyTorch has no backward"):
        choose_attention("flex_attention", "gemma2", 256, OLD_CPU, "float32")
    found = choose_attention("flex_attention", "gemma2", 256, AMPERE, "bfloat16")
    assert found == "flex_attention: asked for"


def test_flash_attention_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed .*pip install flash-attn"):
        choose_attention("flash_attention_2", "gemma", 256, AMPERE, "bfloat16")


def test_weights_are_four_bits_only_where_they_would_not_fit() -> None:
    from ft.models.precision import ROOMY, widen

    automatic, free = choose_precision("auto", AMPERE), 10 * 2**30
    roomy = widen(automatic, AMPERE, int(ROOMY * free) // 2, free)
    tight = widen(automatic, AMPERE, int(ROOMY * free) // 2 + 2**20, free)
    assert (roomy.precision, tight.precision) == ("bf16", "nf4")
    assert roomy.compute == tight.compute == "bfloat16"
    shared = widen(automatic, AMPERE, int(ROOMY * free), free, 2)
    assert (shared.precision, "shared by 2 GPUs" in shared.reason) == ("bf16", True)
    for choice in (roomy, tight):
        assert "6.0 GiB in bf16" in choice.reason
    assert widen(choose_precision("auto", TURING), TURING, 1, free).precision == "nf4"
    assert widen(choose_precision("auto", OLD_CPU), OLD_CPU, 1, free).precision == "fp32"


def test_bitsandbytes_comes_without_the_compiler_and_asks_for_no_kernels():
    """In a process of its own; where something is compiled at last, it computes the same."""
    code = """
import sys, types, torch
kernels = types.ModuleType("kernels")
kernels.get_kernel = lambda *_, **__: (_ for _ in ()).throw(SystemExit("a kernel was asked for"))
sys.modules["kernels"] = kernels
whole = torch.compile
from ft.models.precision import import_bitsandbytes
import_bitsandbytes()
assert torch.compile is whole
assert sys.modules["kernels"] is kernels
assert "torch._inductor.compile_fx" not in sys.modules
import bitsandbytes.functional as bnb
x = torch.linspace(-1, 1, 256).reshape(4, 64)
q, state = bnb.quantize_4bit(x, quant_type="nf4")
assert (bnb.dequantize_4bit(q, state) - x).abs().max() < 0.2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
