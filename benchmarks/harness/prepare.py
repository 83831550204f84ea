"""Before the peers start: encode the rows and make the initial adapter that all of them load."""

import json
import sys
from pathlib import Path

from ft import data
from ft.errors import UserError, exit_cleanly
from ft.files import write_text
from ft.text.prompts import Template, translation
from ft.text.tokens import encode

DOLLY = Template(
    name="dolly",
    prompt="### Instruction:\n{instruction}\n\n### Context:\n{context}\n\n### Response:\n",
    completion="{response}",
)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main(job: dict) -> None:
    """Write ``rows.jsonl`` and ``adapter/`` under ``job["output"]``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    read = {"mtnt": read_mtnt, "dolly": read_dolly}[job["dataset"]]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    pairs = read(Path(job["data"]))
    encoded = encode(pairs, tokenizer, max_length=job["max_length"])
    rows = encoded.examples[: job["rows"]]
    if len(rows) < job["rows"]:
        raise UserError(
            f"--steps and --batch-size ask for {job['rows']} rows, the data has {len(rows)}"
        )
    folder = Path(job["output"])
    write_text(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=job["r"],
        lora_alpha=job["alpha"],
        lora_dropout=0.0,
        target_modules=TARGETS,
    )
    get_peft_model(base, lora).save_pretrained(str(folder / "adapter"), save_embedding_layers=False)


def read_mtnt(folder: Path) -> list[dict[str, str]]:
    """Prompts and completions of MTNT's English-French training split, in its order."""
    return [translation("French").render(row) for row in data.mtnt("train", "en-fr", folder)]


def read_dolly(folder: Path) -> list[dict[str, str]]:
    """Prompts and completions of databricks-dolly-15k, in its order."""
    path = folder / "databricks-dolly-15k.jsonl"
    if not path.is_file():
        raise UserError(f"--data: there is no file {path}")
    with path.open(encoding="utf-8") as lines:
        return [DOLLY.render(json.loads(line)) for line in lines]


if __name__ == "__main__":
    with exit_cleanly():
        main(json.loads(Path(sys.argv[1]).read_text()))
