"""Recipes as modules, and their runs of two steps on tiny models."""

import functools
import importlib.util
import json
import sys
from pathlib import Path

from support import seeing, tiny

from ft import config

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.py"))


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def dolly(place: Path) -> Path:
    """Instructions in Dolly's layout, half of them with a text to read."""
    rows = [
        {
            "instruction": f"Add {i} and {i}.",
            "context": "It is easy." * (i % 2),
            "response": f"{2 * i}",
        }
        | {"category": "closed_qa" if i % 2 else "open_qa"}
        for i in range(20)
    ]
    file = place / "dolly.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def gsm8k(place: Path) -> Path:
    """Problems in GSM8K's layout, which all have the same answer."""
    for split, count in (("train", 24), ("test", 4)):
        rows = [
            {"question": f"How many is {i} + 1?", "answer": "2 + 2\n#### 4"} for i in range(count)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (place / f"{split}.jsonl").write_text(text)
    return place


def pretraining(place: Path) -> list[str]:
    """The flags of a tiny pretraining on lines of text."""
    file = place / "text.lines"
    file.write_text("".join(f"Hello, my name is Morgane {i}.\n" for i in range(300)))
    words = ["--data", str(file), "--tokenizer", str(place / "base"), "--valid-tokens", "64"]
    words += ["--hidden-size", "16", "--max-length", "32", "--eval-steps", "2", "--workers", "0"]
    return [*words, "--shuffle-buffer", "8", "--prompt", "Hello, my name is Morgane."]


def train(stem: str, place: Path, *flags: str, kind: str = "gemma3_text") -> Path:
    """The folder of a recipe's run of two steps on a tiny model and the bundled sample."""
    module = load(Path(__file__).parents[2] / "recipes" / f"{stem}.py")
    module.main(config.parse(module.Config, words(stem, place, *flags, kind=kind)))
    return place / "run"


def words(stem: str, place: Path, *flags: str, kind: str = "gemma3_text") -> list[str]:
    """The settings of that run as the command line has them; model and data are written where they are not."""
    kind = "recurrent_gemma" if stem == "mtnt_recurrent" else kind
    module = load(Path(__file__).parents[2] / "recipes" / f"{stem}.py")
    if not (place / "base").exists():
        write = seeing.folder if stem == "vision_lora" else functools.partial(tiny.folder, kind)
        write(place / "base", max_position_embeddings=4096)
    said = ["--output-dir", str(place / "run"), "--precision", "fp32", "--max-steps", "2"]
    if stem == "minigpt_pretrain":
        return [*said, *pretraining(place), *flags]
    said += ["--model", str(place / "base"), "--max-length", "2000"]
    said += ["--per-device-train-batch-size", "2"]
    if "valid_rows" in module.Config.__dataclass_fields__:
        said += ["--valid-rows", "4"]
    if "eval_limit" in module.Config.__dataclass_fields__:
        said += ["--eval-limit", "2"]
    if stem == "dolly_qlora":
        said += ["--data", str(dolly(place)), "--test-rows", "2", "--max-new-tokens", "6"]
    if stem == "text_lora":
        file = place / "notes.jsonl"
        lines = (f"Note {i}: the cat sleeps on the table. " * (i % 3 + 1) for i in range(20))
        file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        said += ["--data", str(file), "--test-rows", "3", "--max-new-tokens", "6"]
    if stem == "gsm8k_lora":
        said += ["--data", str(gsm8k(place)), "--chains", "4", "--max-new-tokens", "24"]
    if stem == "vision_lora":
        said += ["--pictures", "8", "--test-rows", "2", "--max-new-tokens", "6"]
    return [*said, *flags]
