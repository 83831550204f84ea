"""The folder of a finished run, as a push and a card find it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

from ft.runs import hub
from ft.text import prompts
from ft.text.template import Template, to_record

# PEFT 0.21.2 with transformers 5.23
peft_asks_by_an_older_name = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"
)

NASTY = "a|b \\| `c` *d* _e_ [f](http://x.y) <script>&amp; # $g$ ~h~ www.i.com\nj @k :l: \\"

TEMPLATE = prompts.translation("French")
RUN: dict[str, Any] = {
    "ft_version": "0.1.0",
    "recipe": "mtnt_lora",
    "command": "python recipes/mtnt_lora.py --learning-rate 5e-4",
    "started": "2030-01-02T03:04:05+00:00",
    "git_commit": "0123abc",
    "versions": {"torch": "2.13.0", "peft": "0.21.2"},
    "hardware": {"cpu": "Example CPU", "cores": 2, "memory_gib": 7.8, "gpu": None},
    "seed": 17,
    "model": {"name": "embedded", "base_model": "google/gemma-3-270m", "precision": "fp32"},
    "data": {
        "train": {"origin": "MTNT train.en-fr.tsv", "rows": 1401, "sha256": "aa11", "skipped": 3},
        "test": {"origin": "MTNT test.en-fr.tsv", "rows": 1020, "sha256": "bb22", "skipped": 0},
        "normalize_punctuation": True,
        "dropped": 7,
    },
    "template": json.loads(json.dumps(to_record(TEMPLATE))),
    "lora": {"r": 16, "alpha": 32, "targets": ["q_proj", "v_proj"], "trainable": 3796992},
    "timings": {"train_seconds": 812.34},
    "peak_memory_bytes": 2147483648,
    "evaluation": {
        "test": {
            "n": 1020,
            "base": {"loss": 3.5, "bleu": {"score": 1.5, "low": 1.2, "high": 1.8}},
            "tuned": {
                "loss": 1.75,
                "bleu": {"score": 21.456, "low": 20.1, "high": 22.7},
                "chrf": {"score": 42.345, "low": 41.0, "high": 43.6},
            },
            "p_value": {"bleu": 0.001, "chrf": 0.002},
            "signatures": {"bleu": "nrefs:1|case:mixed|v:2.6", "chrf": "nrefs:1|nc:6|v:2.6"},
            "samples": [
                {"source": f"hi {i}", "reference": NASTY, "base": "no", "tuned": f"salut {i}"}
                for i in range(12)
            ],
        }
    },
}
CONFIG = "language_pair: en-fr\nlearning_rate: 0.0005\n"
KEPT_HERE = ["training_args.bin", "optimizer.pt", "adapter_model.bin", ".env", "metrics.jsonl"]


def write(folder: Path, run: dict[str, Any] = RUN) -> Path:
    """A run's folder, with files that must not leave it."""
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "samples.txt").write_text("hi → salut\n")
    (folder / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 40)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (folder / "tokenizer.json").write_text("{}")
    for name in KEPT_HERE:
        (folder / name).write_text('{"step": 0, "eval_loss": 3.25}\n')
    (folder / "checkpoint-5").mkdir()
    for name in ("optimizer.pt", "adapter_model.safetensors", "run.json"):
        (folder / "checkpoint-5" / name).write_bytes(b"state")
    (folder / "README.md").write_text(hub.card(folder))
    return folder


def write_real(folder: Path, asked: Template = TEMPLATE) -> Path:
    """A run whose adapter changes a tiny model's answers; the base model is beside it."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = tiny.folder("gemma3_text", folder.parent / "base")
    write(folder, RUN | {"model": {"name": str(base)}, "template": to_record(asked)})
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(2)
        model = get_peft_model(tiny.build("gemma3_text"), lora)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight += 0.5
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    tiny.tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(hub.card(folder))
    return folder


def load(folder: Path, base: Path) -> Any:
    """The base model with the adapter of a folder."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder))
