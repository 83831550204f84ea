"""The recipe as it is launched on two processes, from settings to the score of what it saved."""

import json
import subprocess
import sys
from pathlib import Path

from peft import PeftModel
from support import tiny

from ft.runs import folder

RECIPES = Path(__file__).parents[2] / "recipes"


def test_two_processes_train_score_and_save_one_adapter(tmp_path):
    base = tiny.folder("gemma3_text", tmp_path / "base", max_position_embeddings=4096)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node", "2", str(RECIPES / "mtnt_lora.py"), "--model", str(base)]
    command += ["--precision", "fp32", "--max-length", "2000", "--max-steps", "3"]
    command += ["--eval-limit", "2", "--per-device-train-batch-size", "2"]
    command += ["--output-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Start, validation loss: ") == 1
    assert "in each of 2 processes" in done.stdout
    record = json.loads((tmp_path / "run" / folder.RECORD).read_text())
    assert record["training"]["steps"] == 3
    assert len(record["evaluation"]["test"]["samples"]) == 2
    for name in ("README.md", "samples.txt", "loss.png", "tokenizer.json"):
        assert (tmp_path / "run" / name).exists(), name
    model = PeftModel.from_pretrained(tiny.build("gemma3_text"), str(tmp_path / "run"))
    trained = [p for name, p in model.named_parameters() if "lora_B" in name]
    assert trained
    assert all(p.abs().sum() > 0 for p in trained)
