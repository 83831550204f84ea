"""How an adapter began: one whose start was taken out of its base's weights is made one of the base as it is."""

from pathlib import Path
from typing import Any

from ft.errors import UserError

# values of PEFT's init_lora_weights that leave the base as it is
BESIDE = (True, False, None, "gaussian", "eva", "orthogonal", "mica")
# that take A and B out of the base's weights, by what these are alone, and so the same each time
WITHIN = ("pissa", "olora")


def check(start: Any, file: Path) -> None:
    """Raise ``UserError`` for a start that changed the base by what is not to be had again."""
    if start not in (*BESIDE, *WITHIN):
        raise UserError(
            f"{file}: init_lora_weights is {start!r}, a start that changes the base's weights by data, by chance or "
            "by their rounding, and of which the adapter does not keep how: where it was trained, save it with "
            "PEFT's path_initial_model_for_weight_conversion, or merge it there and give that folder"
        )


def rebase(model: Any, start: str, wrong: str) -> None:
    """Take the start of an adapter away from it, as it was taken from its base's weights, which stay as they are.

    The adapter has twice the rank then: its own A and B, and those of the start with B's sign turned. So the base
    answers as itself where the adapter is off.
    """
    name = model.active_adapter
    try:
        for layer in [m for m in model.modules() if name in getattr(m, "lora_A", ())]:
            _rebase(layer, name, start)
    except TypeError:
        raise UserError(
            f"{wrong}: it began as a part of the base's weights ({start}), which 4 or 8 bits do not hold. Take "
            "--precision bf16 or fp32."
        ) from None


def _rebase(layer: Any, name: str, start: str) -> None:
    import torch

    base, a, b = layer.get_base_layer(), layer.lora_A[name], layer.lora_B[name]
    weight, own = base.weight, (a.weight.data, b.weight.data)
    if not isinstance(weight, torch.nn.Parameter):
        raise TypeError("rounded to 8 bits")
    if weight.is_floating_point():  # PEFT writes into it
        base.weight = torch.nn.Parameter(weight.data.clone(), requires_grad=False)
    try:
        layer.pissa_init(name, start) if start == "pissa" else layer.olora_init(name)
    finally:
        base.weight = weight
    first = [part.weight.data.to(own[0]) for part in (a, b)]
    a.weight.data = torch.cat([own[0], first[0]])
    b.weight.data = torch.cat([own[1], -first[1]], 1)
    layer.r[name] = len(a.weight)
