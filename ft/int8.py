"""Linear layers with int8 weights, for inference on a CPU: a scale for each output, and inputs all but exact."""

import functools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

KEPT = r"\.router\.|\.altup\.|vision|audio|multi_modal"  # small, or not of the language model
LARGEST = 127
FINE = 254  # steps of the second part in one of the first: its range is a half step to either side
ZERO = (
    128  # what stands for 0 in a byte without a sign: oneDNN has no fast kernel for signed inputs
)


def available() -> bool:
    """Whether this processor multiplies bytes in hardware (AVX512-VNNI, AVX-VNNI or AMX)."""
    import torch

    able = torch.cpu.get_capabilities()
    names = ("avx512_vnni", "avx_vnni", "avxvnni", "amx_int8")
    return torch.backends.mkldnn.is_available() and any(able.get(name) for name in names)


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


def split(x: "Tensor") -> tuple["Tensor", "Tensor"]:
    """``x`` [N, I] as two matrices of bytes, one below the other [2 N, I], and a scale for each row [N, 1].

    The second is what rounding the first left over, ``FINE`` times as fine: together 16 bits of
    each number, so that only the weights lose anything, at the speed of int8 products.
    """
    import torch

    scale = x.abs().amax(-1, keepdim=True).div_(LARGEST).clamp_(min=1e-30)
    exact = x / scale
    coarse = exact.round()
    fine = exact.sub_(coarse).mul_(FINE).round_()
    return torch.cat([coarse, fine]).add_(ZERO).to(torch.uint8), scale


@functools.cache
def _class() -> Any:
    import torch

    class Int8Linear(torch.nn.Linear):
        """A linear layer whose weight is int8, packed for oneDNN. PEFT's adapters go on it as on any."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            torch.nn.Module.__init__(self)
            self.in_features, self.out_features = linear.in_features, linear.out_features
            weight = linear.weight.detach().float()
            scale = weight.abs().amax(1).div_(LARGEST).clamp_(min=1e-30)
            whole = (weight / scale[:, None]).round_().to(torch.int8)
            self.bias = None if linear.bias is None else torch.nn.Parameter(linear.bias.detach())
            self._packed = torch.ops.onednn.qlinear_prepack(whole, [2, self.in_features])
            self._scale, self._zero = scale, torch.zeros(len(scale), dtype=torch.int32)

        @property
        def weight(self) -> torch.Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
            """The weight as it is used [O, I], made anew from the packed one with each call."""
            ones = torch.eye(self.in_features, dtype=torch.uint8) + ZERO
            return self._multiply(ones).T

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            rows, scale = split(input.reshape(-1, self.in_features).float())
            found = self._multiply(rows)
            coarse, fine = found[: len(scale)], found[len(scale) :]
            found = torch.add(coarse, fine, alpha=1 / FINE).mul_(scale)
            found = found.view(*input.shape[:-1], self.out_features)
            return (found if self.bias is None else found + self.bias).to(input.dtype)

        def _multiply(self, rows: torch.Tensor) -> torch.Tensor:
            return torch.ops.onednn.qlinear_pointwise(
                rows, 1.0, ZERO, self._packed, self._scale, self._zero, None, 1.0, 0, torch.float32,
                "none", [], "",
            )  # fmt: skip

    return Int8Linear
