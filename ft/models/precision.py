"""Choose precision and attention for a model on a machine, each with its reason."""

import contextlib
import functools
import importlib.util
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ft.errors import UserError, nearest
from ft.machine import Machine

PRECISIONS = ("auto", "fp32", "bf16", "nf4", "int8")
ATTENTIONS = ("auto", "flash", "varlen", "eager", "sdpa", "flex_attention", "flash_attention_2")


ROOMY = 0.6  # share of a GPU's free memory that weights may take where they need not be 4-bit


@dataclass(frozen=True)
class Choice:
    """How to store the weights and compute with them."""

    precision: str  # "fp32", "bf16", "nf4" or "int8"
    compute: str  # "float32" or "bfloat16": activations, embeddings, norms
    reason: str
    half: bool = False  # products of 4-bit weights in float16, where a GPU has no bfloat16


def choose_precision(precision: str, on: Machine) -> Choice:
    """Resolve ``precision`` on a machine; fp16 is not offered.

    Raises ``UserError`` for an unknown precision, and for nf4 where bitsandbytes cannot run.
    """
    if precision in {"fp16", "float16", "half"}:
        raise UserError(
            "precision fp16 is not offered: the activations of Gemma 2, 3 and 4 overflow its range "
            f"(65,504) and the loss turns to NaN. Allowed: {', '.join(PRECISIONS)}."
        )
    if precision not in PRECISIONS:
        raise UserError(
            f"unknown precision {precision!r}; allowed: {', '.join(PRECISIONS)}."
            + nearest(precision, PRECISIONS)
        )
    compute = "bfloat16" if on.bf16 else "float32"
    if precision == "nf4" and not on.nf4:
        raise UserError(
            "precision nf4 (4-bit) is not possible here: bitsandbytes is not installed (`pip install "
            "bitsandbytes`). Use bf16 or fp32."
        )
    half = on.device.startswith("cuda") and not on.bf16
    inside = (
        "products in float16 between activations in float32" if half else f"computes in {compute}"
    )
    if precision == "nf4":
        return Choice("nf4", compute, f"asked for; {inside}", half)
    if precision == "int8" and not on.int8:
        raise UserError(
            f"precision int8 needs a CPU with AVX2 or AVX512, and this is {on.name}. Use bf16 or fp32."
        )
    if precision == "int8":
        return Choice("int8", "float32", "asked for; weights of 8 bits, between layers float32")
    if precision == "fp32":
        return Choice("fp32", "float32", "asked for")
    if precision == "bf16":
        slow = "" if on.bf16 else f"; slow: {on.name} multiplies float32 faster"
        return Choice("bf16", "bfloat16", "asked for" + slow)
    if on.device.startswith("cuda") and on.nf4:
        why = "has bfloat16" if on.bf16 else "lacks bfloat16, and float16 would overflow alone"
        return Choice("nf4", compute, f"{on.name} {why}: 4-bit weights, {inside}", half)
    speed = "fast" if on.bf16 else "slower than float32"
    return Choice("bf16" if on.bf16 else "fp32", compute, f"{on.name}: bfloat16 is {speed} here")


def check_gpu(on: Machine) -> None:
    """Raise ``UserError`` for a GPU that PyTorch sees and was not built for: its first operation would fail."""
    import torch

    if not on.device.startswith("cuda"):
        return
    capability, built = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    if lacks_kernels(capability, built):
        early = capability < (7, 5)
        wanted = "of CUDA 12.6, as of https://download.pytorch.org/whl/cu126" if early else "newer"
        raise UserError(
            f"PyTorch {torch.__version__} has kernels for {', '.join(built)}, and none for {on.name}, an "
            f"sm_{capability[0]}{capability[1]}: install one that is {wanted}, or hide the GPU (CUDA_VISIBLE_DEVICES=-1)"
        )


def lacks_kernels(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Whether nothing that PyTorch was ``built`` for runs on a GPU of a compute capability.

    Code for one runs on the later ones of its generation, and what a driver compiles on all that are later.
    """
    named = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[af]?", name) for name in built]
    there = [(x[1], (int(x[2]), int(x[3]))) for x in named if x]  # AMD's go by other names
    return bool(there) and not any(
        at <= capability and (kind == "compute" or at[0] == capability[0]) for kind, at in there
    )


def roomy(numbers: int, free: int, share: int = 1) -> bool:
    """Whether a model of so many numbers may stay in 16 bits on a GPU with ``free`` bytes; ``share`` GPUs hold it."""
    return 2 * numbers / share <= ROOMY * free


def widen(choice: Choice, on: Machine, numbers: int, free: int, share: int = 1) -> Choice:
    """bf16 in place of a chosen nf4 on a GPU, where a model of so many ``numbers`` is ``roomy`` in it.

    4 bits have to be made 16 again in each product, and are less exact: they are for what does not fit.
    """
    gib, weights = 2**30, 2 * numbers // share
    each = f", shared by {share} GPUs," if share > 1 else ""
    seen = (
        f"weights of {2 * numbers / gib:.1f} GiB in bf16{each} take {weights / max(free, 1):.0%} "
    )
    seen += f"of the {free / gib:.1f} GiB free"
    if choice.precision != "nf4" or not on.bf16 or not on.device.startswith("cuda"):
        return choice
    if roomy(numbers, free, share):
        return Choice("bf16", "bfloat16", f"{seen} on {on.name}")
    return Choice("nf4", choice.compute, f"{choice.reason}; {seen}")


def choose_attention(
    attention: str, model_type: str, head_dim: int, on: Machine, compute: str
) -> str:
    """Resolve ``attention``: ``"name: reason"`` of an implementation exact for this model.

    Exact also for packed rows, that is with no mask and ``position_ids`` that restart. A kernel of packed
    rows that is asked for stands over sdpa, or, for the soft cap of Gemma 2, over eager.
    ``head_dim`` is the widest of any layer. Raises ``UserError`` for what is unknown, wrong or absent here.
    """
    if attention not in ATTENTIONS:
        raise UserError(
            f"unknown attention {attention!r}; allowed: {', '.join(ATTENTIONS)}."
            + nearest(attention, ATTENTIONS)
        )
    capped = model_type == "gemma2"
    if attention == "auto" and capped:
        return "eager: sdpa has no soft cap on attention scores, which Gemma 2 needs"
    if attention in ("flash", "varlen"):
        import torch

        from ft.kernels.attention import lack

        unpacked = model_type == "recurrent_gemma"
        why = "RecurrentGemma's rows are not packed" if unpacked else ""
        if why := why or lack(attention, torch.device(on.device), compute, head_dim, capped):
            raise UserError(f"attention {attention} is not possible: {why}. Use auto.")
        return f"{'eager' if capped else 'sdpa'}: {attention} asked for"
    if attention == "auto":
        return "sdpa: PyTorch's own fused attention, exact for this model, packed or not"
    if attention == "sdpa" and capped:
        raise UserError(
            "attention sdpa would leave out the soft cap on attention scores that Gemma 2 was "
            "trained with; use eager, or flex_attention or flash_attention_2 on a GPU."
        )
    if attention == "flex_attention" and on.device == "cpu":
        raise UserError(
            "attention flex_attention is not possible: PyTorch has no backward of it on a CPU. Use auto."
        )
    if attention == "flash_attention_2":
        problem = None
        if model_type == "recurrent_gemma":
            problem = "RecurrentGemma's window has not been compared with Google's reference in it"
        elif not on.device.startswith("cuda"):
            problem = f"it needs an NVIDIA GPU, and this is {on.name}"
        elif importlib.util.find_spec("flash_attn") is None:
            problem = "it is not installed (`pip install flash-attn`)"
        elif compute != "bfloat16":
            problem = f"it computes in bfloat16, and this run in {compute}"
        elif head_dim > 256:
            problem = f"it allows heads of 256 at most, and this model has {head_dim}"
        if problem:
            raise UserError(f"attention flash_attention_2 is not possible: {problem}. Use auto.")
    return f"{attention}: asked for"


def import_bitsandbytes() -> None:
    """Import bitsandbytes, as PEFT does wherever it is installed, without what costs or asks for something.

    It compiles two functions, for which PyTorch brings its whole compiler (1.3 s): here at their first
    call. On a CPU it would fetch a kernel's code from the Hub where the package `kernels` is installed,
    and advise to install it where not.
    """
    if "bitsandbytes" in sys.modules or not importlib.util.find_spec("bitsandbytes"):
        return
    import torch

    compile_now = torch.compile

    def compile_later(function: Any = None, **options: Any) -> Any:
        if function is None:
            return functools.partial(compile_later, **options)
        compiled = functools.cache(lambda: compile_now(function, **options))
        return functools.wraps(function)(lambda *args, **named: compiled()(*args, **named))

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    torch.compile = compile_later
    try:
        with hidden("kernels"):
            import bitsandbytes  # noqa: F401  # pyright: ignore[reportUnusedImport]
    finally:
        torch.compile = compile_now


@contextlib.contextmanager
def hidden(package: str) -> Iterator[None]:
    """As if a package were not installed, while this lasts."""
    before = sys.modules.get(package)
    sys.modules[package] = None  # type: ignore
    try:
        yield
    finally:
        del sys.modules[package]
        if before is not None:
            sys.modules[package] = before
