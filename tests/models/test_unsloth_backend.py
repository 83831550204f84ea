"""The Unsloth backend: the same loss as transformers on the same ids, or one line if absent."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

from ft import models
from ft.errors import UserError
from ft.models import unsloth_backend

INSTALLED = importlib.util.find_spec("unsloth") is not None
needs_unsloth = pytest.mark.skipif(
    not INSTALLED,
    reason="needs Unsloth: pip install -c constraints-unsloth.txt 'gemma-ft[unsloth]'",
)
LOSS = """
import json, sys
from ft import models
from ft.models import lora
base = models.load(sys.argv[1], precision="fp32", backend=sys.argv[2])
import torch
torch.manual_seed(0)
model = lora.attach(base, r=4, alpha=8).train()
ids = torch.randint(6, 384, (2, 24), generator=torch.Generator().manual_seed(3))
labels = ids.masked_fill(torch.arange(24) < 10, -100)
loss = model(input_ids=ids, labels=labels)["loss"]
loss.backward()
gradients = [p.grad for n, p in model.named_parameters() if "lora_B" in n]
print(json.dumps({"loss": loss.item(), "backend": base.backend, "attention": base.attention,
                  "notes": base.notes, "layers": lora.describe(model)["layers"],
                  "trained": [n for n, p in model.named_parameters() if p.requires_grad],
                  "moved": all(bool(g.any()) for g in gradients)}))
"""


def first_step(folder: Path, backend: str) -> dict:
    """What one step says, in a process of its own: Unsloth patches what others import."""
    done = subprocess.run(
        [sys.executable, "-c", LOSS, str(folder), backend],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        cwd=folder,  # it writes its compiled modules to the working folder
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@needs_unsloth
@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
def test_the_first_loss_is_that_of_transformers(kind: str, tmp_path: Path) -> None:
    folder = tiny.folder(kind, tmp_path / kind)
    theirs, ours = first_step(folder, "unsloth"), first_step(folder, "transformers")
    assert (theirs["backend"], ours["backend"]) == ("unsloth", "transformers")
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-4)
    assert theirs["trained"] == ours["trained"]
    assert theirs["layers"] == ours["layers"] == 28
    assert theirs["moved"]
    assert ours["moved"]
    assert not any("patches are missing" in note for note in theirs["notes"])
    assert any("as Unsloth set it" in note for note in theirs["notes"])


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unsloth_backend.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed: `pip install -c constraints-unsloth\.txt"):
        models.load("anything", backend="unsloth")


@needs_unsloth
def test_late_import_is_noted() -> None:
    code = "import transformers\nfrom ft.models import unsloth_backend\nprint(unsloth_backend.prepare())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "imported before Unsloth" in done.stdout, done.stderr


def test_no_dora() -> None:
    with pytest.raises(UserError, match="DoRA is not offered with backend unsloth"):
        unsloth_backend.attach(None, use_dora=True)
