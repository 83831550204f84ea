"""Where a run happens: package versions, hardware, threads, seed, the commit of the code."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from ft.errors import UserError

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; the GPU too once torch is imported."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [li for li in info.read_text().splitlines() if li.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}


def use_all_cores() -> str:
    """Divide the cores among the local processes, and say so.

    ``accelerate launch`` sets OMP_NUM_THREADS=1 where it finds no GPU, which would leave all cores
    but one idle. To be called before the first matrix product, which fixes the size of its caches.
    """
    import torch

    for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        # kernels made for one shape, in oneDNN and in PyTorch's layer on it: packed rows have ever
        # new lengths, and 1,024 kernels, as many as each keeps by itself, take gigabytes
        os.environ.setdefault(cache, "64")

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    threads = max(1, cores // processes)
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # a vanishing gradient otherwise costs ten times the time
    return f"{threads} threads in each of {processes} processes ({cores} cores)"


def processes() -> dict[str, Any]:
    """How many processes the launcher started, and whether they share out the parameters (FSDP)."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return {"processes": int(os.environ.get("WORLD_SIZE", "1")), "sharded": sharded}


def prepare_sharding() -> None:
    """Where FSDP is asked for, have what is saved gathered whole; its version 1 is refused.

    To be called before Accelerate's first look at the environment. Raises ``UserError``.
    """
    if not processes()["sharded"]:
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP version 1 keeps no parameter as a matrix, which the loss needs: launch with "
            "--fsdp_version 2 (FSDP_VERSION=2)"
        )
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, on every device."""
    from transformers import set_seed

    set_seed(seed)


def git_commit(file: Path) -> str | None:
    """The commit that ``file`` lies in, with ``-dirty`` behind it if anything differs; none without git."""
    command = [
        "git",
        "-C",
        str(file.resolve().parent),
        "describe",
        "--always",
        "--dirty",
        "--abbrev=40",
    ]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None
