"""What PyTorch's CPU allocator hands out while something runs, and what autograd keeps of it."""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import torch


def allocated(act: Any) -> int:
    """The most bytes that PyTorch's CPU allocator hands out at once while something runs, beyond those before."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # what an earlier test left would be freed in here, and subtracted
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # older PyTorch tells of cycles that there are none of
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
            act()
    events = seen.profiler.kineto_results.events()
    changes = sorted(
        (e.start_ns(), i, e.nbytes()) for i, e in enumerate(events) if e.name() == "[memory]"
    )
    now = most = 0
    for _, _, size in changes:
        now += size
        most = max(most, now)
    return most


def kept(model: torch.nn.Module, act: Callable[[], Any]) -> int:
    """Bytes of the storages that a forward keeps for its backward, parameters and buffers left out."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    seen: dict[int, tuple[int, torch.Tensor]] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes(), tensor  # alive: its address stays taken
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        act()
    return sum(size for size, _ in seen.values())
