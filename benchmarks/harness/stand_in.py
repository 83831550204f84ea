"""What stands in for a GPU where there is none: CUDA, of which kernels compute nothing and all else is as it is.

Command   python benchmarks/harness/stand_in.py COMMAND…
          python benchmarks/harness/stand_in.py --compute COMMAND…
Needs     PyTorch for CUDA, and g++

Memory is the host's, and none is taken before it is written: PyTorch's allocator counts as it does on a GPU, however
large the model. A capture of a CUDA graph refuses what a GPU's refuses. What a kernel would have computed is
whatever lies there, so that no number of a model means anything. With ``--compute`` the CPU computes what PyTorch asks a GPU for
(`stood_in/on_cpu.py`), and Triton is hidden; without, STAND_IN_TRITON=0 hides it. With TRITON_INTERPRET=1 its interpreter is to run the kernels, which is slow:
no whole step was waited for.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from ft.errors import UserError

SOURCE = Path(__file__).with_name("stand_in.cpp")
STOOD_IN = Path(__file__).with_name("stood_in")


def environment(given: Mapping[str, str] = os.environ, *, compute: bool = False) -> dict[str, str]:
    """The surroundings of a process that is to see a GPU: as they are where there is one."""
    import torch

    if torch.cuda.is_available():
        return dict(given)
    if not torch.version.cuda:
        raise UserError(
            f"PyTorch {torch.__version__} is not for CUDA, and there is no GPU: install one that is, such as "
            "torch==2.11.0 of PyPI"
        )
    folder = Path(tempfile.mkdtemp(prefix="stand-in-"))
    build(folder / "libcuda.so.1")
    return dict(given) | {
        "STAND_IN_COPIES": str(int(compute)),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(STOOD_IN), given.get("PYTHONPATH")])),
        "LD_PRELOAD": str(folder / "libcuda.so.1"),
        "LD_LIBRARY_PATH": f"{folder}:{given.get('LD_LIBRARY_PATH', '')}",
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": given.get("TRITON_CACHE_DIR", str(folder / "triton")),
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(int(given.get("STAND_IN_GPUS", "1"))))),
    }


def here() -> bool:
    """Whether this process sees the stand-in."""
    return "stand-in-" in os.environ.get("LD_PRELOAD", "")


def trust() -> None:
    """Use graphs and kernels although nobody computed the numbers by which these are told to be right."""
    from ft.kernels import flash
    from ft.train import graphs

    graphs.EXPECTED = dict.fromkeys(graphs.EXPECTED, float("inf"))
    flash.agrees = lambda _, __, device, dtype, *___: flash.possible(device, dtype)


def build(library: Path) -> None:
    """Compile the stand-in. Raises ``UserError`` with the compiler's first words."""
    # CUDA's headers come with its runtime, and the few that it lacks with Triton
    places = [*_places("nvidia.cu13", "include"), *_places("triton", "backends/nvidia/include")]
    places += [Path("/usr/local/cuda/include")]
    command = ["g++", "-O1", "-fPIC", "-shared", "-w", "-Wl,-soname,libcuda.so.1", str(SOURCE)]
    command += [f"-I{place}" for place in places] + ["-ldl", "-o", str(library)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise UserError("the stand-in for a GPU is compiled by g++, which is not here") from None
    if done.returncode:
        raise UserError(f"the stand-in for a GPU cannot be compiled: {done.stderr[:500]}")


def _places(package: str, inside: str) -> list[Path]:
    found = find_spec(package)
    roots = list(found.submodule_search_locations or ()) if found else []
    return [Path(root, inside) for root in roots]


if __name__ == "__main__":
    compute = sys.argv[1:2] == ["--compute"]
    command = sys.argv[1 + compute :]
    if not command:
        raise SystemExit(__doc__)
    os.execvpe(command[0], command, environment(compute=compute))
