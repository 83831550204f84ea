"""Layers that read the same input as one: a larger product, where their weights lie one below the other."""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

DEVICES = ("cuda",)  # where small products leave most of the machine idle; on a CPU they do not
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class Together:
    """Layers that read the same input: computed at the first one's call, found by the others.

    What they computed is kept until each has been asked for its part with that very input.
    """

    def __init__(
        self, layers: "Sequence[Any]", compute: "Callable[[Tensor], Sequence[Tensor]]"
    ) -> None:
        """``compute`` gives each one's result, or nothing where they cannot be computed together."""
        self.layers, self.compute = tuple(layers), compute
        self.x: Any = None
        self.results: dict[Any, Tensor] = {}

    def __call__(self, layer: Any, x: "Tensor") -> "Tensor | None":
        """``layer``'s result; none where they cannot be computed together."""
        if layer is self.layers[0]:
            self.x, self.results = x, dict(zip(self.layers, self.compute(x), strict=False))
        result = self.results.pop(layer, None) if x is self.x else None
        if not self.results:
            self.x = None
        return result


@contextlib.contextmanager
def fast(model: Any) -> Iterator[None]:
    """While this lasts, plain layers of a model in 16 bits on a GPU that read the same are one product without gradients.

    Their weights are moved for it, and stay so.
    """
    changed = []
    for layers in lay_plain(model):
        together = Together(layers, functools.partial(_products, layers))
        for layer in layers:
            layer.forward = functools.partial(_forward, layer, together)
        changed += layers
    try:
        yield
    finally:
        for layer in changed:
            vars(layer).pop("forward", None)


def lay_plain(model: Any) -> "list[list[Any]]":
    """``lay`` all plain layers of a model that read the same, in 16 bits: those that can lie so."""
    import torch

    laid = []
    for module in model.modules():
        for names in SIBLINGS:
            found: list[Any] = [getattr(module, name, None) for name in names]
            layers: list[Any] = [layer for layer in found if type(layer) is torch.nn.Linear]
            plain = not any("forward" in vars(x) or x.bias is not None for x in layers)
            if len(layers) < 2 or not plain or getattr(module, "is_kv_shared_layer", False):
                continue
            if layers[0].weight.element_size() == 2 and lay(layers) is not None:
                laid.append(layers)
    return laid


def lay(layers: "Sequence[Any]", more: int = 0) -> "Tensor | None":
    """Move the frozen weights [O, I] of plain layers on a GPU to lie one below the other.

    Returns the room of ``more`` rows behind them [more, I]; nothing where they cannot be moved.
    """
    import torch

    weights = [layer.weight for layer in layers]
    plain = all(type(layer) is torch.nn.Linear for layer in layers)
    here = len({(w.device, w.dtype, w.shape[1:]) for w in weights}) == 1
    frozen = not any(w.requires_grad or hasattr(w, "full_tensor") for w in weights)
    if not (plain and here and frozen) or weights[0].device.type not in DEVICES:
        return None
    room = weights[0].new_zeros(more, weights[0].shape[1])
    if more or not adjacent(weights):
        sizes = [*map(len, weights), more]
        *moved, room = torch.cat([*(w.data for w in weights), room]).split(sizes)
        for weight, part in zip(weights, moved, strict=True):
            weight.data = part
    return room


def adjacent(matrices: "Sequence[Tensor]") -> bool:
    """Whether each matrix [R, I] lies right below the one before it."""
    first, end = matrices[0], matrices[0].data_ptr()
    for matrix in matrices:
        alike = matrix.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not alike or matrix.data_ptr() != end or not matrix.is_contiguous():
            return False
        end += matrix.numel() * matrix.element_size()
    return True


def stacked(matrices: "Sequence[Tensor]") -> "Tensor":
    """Matrices [R, I] one below the other: a view where they lie so, as ``refresh`` places its copies."""
    import torch

    if not adjacent(matrices):
        return torch.cat([*matrices])
    first = matrices[0]
    return first.as_strided((sum(map(len, matrices)), first.shape[1]), (first.shape[1], 1))


def side_by_side(
    gradients: "Sequence[Tensor | None]", heights: "Sequence[int]", like: "Tensor", room: int = 0
) -> "Tensor":
    """Gradients [..., O] as one [N, ΣO + ``room``], for each row of ``like`` [N, R]; none are zeros.

    A view where they lie so in rows of this width, as ``fused`` leaves them. What is in the room is to be written.
    A lone one without room behind it stays as it is, [N, O].
    """
    import torch

    rows = [
        like.new_zeros(len(like), n) if g is None else g.reshape(-1, n)
        for g, n in zip(gradients, heights, strict=True)
    ]
    first, width, end = rows[0], sum(heights) + room, rows[0].data_ptr()
    for each in rows:
        alike = each.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not alike or each.data_ptr() != end or each.stride() != (width, 1):
            break
        end += each.shape[1] * each.element_size()
    else:
        last = first.storage_offset() + len(first) * width  # beyond the room of the last row
        if last * first.element_size() <= first.untyped_storage().nbytes():
            return first.as_strided((len(first), width), (width, 1))
    if len(rows) == 1:
        return first
    return torch.cat([*rows, like.new_empty(len(like), room)], 1)


def _products(layers: "Sequence[Any]", x: "Tensor") -> "Sequence[Tensor]":
    import torch

    weights = [layer.weight for layer in layers]
    if torch.is_grad_enabled() or not adjacent(weights):
        return ()
    return torch.nn.functional.linear(x, stacked(weights)).split([len(w) for w in weights], -1)


def _forward(layer: Any, together: Together, x: "Tensor") -> "Tensor":
    found = together(layer, x)
    return type(layer).forward(layer, x) if found is None else found
