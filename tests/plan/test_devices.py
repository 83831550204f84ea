"""What a run is planned for: this machine's GPU where there is one, told by its driver before PyTorch is imported."""

import re
from pathlib import Path

import pytest
import torch
from support import tiny

from ft import __main__ as cli
from ft import machine
from ft.errors import UserError
from ft.plan import check_model, devices, shapes
from ft.plan.case import Case
from ft.plan.moments import CONTEXT, GIB

RECIPE = str(Path(__file__).parents[2] / "recipes" / "mtnt_lora.py")
NAME = "NVIDIA GeForce RTX 4090"


@pytest.fixture
def gpu(monkeypatch):
    """A card of 24 GiB, of which as much is free as is said, and this process holds 2."""

    def there(free: float, name: str = NAME) -> None:
        on = machine.Machine("cuda:0", True, True, name)
        sizes = (int(free * GIB), int(23.6 * GIB))
        monkeypatch.setattr(devices, "_has_driver", lambda: True)
        monkeypatch.setattr(machine, "here", lambda: on)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: sizes)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 2 * GIB)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))

    return there


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        (NAME, 23.6, "rtx4090"),
        (f"{NAME} Laptop GPU", 16, None),
        (f"{NAME} D", 24, None),
        ("NVIDIA GeForce RTX 4080 SUPER", 16, None),
        ("NVIDIA GeForce RTX 3090", 23.7, "rtx3090"),
        ("NVIDIA RTX A6000", 47.5, "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", 48, None),
        ("Tesla T4", 14.6, "t4"),
        ("Tesla P100-PCIE-16GB", 15.9, "p100"),
        ("Tesla V100-SXM2-16GB", 15.8, "v100"),
        ("Tesla V100-SXM2-32GB", 31.7, "v100-32gb"),
        ("NVIDIA A10G", 22.1, "a10g"),
        ("NVIDIA A10", 22.1, "a10"),
        ("NVIDIA L4", 22.0, "l4"),
        ("NVIDIA L40", 44.5, None),
        ("NVIDIA L40S", 44.4, "l40s"),
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 4.75, None),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"),
        ("NVIDIA H100 PCIe", 79.1, None),
        ("NVIDIA H200", 139.8, "h200"),
        ("AMD Instinct MI300X", 191, None),
    ],
)
def test_a_card_is_known_by_what_its_driver_calls_it(name, gib, card):
    assert devices.card_of(name, int(gib * GIB)) == card


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_none(hidden, monkeypatch):
    monkeypatch.setattr(Path, "glob", lambda *_: iter([Path("/dev/nvidia0")]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert devices._has_driver()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not devices._has_driver()


def test_a_driver_without_a_gpu_that_pytorch_finds_leaves_the_processor(monkeypatch):
    monkeypatch.setattr(devices, "_has_driver", lambda: True)
    found = devices.here()
    assert (found.kind, found.card) == ("cpu", None)
    assert str(found).endswith(
        f"CPU, as PyTorch {torch.__version__} finds no GPU, though the driver of one is here"
    )


def test_what_this_process_holds_is_there_for_its_run(gpu):
    gpu(20)
    found = devices.here()
    assert found == devices.Device("cuda", 22 * GIB + CONTEXT, True, "rtx4090", NAME)
    assert found.options["processes"] == 1


def test_a_card_or_a_size_is_asked_for_by_name():
    t4, plain = devices.named("t4", "--gpu"), devices.named("24GB", "--gpu")
    assert (t4.room, t4.bf16, t4.card) == (15 * GIB, False, "t4")
    assert (plain.room, plain.bf16, plain.card) == (24 * GIB, True, None)
    assert "processes" not in plain.options
    with pytest.raises(UserError, match="--gpu rtx409: no such card.*Did you mean 'rtx4090'"):
        devices.named("rtx409", "--gpu")


def seen(tmp_path, **changes) -> tuple[str, str]:
    tiny.config("gemma2").save_pretrained(tmp_path)
    settings = {
        "model_name_or_path": str(tmp_path),
        "precision": "bf16",
        "lora_r": 4,
        "optim": "adamw",
        "max_length": 64,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": None,
        "num_train_epochs": 1.0,
    }
    case = Case(settings | changes, dict, None, Path("nowhere"))
    case.shape = shapes.of(str(tmp_path))
    found = check_model.memory(case)
    return found.status, found.text


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        (20, r"ok peak 0\.\d of 22\.6 GiB free here, on the NVIDIA GeForce RTX 4090, [a-z ]+$"),
        (-2.5, r"WARN peak .* GiB free here, on the NVIDIA .*; will not fit. What would: .*GiB"),
    ],
)
def test_a_run_is_checked_against_the_gpu_that_it_would_take(free, expected, gpu, tmp_path):
    gpu(free)
    assert re.search(expected, " ".join(seen(tmp_path)))


def test_ft_plan_is_for_the_gpu_that_is_here(gpu, capsys):
    gpu(20)
    cli.main(["plan", RECIPE, "--model", "google/gemma-2-2b"])
    said = capsys.readouterr().out
    assert "peak of the GPU" in said
    assert f"fits into 22.6 GiB free here, on the {NAME}" in said
    assert "rtx4090: 165.20 TFLOP/s" in said
    gpu(20, "NVIDIA RTX PRO 6000")
    cli.main(["plan", RECIPE, "--model", "google/gemma-2-2b"])
    assert "--device NAME tells the time of" in capsys.readouterr().out
