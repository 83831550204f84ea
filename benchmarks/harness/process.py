"""A peer as the driver sees it: a process that sleeps until it is told to take one step."""

import json
import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.files import write_json

HARNESS = Path(__file__).resolve().parent  # what scripts share lies here
GPU = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]  # several would share batches


class Worker:
    """A running script of `benchmarks` and the pipe to it."""

    def __init__(
        self,
        name: str,
        python: str,
        script: str,
        job: dict[str, Any],
        threads: int,
        device: str = "cpu",
    ) -> None:
        begin = time.perf_counter()
        self.name, self._log = name, Path(job["output"]) / "log.txt"
        self._process = start(python, script, job, threads, device)
        self.started = self._read() | {"start_s": time.perf_counter() - begin}

    def step(self) -> dict[str, Any]:
        """Take one step: ``wall_s``, ``cpu_s``, ``peak_mib`` and what else the script reports."""
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """End the process, wherever it is."""
        self._process.kill()
        self._process.communicate()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        if line := self._process.stdout.readline():
            return json.loads(line)
        status = self._process.wait()
        log = self._log.read_text(errors="replace")
        end = "\n  ".join(log.splitlines()[-15:])
        raise UserError(
            f"{self.name} ended with status {status}; its last words:\n  {end}\n{cause(log)}"
        )


def first_numbers(taken: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Loss and gradient norm of the first step, which ``ft`` reads on a GPU while the second runs."""
    told = next((step for step in taken if "loss" in step), {})
    return {name: told[name] for name in ("loss", "grad_norm") if name in told}


def cause(log: str) -> str:
    """The line of a log that says why its process ended: the last error's, not that of a progress bar."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", log) if line.strip()]
    errors = [line for line in lines if re.match(r"([\w.]+(Error|Exception|Exit)\b|error: )", line)]
    return (errors or lines or ["nothing was said"])[-1]


def start(
    python: str, script: str, job: dict[str, Any], threads: int, device: str = "cpu"
) -> subprocess.Popen[str]:
    """Start a script of `benchmarks`, such as ``peers/trl_sft.py``, with its job as JSON: offline, and with no GPU (or, for ``cuda``, one).

    OpenMP waits as it does for any user, spinning for some milliseconds: told to sleep at once, it
    slows steps of many small operations.

    ``job["output"]``, a folder that must not exist yet, gets the job, the log and what the script
    writes.
    """
    folder = Path(job["output"])
    folder.mkdir()
    write_json(folder / "job.json", job)
    env = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "" if device == "cpu" else GPU,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(HARNESS), os.environ.get("PYTHONPATH")])),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [python, str(HARNESS.parent / script), str(folder / "job.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=folder,
            env=env,
        )
