"""The benchmarks for a GPU run to their ends on a CPU, in sizes for a test."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import learner, tiny

from ft.errors import UserError

ROOT = Path(__file__).parents[2]


def run(script: str, out: Path, *flags: str) -> tuple[dict, str]:
    """What a script wrote into its JSON file, and what it printed."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--device", "cpu"]
    command += ["--shape", "tiny", "--out", str(out), *flags]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(out.read_text()), done.stdout


@learner.needs_trl
def test_qlora_steps_of_ft_are_those_of_trl(tmp_path: Path) -> None:
    row = {"instruction": "Hello", "context": "", "response": "Bonjour, the cat sleeps."}
    file = tmp_path / "dolly" / "databricks-dolly-15k.jsonl"
    file.parent.mkdir()
    file.write_text("".join(json.dumps(row) + "\n" for _ in range(9)))
    flags = ["--dolly", str(file.parent), "--mtnt", "sample", "--threads", "1"]
    flags += [
        "--tokenizer",
        str(tiny.folder("gemma", tmp_path / "gemma")),
        "--batch-size",
        "2",
        "--steps",
        "2",
    ]
    found, said = run("gpu.py", tmp_path / "gpu.json", *flags, "--peers", "ft,trl")
    rows = [(row["rows"], row["peer"]) for row in found["rows"]]
    assert rows == [("dolly", "ft"), ("mtnt", "ft"), ("dolly", "trl"), ("mtnt", "trl")]
    assert found["rows"][2]["differs"] < 0.02
    for row in found["rows"]:
        assert row["tokens_per_s"] > row["supervised_per_s"] > 0
        # 4 N a token and 4 V H a supervised one: attention, MLP and head of the tiny shape
        layers = 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 128)
        flops = 4 * layers * row["tokens_per_s"] + 4 * 1024 * 64 * row["supervised_per_s"]
        assert row["mfu"] == pytest.approx(flops / 1e12 / found["bf16_peak_tflops"])
    assert "| tiny | mtnt | trl |" in said


def test_head_decoding_and_the_mini_gpt(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.lines"
    corpus.write_text((ROOT / "README.md").read_text() * 3)
    flags = ["--corpus", str(corpus), "--steps", "4", "--new-tokens", "3"]
    found, said = run("gpu_parts.py", tmp_path / "parts.json", *flags, "--repeats", "1")
    assert found["head"]["ft"]["differs"] < 0.01
    assert found["head"]["PyTorch"]["differs"] < 0.01
    assert found["decoding"]["limit, nf4"] < found["decoding"]["limit, bf16"]
    assert found["minigpt"]["tokens_per_s"] > 0
    assert len(found["goals"]) == 4
    assert "| ft, nf4 |" in said


@pytest.mark.parametrize(
    ("script", "flags", "message"),
    [
        ("gpu.py", ["--peers", "ft,tlr"], "--peers: 'tlr' is none of ft,"),
        ("gpu.py", ["--steps", "1"], "--steps must be 2 or more"),
        ("gpu_parts.py", ["--parts", "tail"], "--parts: 'tail' is none of head,"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(script: str, flags: list[str], message: str):
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *flags], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert message in done.stderr


@learner.needs_trl
def test_the_check_takes_a_step_in_every_way(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name in ("dolly", "mtnt"):
        rows = [
            {"input_ids": [2, *range(6, 20 + i)], "labels": [-100] * 8 + [*range(13, 20 + i)]}
            for i in range(12)
        ]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"DEV": "cpu", "DATA": str(data), "WORK": str(tmp_path), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "benchmarks" / "gpu" / "check.py")
    command = [sys.executable, script, "step", "attention", "steps"]
    env = os.environ | options | {"ALL": "1", "PEERS": "ft", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path)
    assert "FAILED" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    for part in ("step", "attention", "steps"):
        assert f"({part}: " in done.stdout
    for way in ("nf4 plain, graphs mtnt", "bf16 recomputed, graphs", "tiled, capped", "dolly ft"):
        assert way in done.stdout


def test_a_first_loss_that_comes_with_the_second_step_is_the_first_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from harness.process import first_numbers

    late = [{"wall_s": 1.0}, {"wall_s": 1.0, "loss": 2.0, "grad_norm": 3.0}, {"loss": 1.0}]
    assert first_numbers(late) == first_numbers(late[1:]) == {"loss": 2.0, "grad_norm": 3.0}
    assert first_numbers(late[:1]) == {}


def test_a_model_of_zeros_is_one_that_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch
    from harness import random_model

    from ft import models

    random_model.save_zeros(random_model.shape_of("tiny"), tmp_path / "zeros")
    model = models.load(str(tmp_path / "zeros"), precision="fp32").model
    assert all(not p.any() for p in model.parameters())
    assert model.get_input_embeddings().weight.shape == torch.Size([1024, 64])


def test_without_pytorch_for_cuda_nothing_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import torch
    from harness import stand_in

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="is not for CUDA, and there is no GPU"):
        stand_in.environment()
