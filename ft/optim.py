"""Optimizers, and which parameters decay: matrices do; RG-LRU, embeddings, norms and biases do not."""

import re
from typing import TYPE_CHECKING, Any, Literal

from ft.errors import UserError

if TYPE_CHECKING:
    from torch import nn

Name = Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"]

# The mask of Google's RecurrentGemma tutorial (colabs/fine_tuning_tutorial_jax.ipynb) by parameter
# path: RG-LRU's gate weights have three dimensions, so a rule by dimension would decay them.
NO_DECAY = re.compile(r"rg_lru|embed|norm|(^|[._])bias$|lora_magnitude_vector")


def groups(model: "nn.Module", weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, decayed and not. Raises ``UserError`` if none trains."""
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if not trainable:
        raise UserError("the model has no trainable parameter: attach an adapter first")
    decayed = [p for name, p in trainable if not NO_DECAY.search(name)]
    spared = [p for name, p in trainable if NO_DECAY.search(name)]
    both = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in both if group["params"]]


def create(
    model: "nn.Module", name: Name, *, learning_rate: float, weight_decay: float = 0.0
) -> Any:
    """An optimizer over the trainable parameters of ``model``.

    AdamW is PyTorch's fused one. The 8-bit ones are bitsandbytes' and need a CUDA GPU.
    """
    import torch

    params = groups(model, weight_decay)
    if name == "sgd":
        return torch.optim.SGD(params, lr=learning_rate)
    if name == "adamw":
        return torch.optim.AdamW(params, lr=learning_rate, fused=True)
    if not torch.cuda.is_available():
        raise UserError(
            f"optim={name!r} keeps its states in 8 bits on a CUDA GPU; use adamw or sgd"
        )
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    make = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return make[name](params, lr=learning_rate)
