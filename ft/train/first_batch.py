"""The loss before the first step: finite, or the first module whose output is not; and no worse than a guess."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    from torch import nn

SANE = 6.0  # nats a token: a published Gemma starts at 1 to 4 on any text that it can read
ACCEPT = "If that is what you want: --accept-loss."
WORDS = 10_000  # of a vocabulary; a model with fewer is a toy, which may well start at random


def check(
    model: Any, loss: float, again: Callable[[], Any], *, accept: bool = False
) -> dict[str, str]:
    """What was seen, for the record of a run.

    Raises ``UserError`` for a loss that no training should start from; ``again`` computes it once more. One that
    is only too high may be accepted.
    """
    if not math.isfinite(loss):
        if found := culprit(model, again):
            raise UserError(f"the loss is {loss} before the first step: {found}")
        # of no tokens, as where answers have no reference; one in training stops the run
        return _seen("--", "not looked at: no token of the validation split has a loss")
    if loss > bound(model) and not accept:
        raise UserError(f"{too_high(model, loss)} {ACCEPT}")
    if loss > bound(model):
        return _seen("WARN", f"{too_high(model, loss)} Accepted.")
    return _seen("ok", sane(model, loss))


def _seen(status: str, text: str) -> dict[str, str]:
    return {"status": status, "name": "start loss", "text": text}


def sane(model: Any, loss: float) -> str:
    """What is said of a loss that a training may start from."""
    return f"{loss:.3f} nats a token, finite, under {bound(model):.1f}"


def bound(model: Any) -> float:
    """The highest loss to start from, in nats a token; of a toy's small vocabulary, two guesses' worth."""
    words = model.config.get_text_config().vocab_size
    return SANE if words >= WORDS else max(SANE, 2 * math.log(words))


def too_high(model: Any, loss: float) -> str:
    """What a start over the bound says of model and data."""
    words = model.config.get_text_config().vocab_size
    return (
        f"the loss is {loss:.2f} nats a token before the first step, over {bound(model):.1f} (a guess "
        f"among {words:,} words has {math.log(words):.1f}): the weights do not fit the tokenizer or the "
        "template, or the data is in no language that the model knows. `ft show` shows what it reads."
    )


def culprit(model: Any, again: Callable[[], Any]) -> str:
    """The first module, as computed, whose output is not finite, and what can be done; nothing for none."""
    bad = next(
        (n for n, p in model.named_parameters() if not p.detach().float().isfinite().all()), ""
    )
    if bad:
        return (
            f"the weight {_plain(bad)} holds what is no number. The file is damaged, or was saved by a "
            "run that failed: fetch the model again."
        )
    with _first_of(model) as found:
        again()
    if not found:
        return ""
    return f"the output of {_plain(found[0])} is the first that is not finite. {advice(model)}"


def advice(model: Any) -> str:
    """What to try for numbers that are not finite: more exact ones, unless they are that already."""
    import torch

    if model.get_input_embeddings().weight.dtype == torch.float32:
        return "Try a lower --learning-rate; the numbers are fp32 already, so precision is not it."
    return "Try a lower --learning-rate or --precision fp32."


@contextlib.contextmanager
def _first_of(model: "nn.Module") -> Iterator[list[str]]:
    """While this lasts, modules whose output is not finite are listed as they come."""
    import torch

    found: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            first: Any = output[0] if isinstance(output, tuple) and output else output
            numbers = isinstance(first, torch.Tensor) and first.is_floating_point()
            if numbers and not found and not first.isfinite().all():
                found.append(name)

        return hook

    handles = [m.register_forward_hook(look(name)) for name, m in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _plain(name: str) -> str:
    """A module's name without what PEFT puts in front of it."""
    return name.removeprefix("base_model.model.").replace(".base_layer", "")
