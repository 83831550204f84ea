"""Recipes as they are launched on two processes, from settings to the score of what they saved."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from support import launched, learner, recipe_runs, tiny

from ft.runs import folder

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


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


RATE = ["--learning-rate", "1e-2"]
FEW = ["--valid-rows", "2", "--max-new-tokens", "16", "--watch-rows", "3", "--precision", "fp32"]
FEW += ["--max-kl", "50", "--max-drift", "50", "--min-distinct", "0", *RATE]
REWARDED = {  # the settings of one process, and what each of two has
    "mtnt_reject": "--eval-limit 4 --prompts 4 --n 3 --rounds 2 --max-minutes 5",
    "mtnt_dpo": "--eval-limit 4 --prompts 12 --n 3 --margin 0 --watch-steps 2 --max-steps 2",
    "mtnt_grpo": "--eval-limit 4 --n 2 --max-steps 2 --per-device-train-batch-size 4",
    "preference": "--answer-rows 1 --watch-steps 3",
}
LEARNT = ["dolly_qlora", "gsm8k_lora", "mtnt_full", "mtnt_recurrent", "text_lora", "vision_lora"]


def settings(stem: str, place: Path, start: Path, processes: int) -> list[str]:
    """Of a run in so many processes, which together learn as much in a step as one does."""
    if stem in LEARNT:
        more = ["--per-device-train-batch-size", str(4 // processes)]
        return [
            *recipe_runs.words(stem, place, *more),
            *["--output-dir", str(place / f"{processes}")],
        ]
    words = ["--run", str(start), *FEW, *REWARDED[stem].split()]
    if stem == "preference":
        rows = (
            {"prompt": f"Say {i}.", "chosen": f"the cat {i}", "rejected": f"{i} chat"}
            for i in range(18)
        )
        (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += ["--data", str(place / "pairs.jsonl")]
    share = "--prompts" if stem == "mtnt_grpo" else "--per-device-train-batch-size"
    return [*words, share, str(4 // processes), "--output-dir", str(place / f"{processes}")]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Folders of runs in one process and in two, which are launched once for all recipes."""
    root = tmp_path_factory.mktemp("both")
    (root / "start").mkdir()
    start = learner.finished(root / "start" / "run")
    stems = [*LEARNT, *REWARDED]
    for stem in stems:
        (root / stem).mkdir()
    for processes in (1, 2):
        jobs = [(stem, settings(stem, root / stem, start, processes)) for stem in stems]
        (root / "jobs.json").write_text(json.dumps(jobs))
        if processes == 1:
            launched.main(root / "jobs.json")
            continue
        command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
        command += ["--config_file", str(ROOT / "accelerate_config.yaml")]
        command += [launched.__file__, str(root / "jobs.json")]
        paths = os.pathsep.join(map(str, (ROOT / "tests", ROOT)))
        environment = os.environ | {"PYTHONPATH": paths}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return root


@pytest.mark.parametrize("stem", [*LEARNT, *REWARDED])
def test_a_recipe_learns_in_two_processes_what_it_does_in_one(stem, both):
    one, two = (
        [json.loads(line) for line in (both / stem / n / folder.METRICS).read_text().splitlines()]
        for n in "12"
    )
    assert one
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        for key in {"loss", "grad_norm", "eval_loss", "reward", "kl"} & ours.keys():
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), (ours["step"], key)
    for file in (both / stem / "1").glob("rounds/*/answers.jsonl"):
        same = both / stem / "2" / file.relative_to(both / stem / "1")
        assert same.read_text() == file.read_text()
    files = [next((both / stem / n).glob("*model.safetensors")) for n in "12"]
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)
