"""Unsloth, where it is asked for: import it first, load through it, attach adapters through it."""

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    from peft import PeftModel


def prepare() -> list[str]:
    """Import Unsloth, which patches what is imported after it; returns notes for the user.

    Raises ``UserError`` when it is not installed.
    """
    if importlib.util.find_spec("unsloth") is None:
        raise UserError(
            "backend unsloth is not installed: "
            '`pip install -c constraints-unsloth.txt "gemma-ft[unsloth]"`, or use --backend transformers.'
        )
    late = "transformers" in sys.modules and "unsloth" not in sys.modules
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # it would report each run
    importlib.import_module("unsloth")
    return ["transformers was imported before Unsloth, so some of its patches are missing"] * late


def load(path: Path, *, compute: str, nf4: bool, attention: str | None, max_length: int) -> Any:
    """Load the model in ``path``; ``attention`` only where Unsloth has no kernels of its own."""
    import torch
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    model, _ = FastLanguageModel.from_pretrained(
        model_name=str(path),
        max_seq_length=max_length,
        dtype=getattr(torch, compute),
        load_in_4bit=nf4,
        use_exact_model_name=True,
        use_gradient_checkpointing=False,
    )
    if attention:  # on a CPU it takes sdpa even for Gemma 2, whose soft cap sdpa leaves out
        model.set_attn_implementation(attention)
    return model


def attach(model: Any, *, use_dora: bool, **options: Any) -> "PeftModel":
    """Attach a LoRA adapter with PEFT's ``options``, as Unsloth does it."""
    if use_dora:
        raise UserError("DoRA is not offered with backend unsloth: use --backend transformers.")
    import torch
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]

    return FastLanguageModel.get_peft_model(
        model,
        bias="none",
        use_gradient_checkpointing=False,
        random_state=torch.initial_seed() % 2**32,  # it seeds the generator: pass on the caller's
        **options,
    )
