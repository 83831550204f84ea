"""Scripts of cases that Triton's interpreter runs: each prints, as JSON, the cases that failed and why."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]


def cases(script: Path) -> list[str]:
    """The names in the script's ``CASES``, read without importing Triton."""
    named = script.read_text(encoding="utf-8").partition("CASES = (")[2].partition(")")[0]
    return named.replace(",", "").split()


def faults(script: Path) -> dict[str, str]:
    """The traceback of each case that failed, run in a process of its own."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def report(run: Iterable[Callable[[], None]]) -> None:
    """Print which of these cases fail, as JSON."""
    import torch

    found = {}
    for case in run:
        torch.manual_seed(0)
        try:
            case()
        except Exception:
            found[case.__name__] = traceback.format_exc()
    json.dump(found, sys.stdout)
