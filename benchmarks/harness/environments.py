"""The peers' virtual environments, made in the user's cache when missing or when a pin changed."""

import json
import subprocess
import sys
import venv
from pathlib import Path

from ft.errors import UserError
from ft.files import cache_dir, write_json

COMMON = [
    "torch==2.13.0",
    "peft==0.21.2",
    "accelerate==1.15.0",
    "numpy==2.4.6",
    "sentencepiece==0.2.3",
]
# Each environment is a list of `pip install` calls. Unsloth comes without its dependencies, most of
# which are for GPUs and would replace torch; the call before it names what its CPU path imports.
ENVIRONMENTS: dict[str, list[list[str]]] = {
    "hf": [
        [
            *COMMON,
            "transformers==5.24.0",
            "trl==1.16.0",
            "datasets==5.2.0",
            "huggingface_hub==2.4.0",
        ]
    ],
    "keras": [
        [
            "keras==3.15.1",
            "jax==0.10.2",
            "torch==2.13.0",
            "numpy==2.4.6",
            "safetensors==0.8.0",
        ]
    ],
    "llama": [["llama-cpp-python==0.3.36"]],  # compiled here: needs a C++ compiler and ten minutes
    "unsloth": [
        [
            *COMMON,
            "transformers==5.17.0",
            "trl==1.15.0",
            "datasets==4.8.5",
            "huggingface_hub==1.33.0",
        ],
        ["bitsandbytes==0.50.2", "psutil", "protobuf", "einops", "msgspec", "tyro", "wheel"],
        ["--no-deps", "unsloth==2026.10.9", "unsloth_zoo==2026.10.9"],
    ],
}


def python_of(name: str | None) -> str:
    """The interpreter of environment ``name``, made if it is missing; this interpreter for None."""
    if name is None:
        return sys.executable
    folder = cache_dir() / "bench-venvs" / name
    python, marker = folder / "bin" / "python", folder / "installed.json"
    wanted = ENVIRONMENTS[name]
    if not marker.exists() or json.loads(marker.read_text()) != wanted:
        print(f"making the environment {name} in {folder}", file=sys.stderr)
        venv.EnvBuilder(clear=True, with_pip=True).create(folder)
        for packages in wanted:
            pip(python, packages)
        write_json(marker, wanted)
    return str(python)


def pip(python: Path, packages: list[str]) -> None:
    """Install ``packages``. Raises ``UserError`` with pip's last words."""
    command = [str(python), "-m", "pip", "install", "--quiet", *packages]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        end = "\n  ".join(done.stderr.splitlines()[-5:])
        raise UserError(f"could not install {' '.join(packages)}:\n  {end}")
