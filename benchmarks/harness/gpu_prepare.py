"""Before the peers of ``gpu.py`` start: a model of random weights, an adapter, and rows of real lengths."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prepare import TARGETS, read_dolly
from random_model import build, save_tokenizer, shape_of

from ft import data
from ft.errors import UserError, exit_cleanly
from ft.files import write_text
from ft.text.tokens import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def save_adapter(model: "PreTrainedModel", folder: Path, r: int, alpha: int) -> None:
    """LoRA's usual start: A is drawn, B is zero."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file

    lora = LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=alpha, target_modules=TARGETS)
    wrapped = get_peft_model(model, lora)
    torch.manual_seed(0)
    weights = {}
    for name, given in get_peft_model_state_dict(wrapped, save_embedding_layers=False).items():
        bound = given.shape[1] ** -0.5 if "lora_A" in name else 0.0
        weights[name] = torch.empty(given.shape).uniform_(-bound, bound)
    wrapped.peft_config["default"].save_pretrained(str(folder))
    save_file(weights, folder / "adapter_model.safetensors")


def rows_of(job: dict[str, Any], vocabulary: int) -> dict[str, list[Example]]:
    """The steps on Dolly and then those on MTNT, both in their own order; and rows that are all as long."""
    from ft import models
    from ft.text import prompts, tokens

    tokenizer = models.load_tokenizer(job["tokenizer"])
    translation = prompts.translation("French")
    pairs = {
        "dolly": read_dolly(Path(job["dolly"])),
        "mtnt": [translation.render(row) for row in data.mtnt("train", "en-fr", job["mtnt"])],
    }
    rows: list[Example] = []
    for name, given in pairs.items():
        # the last step fetches a batch ahead
        needed = job["batch_size"] * (job["steps"] + (name == "mtnt"))
        examples = tokens.encode(given, tokenizer, max_length=job["max_length"]).examples[:needed]
        if len(examples) < needed:
            raise UserError(
                f"--steps and --batch-size ask for {needed} rows of {name}, it has {len(examples)}"
            )
        for example in examples:
            rows.append(
                {
                    "input_ids": [i % vocabulary for i in example["input_ids"]],
                    "labels": [i if i < 0 else i % vocabulary for i in example["labels"]],
                }
            )
    joined = [i for row in rows for i in row["input_ids"]]
    number, length = job["full"]
    joined *= -(-number * length // len(joined))
    full = [joined[i * length : (i + 1) * length] for i in range(number)]
    return {"rows": rows, "full": [{"input_ids": r, "labels": [-100, *r[1:]]} for r in full]}


def main(job: dict[str, Any]) -> None:
    """Write ``model/``, ``adapter/``, ``rows.jsonl`` and ``full.jsonl`` under ``job["output"]``."""
    folder = Path(job["output"])
    shape = shape_of(job["shape"])
    for name, examples in rows_of(job, shape.vocab_size).items():
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(e) + "\n" for e in examples))
    model = build(shape, job["device"])
    model.save_pretrained(folder / "model")
    save_tokenizer(shape, folder / "model")
    save_adapter(model, folder / "adapter", job["r"], job["alpha"])


if __name__ == "__main__":
    with exit_cleanly():
        main(json.loads(Path(sys.argv[1]).read_text()))
