"""This machine and this process: device, cores, memory, matrix rate, seed, versions, who prints, and what several agree on."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ft.errors import UserError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets")


@dataclass(frozen=True)
class Machine:
    """The device of this process and what it computes fast."""

    device: str  # "cpu" or "cuda:<local rank>"
    bf16: bool  # bfloat16 matrix products run in hardware, faster than float32's
    nf4: bool  # bitsandbytes can quantise here
    name: str  # for people
    int8: bool = False  # PyTorch multiplies by bytes with vectors


def is_main() -> bool:
    """Whether this process writes: the first of those that ``accelerate launch`` started."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str = "") -> None:
    """Print on the main process."""
    if is_main():
        print(text, flush=True)


def here() -> Machine:
    """Look at this machine; with several processes on GPUs, each gets the one of its local rank."""
    import torch

    nf4 = importlib.util.find_spec("bitsandbytes") is not None
    if torch.cuda.is_available():
        index = int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count()
        torch.cuda.set_device(index)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return Machine(f"cuda:{index}", bf16, nf4, torch.cuda.get_device_name(index))
    bf16 = cpu_bf16()
    name = f"CPU {'with' if bf16 else 'without'} {bf16 or 'bf16'}"
    if bf16 and not fast_bf16():
        name += " of Intel"
    if torch.backends.mps.is_available():
        name += "; the Apple GPU is left alone, as no training was seen right on one"
    return Machine("cpu", fast_bf16(), nf4, name, cpu_int8())


def cpu_bf16() -> str:
    """What this processor multiplies bfloat16 with; nothing where it only emulates that."""
    if info := _cpuinfo():  # `ft plan` asks without torch
        able = set(info.split())
    else:
        import torch

        able = {name for name, has in torch.cpu.get_capabilities().items() if has}
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in able), "")


def fast_bf16() -> bool:
    """Whether this processor multiplies bfloat16 faster than float32.

    Intel's AVX512-BF16 does no more products a cycle than its AVX512 does of float32, and oneDNN reaches
    0.6 to 0.8 of these with it (``benchmarks/precision.py``). Such a processor without AMX is most often a virtual
    machine's, which hides that. AMD's does twice as many.
    """
    how = cpu_bf16()
    return how == "amx_bf16" or how == "avx512_bf16" and "GenuineIntel" not in _cpuinfo()


def _cpuinfo() -> str:
    """What Linux tells of the processor; nothing elsewhere."""
    info = Path("/proc/cpuinfo")
    return info.read_text(encoding="utf-8", errors="replace") if info.exists() else ""


def cpu_int8() -> bool:
    """Whether PyTorch multiplies by bytes with this processor's vectors (AVX2 or AVX512)."""
    import torch

    return torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")


def free_memory() -> tuple[int, str]:
    """Bytes free for one process on the device that it trains on, and the device's name."""
    import torch

    on = here()
    if on.device.startswith("cuda"):
        return torch.cuda.mem_get_info()[0], on.name
    return free_ram(), on.name


def free_ram() -> int:
    """Bytes of this machine's memory that are free for one of its local processes."""
    import psutil

    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return psutil.virtual_memory().available // processes


def peak_memory() -> int:
    """The most bytes so far: of the GPU's allocator, or of this process."""
    gpu = peak_gpu_memory()
    return peak_ram() if gpu is None else gpu


def peak_ram() -> int:
    """The most bytes that this process has held so far."""
    if os.name == "nt":
        import psutil

        info: Any = psutil.Process().memory_info()
        return info.peak_wset
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_gpu_memory() -> int | None:
    """The most bytes that PyTorch has allocated on its GPU so far; none without torch or a GPU."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    return torch.cuda.max_memory_allocated()


_seen: dict[Any, float] = {}


def matrix_peak(device: "torch.device", dtype: "torch.dtype", seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product on ``device`` in ``dtype``, the best of a few tries.

    On a GPU it is measured once in a process; on a CPU at each call, and the best so far counts, as other
    programs may be using it.
    """

    import torch

    key = (str(device), dtype)
    if device.type == "cuda" and key in _seen:
        return _seen[key]
    n = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # the global one belongs to the run
    small = torch.randn(n, 64, generator=generator, device=device).to(dtype)
    a, b = small.repeat(1, n // 64), small.repeat(1, n // 64).T.contiguous()
    best, end = _seen.get(key, 0.0), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
        if time.perf_counter() >= end:
            break
    _seen[key] = best
    return best


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        found[name] = importlib.metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """Processor, cores and memory; the GPU too once torch is imported."""
    import psutil

    cpu = platform.processor() or platform.machine()
    if info := _cpuinfo():
        names = [li for li in info.splitlines() if li.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    memory = psutil.virtual_memory().total
    found = {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory / 2**30, 1)}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        number, own = launched()["processes"], torch.cuda.get_device_properties()
        name = f"{own.name}, {own.total_memory / 2**30:.1f} GiB"
        found["gpu"] = f"{number} × {name}" if number > 1 else name
    return found


@contextlib.contextmanager
def collecting_later() -> Iterator[None]:
    """While this lasts Python looks for no garbage in cycles.

    Imports and a vocabulary are millions of objects that stay, and would be looked at over and over.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@collecting_later()  # torch is imported here
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


def launched() -> dict[str, Any]:
    """How many processes the launcher started, and whether they share out the parameters (FSDP)."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return {"processes": int(os.environ.get("WORLD_SIZE") or "1"), "sharded": sharded}


def check_not_sharded(why: str) -> None:
    """Raise ``UserError`` where FSDP is asked for, which cannot be, for ``why``."""
    if launched()["sharded"]:
        raise UserError(
            f"FSDP does not go here, as {why}: launch with accelerate_config.yaml, by which each process "
            "has all of it"
        )


def state() -> Any:
    """Accelerate's view of this process among the others. Raises ``UserError`` where a launcher's words are incomplete."""
    from accelerate import PartialState

    try:
        return PartialState()
    except ValueError as error:
        raise UserError(
            f"RANK, WORLD_SIZE and LOCAL_RANK in the environment start no processes: {error}. Where no launcher set "
            "them, start with `env -u RANK -u WORLD_SIZE -u LOCAL_RANK`"
        ) from None


def apart() -> bool:
    """Whether there are several, each with a model of its own: one that FSDP shares out needs them all."""
    from accelerate.utils import DistributedType

    return state().num_processes > 1 and state().distributed_type != DistributedType.FSDP


def agreed(wish: bool) -> bool:
    """Whether any process has the wish, asked in all of them at the same point of the run.

    A clock, or a signal, is not seen by all at once: one that ended alone would leave the others waiting.
    """
    import torch

    if state().num_processes == 1:
        return wish
    found = torch.tensor(int(wish), device=state().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def from_main(find: Callable[[], T]) -> T:
    """What ``find`` gives in the main process, where alone it is called, in all of them."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [find() if state().is_main_process else None]
    return broadcast_object_list(found)[0]


def wait() -> None:
    """Go on once all processes are here."""
    state().wait_for_everyone()


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
