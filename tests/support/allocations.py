"""What PyTorch's CPU allocator hands out while something runs."""

import gc
import warnings
from typing import Any


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
