"""The CUDA graphs of rows of a size, and how their gradients are added."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


def accumulate(out: "Tensor", slope: "Tensor", parameters: "Sequence[Parameter]") -> None:
    """Add to the gradients of ``parameters`` what ``slope``, the gradient of ``out``, makes of them.

    All at once, where a backward pass adds each alone. Until then they are held twice, which an adapter's
    may be.
    """
    import torch

    found = torch.autograd.grad(out, parameters, slope, allow_unused=True)
    reached = [(p, g) for p, g in zip(parameters, found, strict=True) if g is not None]
    for parameter, gradient in reached:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(gradient)
    add: Any = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
    add([p.grad for p, _ in reached], [g for _, g in reached])


class Row:
    """The two graphs of rows of a size, and what they and the head between them hand to one another."""

    def __init__(
        self,
        inputs: Mapping[str, "Tensor"],
        make: Callable[[], Any],
        widest: "Row | None" = None,
        learns: bool = True,
    ) -> None:
        self.inputs = {name: x.clone() for name, x in inputs.items()}
        self.learns = learns  # else there is no backward
        self.forward, self.backward = make(), make()
        self.widest = widest  # where hidden states and their gradient lie, if they fit there
        self.out: Any = None  # [1, T, D], with its way back until the backward took it
        self.hidden: Any = None  # the same numbers in the same place
        self.slope: Any = None  # their gradient

    def take(self, tensors: "Mapping[str, Tensor]") -> None:
        """The inputs of what is replayed next."""
        for name, x in tensors.items():
            self.inputs[name].copy_(x, non_blocking=True)


def tensors_of(given: Mapping[str, Any]) -> "dict[str, Tensor]":
    """Those of a row's inputs that a graph reads."""
    return {name: x for name, x in given.items() if hasattr(x, "shape")}
