"""Faster or leaner norms, gated MLPs and rotary embeddings put into a loaded Gemma, by what there is for its device."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ft.kernels import few_operations, fused, recomputed

if TYPE_CHECKING:
    from torch import Tensor

OFFSETS = {  # added to a norm's weight, by the name of its class
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
    "RecurrentGemmaRMSNorm": 1.0,
    "Gemma3nRMSNorm": 0.0,
    "Gemma4RMSNorm": 0.0,
    "Gemma4UnifiedRMSNorm": 0.0,
}
GATED = (
    ("GemmaMLP", "Gemma2MLP", "Gemma3MLP", "Gemma3nTextMLP", "Gemma4TextMLP")
    + ("Gemma4UnifiedTextMLP", "RecurrentGemmaMlp")
)  # fmt: skip
ROTARY = "apply_rotary_pos_emb"


def install(model: Any) -> dict[str, int]:
    """Let the decoder layers of a transformers Gemma use ``fused``, ``recomputed`` on a GPU without Triton, or on a CPU
    ``few_operations``, where that is what they compute.

    Returns how many norms, MLPs and rotary embeddings do. Only this model's modules change, and each
    still answers as transformers wrote it what the kernels cannot take: another device, other
    dtypes. Modules that something else has changed before are left alone.
    """
    found = {"norms": 0, "MLPs": 0, "rotary embeddings": 0}
    for module in model.modules():
        if "forward" in vars(module) or not type(module).__module__.startswith("transformers."):
            continue
        # unwrapped: transformers from 5.24 on takes an argument by its old name around it
        name, forward = type(module).__name__, inspect.unwrap(type(module).forward)
        if name in OFFSETS:
            module.forward = types.MethodType(norm, module)
            found["norms"] += 1
        elif name in GATED and _is_geglu(module):
            module.forward = types.MethodType(_mlp, module)
            found["MLPs"] += 1
        elif ROTARY in getattr(getattr(forward, "__code__", None), "co_names", ()):
            module.forward = types.MethodType(_with_rotary(forward), module)
            found["rotary embeddings"] += 1
    return found


def norm(self: Any, x: "Tensor") -> "Tensor":
    """The forward of a norm of ``OFFSETS``."""
    weight, offset = getattr(self, "weight", None), _offset(type(self))
    if fused.usable(x) and (weight is None or weight.device == x.device):
        return fused.rms_norm(x, weight, self.eps, offset)
    if few_operations.usable(x, weight):
        return few_operations.rms_norm(x, weight, self.eps, offset)
    if recomputed.usable(x):
        return recomputed.rms_norm(x, weight, self.eps, offset)
    return type(self).forward(self, x)


@functools.cache
def _offset(kind: type) -> float:
    """Of a norm's class, or of one that FSDP derives from it where it shares out a module."""
    return next(OFFSETS[c.__name__] for c in kind.__mro__ if c.__name__ in OFFSETS)


def _is_geglu(module: Any) -> bool:
    """Whether an MLP's activation is GELU's tanh approximation and nothing comes between it and the product."""
    config = module.config
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return name == "gelu_pytorch_tanh" and not getattr(module, "activation_sparsity", 0)


def _mlp(self: Any, x: "Tensor") -> "Tensor":
    gate, up = self.gate_proj(x), self.up_proj(x)
    if fused.usable(gate, up):
        return self.down_proj(fused.geglu(gate, up))
    if recomputed.usable(gate) and gate.dtype == up.dtype:
        return self.down_proj(recomputed.geglu(gate, up))
    return self.down_proj(self.act_fn(gate) * up)


def _turned(cos: "Tensor", sin: "Tensor", *tensors: "Tensor") -> "tuple[Tensor, ...]":
    """Tensors [B, H, T, D] turned by cos and sin [B or 1, T, D]; nothing where that is left to transformers."""
    if cos.dim() != 3 or any(x.dim() != 4 or x.shape[-1] != cos.shape[-1] for x in tensors):
        return ()
    if fused.usable(*tensors, cos, sin):
        return fused.rotary(cos, sin, *tensors)
    if all(few_operations.usable(x, cos, sin) for x in tensors):
        return tuple(few_operations.rotary(cos, sin, x) for x in tensors)
    return ()


def _with_rotary(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of an attention layer with another rotary embedding: a copy that sees its own name for it.

    The function is a global of transformers' module, where other models would see a change.
    """
    plain = forward.__globals__[ROTARY]
    both = "k" in inspect.signature(plain).parameters  # Gemma 3n and 4 rotate one tensor a call

    def one(x: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        given = x.transpose(1, 2) if unsqueeze_dim == 2 and x.dim() == 4 else x
        found = _turned(cos, sin, given) if unsqueeze_dim in (1, 2) else ()
        if not found:
            return plain(x, cos, sin, unsqueeze_dim=unsqueeze_dim)
        return found[0].transpose(1, 2) if unsqueeze_dim == 2 else found[0]

    def two(q: Any, k: Any, cos: Any, sin: Any, unsqueeze_dim: int = 1) -> Any:
        found = _turned(cos, sin, q, k) if unsqueeze_dim == 1 else ()
        return found or plain(q, k, cos, sin, unsqueeze_dim=unsqueeze_dim)

    seen = {**forward.__globals__, ROTARY: two if both else one}
    copy = types.FunctionType(
        forward.__code__, seen, forward.__name__, forward.__defaults__, forward.__closure__
    )
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy
