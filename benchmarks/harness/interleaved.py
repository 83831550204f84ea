"""Time and memory of functions that take turns, so that what slows the machine for a while slows all."""

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def measure(
    sides: dict[str, Callable[[], Any]], repeats: int, device: str
) -> dict[str, dict[str, float]]:
    """Median wall and CPU seconds of each side, taken in turn, and the memory that it needs at most."""
    import torch

    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    peaks = {name: peak(run, device) for name, run in sides.items()}  # warms up, too
    for _ in range(repeats):
        for name, run in sides.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: {
            "wall_s": statistics.median(wall for wall, _ in found),
            "cpu_s": statistics.median(cpu for _, cpu in found),
            "peak_mib": peaks[name],
        }
        for name, found in seconds.items()
    }


def peak(run: Callable[[], Any], device: str) -> float:
    """MiB that ``run`` needs at most above what is held before (on a CPU as Linux counts it)."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def kib(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith(f"{key}:")))

    ctypes.CDLL(None).malloc_trim(0)  # free memory that the process still holds would hide the need
    Path("/proc/self/clear_refs").write_text("5")  # begin the high-water mark anew
    before = kib("VmRSS")
    run()
    return (kib("VmHWM") - before) / 2**10
