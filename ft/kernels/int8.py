"""Linear layers with int8 weights, for inference on a CPU: a scale for each output, inputs in bf16."""

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEPT = r"\.router\.|\.altup\.|vision|audio|multi_modal"  # small, or not of the language model
LARGEST = 127
ROWS = 16  # beyond them a weight is read once into fp32, piece by piece, rather than for each row
WIDTH = 16  # the kernel for few rows reads a weight's rows by so many, and beyond their end
PIECE = 2**20  # weights at a time, which stay in the processor's cache


def install(model: Any) -> None:
    """Replace a model's linear layers, its head among them, by ``int8`` ones. Its embedding stays."""
    import torch

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and not re.search(KEPT, name):
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], _class()(module))


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model, or on the one that it wraps."""
    return any(isinstance(module, _class()) for module in model.modules())


def product(x: "Tensor", whole: "Tensor", scale: "Tensor") -> "Tensor":
    """``x @ (whole * scale[:, None]).T`` for x [N, I], whole int8 [O, I] and scale bf16 [O], in x's dtype.

    Few rows are rounded to bf16 and read the weight as bytes: a batch of one takes as long as that.
    """
    import torch

    if len(x) <= ROWS and x.shape[1] % WIDTH == 0:
        return torch.ops.aten._weight_int8pack_mm(x.bfloat16(), whole, scale).to(x.dtype)
    found = x.new_empty(len(x), len(whole))
    step = max(1, PIECE // whole.shape[1])
    for start in range(0, len(whole), step):
        piece = slice(start, start + step)
        torch.mm(x, whole[piece].to(x.dtype).T, out=found[:, piece])
    return found.mul_(scale)


@functools.cache
def _class() -> Any:
    import torch

    class Int8Linear(torch.nn.Linear):
        """A linear layer whose weight is int8. PEFT's adapters go on it as on any."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = linear.in_features, linear.out_features
            weight = linear.weight.detach().float()
            self._scale = weight.abs().amax(1).div_(LARGEST).clamp_(min=1e-30).bfloat16()
            steps = (
                weight / self._scale.float()[:, None]
            ).round_()  # `weight` may be the embedding's
            self._whole = steps.clamp_(-LARGEST, LARGEST).to(torch.int8)
            self.bias = None if linear.bias is None else linear.bias.detach()

        @property
        def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            """The weight as it is used [O, I], made anew with each call."""
            return self._whole * self._scale.float()[:, None]

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            found = product(input.reshape(-1, self.in_features), self._whole, self._scale)
            found = found.view(*input.shape[:-1], self.out_features)
            return found if self.bias is None else found.add_(self.bias)

    return Int8Linear
