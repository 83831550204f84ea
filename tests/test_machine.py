"""What a run finds and sets of the machine and the process that it runs in."""

import gc
import itertools
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from support import tiny
from transformers import TrainingArguments

from ft import machine
from ft.errors import UserError
from ft.models.load import load
from ft.models.precision import choose_precision
from ft.runs import launch
from ft.train.sft import of_every_trainer

GROWTH = """
import torch
from ft import machine
machine.use_all_cores()

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def product(rows):
    torch.nn.functional.linear(torch.zeros(rows, 640, dtype=torch.bfloat16), weight)

weight = torch.zeros(2048, 640, dtype=torch.bfloat16)
for rows in range(100, 130):
    product(rows)
start = resident()
for rows in range(130, 430):
    product(rows)
print((resident() - start) >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_rows_of_ever_new_lengths_do_not_fill_the_memory():
    done = subprocess.run(
        [sys.executable, "-c", GROWTH], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120  # MiB; 227 with the caches as they are


def test_this_machine_is_described() -> None:
    here = machine.here()
    assert here.name
    assert here.device.startswith("cuda") == torch.cuda.is_available()
    if here.device == "cpu":
        able = torch.cpu.get_capabilities()
        assert machine.cpu_bf16() in [n for n in ("amx_bf16", "avx512_bf16") if able.get(n)] + [""]
        assert bool(machine.cpu_bf16()) == bool(able.get("amx_bf16") or able.get("avx512_bf16"))
        assert not here.bf16 or machine.cpu_bf16()


@pytest.mark.parametrize(
    ("vendor", "flags", "fast"),
    [
        ("AuthenticAMD", "avx512f avx512_bf16", True),
        ("GenuineIntel", "avx512f avx512_bf16", False),  # as many products a cycle as of float32
        ("GenuineIntel", "avx512f avx512_bf16 amx_bf16", True),
        ("AuthenticAMD", "avx2", False),
    ],
)
def test_bf16_is_taken_where_the_processor_multiplies_it_faster(monkeypatch, vendor, flags, fast):
    monkeypatch.setattr(machine, "_cpuinfo", lambda: f"vendor_id : {vendor}\nflags : {flags}\n")
    here = machine.here()
    assert here.bf16 == fast
    choice = choose_precision("auto", here)
    assert choice.precision == ("bf16" if fast else "fp32")
    assert ("Intel" in choice.reason) == (vendor == "GenuineIntel" and not fast)


def test_an_apple_gpu_is_left_alone_and_that_is_said(monkeypatch, tmp_path):
    """Model and trainer are on one device, and every line that gives the machine as a reason says why."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert machine.here().device == "cpu"
    assert "the Apple GPU is left alone" in choose_precision("auto", machine.here()).reason
    base = load(str(tiny.folder("gemma3_text", tmp_path)), precision="fp32")
    args = TrainingArguments(tmp_path, **of_every_trainer(base.model))
    assert base.model.device == args.device == torch.device("cpu")


def test_windows_tells_its_peak_by_psutil(monkeypatch):
    import psutil

    class Process:
        def memory_info(self):
            return SimpleNamespace(peak_wset=123)

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setitem(sys.modules, "resource", None)  # an import of it fails
    monkeypatch.setattr(machine, "os", SimpleNamespace(name="nt"))
    assert machine.peak_ram() == 123


def test_a_gpu_is_described_too_and_how_many(monkeypatch):
    card = SimpleNamespace(name="NVIDIA GeForce RTX 4090", total_memory=int(23.6 * 2**30))
    assert "gpu" not in machine.hardware()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: card, raising=False)
    assert machine.hardware()["gpu"] == "NVIDIA GeForce RTX 4090, 23.6 GiB"
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert machine.hardware()["gpu"] == "4 × NVIDIA GeForce RTX 4090, 23.6 GiB"


def test_the_machine_is_described_without_sysconf(monkeypatch):
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.delattr(os, "sysconf")
    assert machine.hardware()["memory_gib"] == pytest.approx(memory / 2**30, abs=0.06)


def test_free_memory_is_shared_by_local_processes(monkeypatch):
    monkeypatch.setattr(machine, "here", lambda: machine.Machine("cpu", False, False, "a CPU"))
    alone, name = machine.free_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert name == "a CPU"
    assert machine.free_memory()[0] == pytest.approx(alone / 4, rel=0.2)


def test_the_matrix_rate_is_positive_and_leaves_the_seed_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert machine.matrix_peak(torch.device("cpu"), torch.float32, seconds=0.01) > 1e8
    assert torch.equal(torch.rand(3), expected)


def test_the_peak_is_of_this_process_and_only_grows():
    before, there = machine.peak_ram(), torch.cuda.is_available()
    assert 2**20 < before <= machine.peak_ram()
    assert (machine.peak_gpu_memory() is None) == (not there)
    assert machine.peak_memory() == machine.peak_gpu_memory() if there else machine.peak_ram()


def test_only_the_first_process_speaks(monkeypatch, capsys):
    machine.say("one")
    monkeypatch.setenv("RANK", "1")
    machine.say("two")
    assert capsys.readouterr().out == "one\n"


LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def _environment(monkeypatch, *values: str | None) -> None:
    for name, value in itertools.zip_longest(LAUNCHER, values):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "values",
    [
        ("1",),
        ("",),
        ("2", "2", "0", "localhost", "29500"),
        ("x", "2", "0", "localhost", "29500"),
        ("0", "2", "2", "localhost", "29500"),
        (None, "2"),
        (None, None, "0"),
        ("0", "1", "0"),
        ("0", "2", None, "localhost", "29500"),
    ],
)
def test_a_part_of_what_launchers_set_is_refused(values, monkeypatch):
    _environment(monkeypatch, *values)
    said = " ".join(f"{n}={v}" for n, v in zip(LAUNCHER, values, strict=False) if v is not None)
    with pytest.raises(UserError, match=f"says {said} and .*left them over.*-u LOCAL_RANK`"):
        launch.check_launch()


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("0",),
        ("0", "1", "-1"),
        (None, None, None, "localhost", "29500"),
        ("0", "1", "0", "localhost", "29500"),
        ("1", "2", "1", "localhost", "29500"),
    ],
)
def test_what_launchers_say_is_taken(values, monkeypatch):
    _environment(monkeypatch, *values)
    launch.check_launch()


def test_what_computes_in_processes_says_which_of_their_words_are_missing(monkeypatch):
    from accelerate.state import PartialState

    monkeypatch.setattr(PartialState, "_shared_state", {})
    _environment(monkeypatch, None, None, "0")
    with pytest.raises(UserError, match="LOCAL_RANK.*RANK expected"):
        machine.state()


def test_garbage_is_collected_again_as_it_was_before():
    @machine.collecting_later()
    def reads(inner: bool) -> bool:
        return gc.isenabled() or (inner and reads(False)) or gc.isenabled()

    assert gc.isenabled()
    for _ in range(2):
        assert not reads(True)
        assert gc.isenabled()
    with pytest.raises(KeyError), machine.collecting_later():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        assert not reads(False)
        assert not gc.isenabled()
    finally:
        gc.enable()
