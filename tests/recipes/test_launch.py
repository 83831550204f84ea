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

from ft import config
from ft.errors import UserError
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


RUNS = {  # the file that two processes are launched with
    "one": None,
    "two": "accelerate_config.yaml",
    "graphs": "accelerate_config.yaml",  # of what learns from rewards
    "sharded": "accelerate_fsdp.yaml",
}
FEW = ["--valid-rows", "2", "--max-new-tokens", "16", "--watch-rows", "3", "--precision", "fp32"]
FEW += ["--max-kl", "50", "--max-drift", "50", "--min-distinct", "0", "--learning-rate", "1e-2"]
REWARDED = {  # with settings that come out even
    "mtnt_reject": "--eval-limit 4 --prompts 4 --n 3 --rounds 2 --max-minutes 5",
    "mtnt_dpo": "--eval-limit 4 --prompts 12 --n 3 --margin 0 --watch-steps 2 --max-steps 2",
    "mtnt_grpo": "--eval-limit 4 --n 2 --max-steps 2 --per-device-train-batch-size 4",
    "preference": "--answer-rows 1 --watch-steps 3",
}
LEARNT = ["dolly_qlora", "gsm8k_lora", "mtnt_full", "mtnt_lora", "mtnt_recurrent", "text_lora"]
LEARNT += ["vision_lora"]
GRAPHED = ["mtnt_dpo", "mtnt_grpo", "preference"]


def settings(stem: str, place: Path, start: Path, name: str) -> list[str]:
    """Of a run of ``RUNS``, whose processes together learn as much in a step as one does."""
    processes = 2 if RUNS[name] else 1
    out = ["--output-dir", str(place / name)]
    if stem in LEARNT:
        return recipe_runs.words(
            stem, place, "--per-device-train-batch-size", str(4 // processes), *out
        )
    words = ["--run", str(start), *FEW, *REWARDED[stem].split()]
    if stem == "preference":
        rows = (
            {"prompt": f"Say {i}.", "chosen": f"the cat {i}", "rejected": f"{i} chat"}
            for i in range(18)
        )
        (place / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words += ["--data", str(place / "pairs.jsonl")]
    share = "--prompts" if stem == "mtnt_grpo" else "--per-device-train-batch-size"
    return [*words, share, str(4 // processes), *out]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of all recipes' runs in one process, in two, and in two that share out the model."""
    root = tmp_path_factory.mktemp("runs")
    (root / "start").mkdir()
    start = learner.finished(root / "start" / "run")
    for stem in (*LEARNT, *REWARDED):
        (root / stem).mkdir()
    for name, file in RUNS.items():
        stems = {"sharded": LEARNT, "graphs": GRAPHED}.get(name, [*LEARNT, *REWARDED])
        jobs = [(stem, settings(stem, root / stem, start, name)) for stem in stems]
        (root / "jobs.json").write_text(json.dumps(jobs))
        if file is None:
            launched.main(root / "jobs.json")
        else:
            done = launch(file, launched.__file__, str(root / "jobs.json"), name)
            assert done.returncode == 0, done.stdout + done.stderr
    return root


def launch(file: str, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    command += ["--config_file", str(ROOT / file), *words]
    given = filter(None, [os.environ.get("PYTHONPATH")])
    paths = os.pathsep.join([*given, str(ROOT / "tests"), str(ROOT)])
    environment = os.environ | {"PYTHONPATH": paths}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("stem", "name"),
    [(stem, "two") for stem in (*LEARNT, *REWARDED)]
    + [(stem, "graphs") for stem in GRAPHED]
    + [(stem, "sharded") for stem in LEARNT],
)
def test_a_recipe_learns_in_two_processes_what_it_does_in_one(stem, name, runs):
    one, two = (
        [json.loads(line) for line in (place / folder.METRICS).read_text().splitlines()]
        for place in (runs / stem / "one", runs / stem / name)
    )
    assert one
    assert len(one) == len(two)
    for ours, theirs in zip(one, two, strict=True):
        for key in {"loss", "grad_norm", "eval_loss", "reward", "kl"} & ours.keys():
            assert theirs[key] == pytest.approx(ours[key], rel=1e-3, abs=1e-5), (ours["step"], key)
    for file in (runs / stem / "one").glob("rounds/*/answers.jsonl"):
        same = runs / stem / name / file.relative_to(runs / stem / "one")
        assert same.read_text() == file.read_text()
    files = [next((runs / stem / n).glob("*model.safetensors")) for n in ("one", name)]
    ours, theirs = map(load_file, files)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours)


@pytest.mark.parametrize("stem", ["mtnt_dpo", "minigpt_pretrain"])
def test_what_cannot_be_shared_out_says_so_before_it_writes(stem, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    start = learner.finished(tmp_path / "run")
    words = ["--output-dir", str(tmp_path / "out")]
    words += ["--run", str(start)] if stem == "mtnt_dpo" else []
    module = recipe_runs.load(RECIPES / f"{stem}.py")
    with pytest.raises(UserError, match=r"FSDP does not go here.*accelerate_config.yaml"):
        module.main(config.parse(module.Config, words))
    assert not (tmp_path / "out").exists()
