"""What every test shares: no network, a cache of its own unless it is marked ``real``, its worker's cores."""

import functools
import gc
import os
import re
import sys
from collections.abc import Callable, Generator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# the suite is a processor's, wherever it runs; benchmarks/gpu/check.sh is a GPU's
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
    # threads of two workers on one core would wait for each other
    cores, of = sorted(os.sched_getaffinity(0)), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.sched_setaffinity(0, cores[int(worker.removeprefix("gw")) :: of] or cores)

import pytest
from hypothesis import settings
from support import tiny

from ft import machine

settings.register_profile("any machine", deadline=None)  # a busy one is slow, not wrong
settings.load_profile("any machine")

# of a training's validations each measures the processor, for 0.2 s: one product is enough here
machine.matrix_peak = functools.partial(machine.matrix_peak, seconds=0.0)

SHARED = Path(__file__).parents[2] / "shared"

# without torch the light part of the suite runs (.ci/light): a test that lacks a package is skipped then
LIGHT = find_spec("torch") is None
LACKING = re.compile(r"No module named '(?!ft\b|support\b|tests\b)[\w.]+'")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if LIGHT and report.failed and (why := LACKING.search(str(report.longrepr))):
        report.outcome = "skipped"
        report.longrepr = (str(collector.path), 0, f"Skipped: {why.group()}")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if (
        LIGHT
        and report.failed
        and call.excinfo
        and (why := LACKING.search(str(call.excinfo.value)))
    ):
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {why.group()}")
    return report


# files that take longest, in this order first: what is left at the end is short, and no worker waits for another
LONGEST = ("train/test_sft.py", "recipes/test_tutorials.py", "runs/test_kills.py")
LONGEST += ("benchmarks/test_gpu.py", "data/test_instructions.py", "kernels/test_fused.py")
LONGEST += ("recipes/test_minigpt_pretrain.py", "recipes/test_reward_recipes.py")
LONGEST += ("recipes/test_recipes.py", "recipes/test_launch.py", "recipes/test_vision_lora.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first."""
    places = {Path(__file__).parent / name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


def pytest_collection_finish() -> None:
    """What the libraries brought stays: trainers collect garbage, and would look through it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def own_cache(request, tmp_path, monkeypatch):
    """Keep the user's cache out of tests that do not ask for the real model."""
    if not request.node.get_closest_marker("real"):
        monkeypatch.setenv("FT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def shared() -> Path:
    """The folder of real data beside the repository."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def subnormal_numbers():
    """Have them again after each test: training flushes them to zero, of which Hypothesis complains."""
    yield
    if torch := sys.modules.get("torch"):
        torch.set_flush_denormal(False)


@pytest.fixture(autouse=True)
def accelerate_state():
    """Forget it after each test: Accelerate keeps a process to the precision of its first run."""
    yield
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function from a kind to its tiny model's folder, written once."""
    root, made = tmp_path_factory.mktemp("tiny"), {}

    def of(kind: str) -> str:
        if kind not in made:
            made[kind] = str(tiny.folder(kind, root / kind))
        return made[kind]

    return of


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list:
    """Sizes of what came back from the processor's memory while layers were computed again."""
    from ft.train import offloading

    found: list = []
    fetch = offloading._Kept.fetch

    def watched(self: Any) -> Any:
        found.append(self.like[0])
        return fetch(self)

    monkeypatch.setattr(offloading._Kept, "fetch", watched)
    return found
