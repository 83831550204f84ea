"""The model that learns from rewards: a finished run's adapter, trained on beside a frozen copy of its start."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.machine import check_not_sharded, is_main, wait
from ft.models import lora
from ft.models.load import Base
from ft.models.load import load as load_base
from ft.runs.folder import Run, adopted
from ft.runs.opened import Finished, check_base

START = "start"  # name of the adapter that stays as the run began


def load(run: Finished, precision: str = "auto", *, max_length: int | None = None) -> Base:
    """The base of a finished run with its adapter to train on, and a frozen copy of that.

    ``auto`` is fp32 on a CPU, where answers and training must agree on each token's probability,
    and the recipes' choice elsewhere. Raises ``UserError`` for a run that trained all parameters, and
    where processes are to share out the model.
    """
    import torch

    check_adapter(run)
    check_not_sharded(
        "an adapter that learns beside its start is two models, which answer in turns"
    )
    if precision == "auto" and not torch.cuda.is_available():
        precision = "fp32"
    check_base(run)
    base = load_base(run.base, precision=precision, max_length=max_length)
    model = lora.load(base, run.folder, trainable=True)
    remember(model)
    return Base(**{**vars(base), "model": model})


def check_adapter(run: Finished) -> None:
    """Raise ``UserError`` for a run that trained all parameters."""
    if run.whole:
        raise UserError(
            f"{run.folder} trained all parameters; what learns from rewards here is an adapter, with "
            "its start beside it: give a run of recipes/mtnt_lora.py"
        )


@contextlib.contextmanager
def as_it_began(model: Any) -> Iterator[None]:
    """The model as it was before the first step, while this lasts."""
    model.set_adapter(START, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter("default")


def replace_adapter(model: Any, folder: Path) -> None:
    """Go on with the adapter that lies in ``folder``, of the same shape."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    state = load_file(folder / "adapter_model.safetensors")
    found: Any = set_peft_model_state_dict(model, state, adapter_name="default")
    assert not found.unexpected_keys, found.unexpected_keys


def save(model: Any, tokenizer: Any, run: Run) -> None:
    """Put the adapter that learns, and the tokenizer, into a run's folder, each file at once."""
    with adopted(run) as made:
        if is_main():
            model.save_pretrained(str(made))
            tokenizer.save_pretrained(str(made))
            (made / "README.md").unlink(missing_ok=True)  # PEFT's; the run has a card of its own
    wait()


def remember(model: Any) -> None:
    """Add a frozen copy of the adapter as it is now, which is not saved with it."""
    model.add_adapter(START, model.peft_config["default"])
    for name, parameter in model.named_parameters():
        if f".{START}." in name:
            learning = model.get_parameter(name.replace(f".{START}.", ".default."))
            parameter.data.copy_(learning.data)
            parameter.requires_grad_(False)
    model.set_adapter("default")
    model.save_pretrained = functools.partial(model.save_pretrained, selected_adapters=["default"])
