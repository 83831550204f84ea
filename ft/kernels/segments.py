"""A GPU's memory in segments that grow: fewer holes between what rows of many lengths leave and take.

PyTorch's ``expandable_segments``, which peers set from the start. Here they come where memory lacks, as some drivers
refuse them, and never while a CUDA graph is captured, as some releases of PyTorch failed at both.
"""

import contextlib
import os
import platform
from collections.abc import Iterator

ASKED = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # the user's own choice
PROBE = 32 << 20  # bytes, over what PyTorch takes of segments for small tensors

_grow = False


def grow() -> bool:
    """Let memory that is taken from now on be such segments: whether it is so, and was not.

    It is not where the user's environment has settings of the allocator, nor on Windows and under WSL, whose drivers
    fail at them.
    """
    if _grow or any(name in os.environ for name in ASKED) or not _able():
        return False
    import torch

    torch.cuda.empty_cache()  # what lies there would stay in pieces
    _set(True)
    try:
        torch.empty(PROBE, dtype=torch.uint8, device="cuda")
    except RuntimeError:  # of a driver that knows none; what is full says so again
        _set(False)
    return _grow


@contextlib.contextmanager
def fixed() -> Iterator[None]:
    """While this lasts, segments that are new do not grow."""
    grew = _grow
    if grew:
        _set(False)
    try:
        yield
    finally:
        if grew:
            _set(True)


def _able() -> bool:
    """Whether this system's drivers map memory piece by piece."""
    return platform.system() == "Linux" and "microsoft" not in platform.release().lower()


def _set(wish: bool) -> None:
    import torch

    global _grow
    choose = torch._C._accelerator_setAllocatorSettings
    choose(f"expandable_segments:{wish}")
    _grow = wish
