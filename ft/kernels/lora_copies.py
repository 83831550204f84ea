"""Copies of an adapter's matrices in the dtype of their base, made once after each optimizer step."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

LOW = "_low_precision"  # of a parameter: its copy, and the version and address it was made from
ROOM = "_room"  # of a parameter: where its copy is to lie
ALIGNED = 64  # numbers; a copy begins where a matrix product likes a matrix to begin


def matrices(model: Any) -> "list[Tensor]":
    """The A of the layers of ``lora_linear.install``, then the B; the search goes through all modules."""
    layers = [m for m in model.modules() if "forward" in vars(m)]
    parts = [getattr(m, name, None) or {} for name in ("lora_A", "lora_B") for m in layers]
    return [layer.weight for part in parts for layer in part.values()]


def trained(model: Any) -> "list[Tensor]":
    """Those of ``matrices`` that train."""
    return [p for p in matrices(model) if p.requires_grad]


def refresh(model: Any, found: "list[Tensor] | None" = None) -> int:
    """Copy A and B into the base's dtype, once for all forward passes until they change.

    Without it each layer and call casts them, two operations of some ten. To be called after every
    optimizer step; the copies stay where they are in memory, so that a captured CUDA graph reads the
    new values. A parameter that PyTorch knows to have changed since is cast as before, but its fused
    optimizers do not tell. ``found`` are what is copied, by default the model's ``trained``. Returns the
    number of copies: none in fp32, and none where processes share the parameters.
    """
    import torch

    dtype = model.get_input_embeddings().weight.dtype
    found = trained(model) if found is None else found
    shared = any(p.dim() != 2 or hasattr(p, "full_tensor") for p in found)
    if shared or not found or dtype == found[0].dtype:
        return 0
    if any(p.device != found[0].device for p in found):
        return 0
    held: list[Any] = [getattr(p, LOW, (None,))[0] for p in found]
    if any(
        low is None or (low.shape, low.dtype, low.device) != (p.shape, dtype, p.device)
        for low, p in zip(held, found, strict=True)
    ):
        rooms: list[Any] = [getattr(p, ROOM, None) for p in found]
        rooms = [None if x is None or x.dtype != dtype else x for x in rooms]
        sizes = [
            0 if room is not None else -(-p.numel() // ALIGNED) * ALIGNED
            for p, room in zip(found, rooms, strict=True)
        ]
        parts = torch.empty(sum(sizes), dtype=dtype, device=found[0].device).split(sizes)
        held = [
            x[: p.numel()].view(p.shape) if room is None else room
            for x, p, room in zip(parts, found, rooms, strict=True)
        ]
    with torch.no_grad():
        copy_all: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
        copy_all(held, found)
    for low, parameter in zip(held, found, strict=True):
        setattr(parameter, LOW, (low, parameter._version, parameter.data_ptr()))
    return len(found)


def release(model: Any) -> None:
    """Forget the copies of ``refresh``: from now on each forward pass casts."""
    for parameter in model.parameters():
        vars(parameter).pop(LOW, None)


def cast(parameter: "Tensor", dtype: Any) -> "Tensor":
    """The parameter in ``dtype``: its copy, where that is of what it is now."""
    low, *made = getattr(parameter, LOW, (None,))
    if low is None or low.dtype != dtype or made != [parameter._version, parameter.data_ptr()]:
        return parameter.to(dtype)
    return low
