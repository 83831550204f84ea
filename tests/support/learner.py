"""A finished run of translations on a tiny model, for what learns from rewards to start from."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from support import finished_run, tiny

from ft.files import write_json
from ft.models import lora
from ft.rewards import learning
from ft.runs.folder import read
from ft.text import prompts
from ft.text.template import to_record

needs_trl = pytest.mark.skipif(
    tuple(int(part) for part in version("trl").split(".")[:2]) < learning.LEAST,
    reason=f"TRL {version('trl')} cannot learn from rewards on a CPU",
)
SETTINGS = "language_pair: en-fr\nmax_length: 512\ndata: sample\n"
STOP = ["\n", *"aeiost"]  # so that random weights come to an end


def finished(folder: Path) -> Path:
    """Its folder, with an adapter that changes nothing yet; the base model lies beside it."""
    finished_run.write(folder)
    base = tiny.folder("gemma3_text", folder.parent / "base", max_position_embeddings=4096)
    template = to_record(prompts.translation()) | {"stop": STOP}
    write_json(
        folder / "run.json", read(folder) | {"model": {"name": str(base)}, "template": template}
    )
    (folder / "config.yaml").write_text(f"model_name_or_path: {base}\n{SETTINGS}")
    torch.manual_seed(0)  # the adapter's first matrix is drawn
    model = lora.attach(tiny.build("gemma3_text"), r=8, alpha=16)
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(str(folder))
    tiny.tokenizer().save_pretrained(folder)
    return folder
