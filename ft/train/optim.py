"""Optimizers, and which parameters decay: matrices do; RG-LRU, embeddings, norms and biases do not."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from ft.errors import UserError, nearest

if TYPE_CHECKING:
    from torch import nn

Name = Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"]
ALIGNED = 64  # numbers; pieces of a joint tensor begin where a kernel likes to read
STATE_BYTES = {"adamw": 8, "sgd": 0, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # an fp32 parameter

# What does not decay, as regular expressions over parameter paths.
EMBEDDINGS = r"(^|\.)embed_(tokens|positions)"
NORMS = r"norm"
BIASES = r"bias$"
RG_LRU = r"(^|\.)rg_lru\."
SCALES = r"scale$"  # vectors that norms and routers multiply by
MAGNITUDES = r"lora_magnitude_vector"  # DoRA's


def check(name: str) -> list[str]:
    """What is wrong with an optimizer's name, for a recipe's ``check``: nothing, or one message."""
    if name in get_args(Name):
        return []
    if "sgd" in name and "8" in name:
        return [
            f"optim {name!r}: plain SGD keeps no states, so 8 bits would save nothing; use sgd, or "
            "adamw_8bit for AdamW with small states"
        ]
    known = get_args(Name)
    return [f"optim {name!r}: must be one of {', '.join(known)}.{nearest(name, known)}"]


def choose(name: str) -> Name:
    """``auto`` as AdamW: the states of an adapter are small, and in 8 bits each step waits for them.

    Where all parameters train, ``ft plan`` says which optimizer's states fit.
    """
    return "adamw" if name == "auto" else name  # pyright: ignore[reportReturnType]


def no_decay(model: "nn.Module") -> tuple[str, ...]:
    """The rules of a Gemma's generation: the parameter paths that weight decay spares.

    The mask of Google's RecurrentGemma tutorial (colabs/fine_tuning_tutorial_jax.ipynb). A rule by
    dimension, as transformers has it, would decay RG-LRU's gate weights, which have three.
    """
    text: Any = model.config.get_text_config()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    rules = [EMBEDDINGS, NORMS]
    if text.model_type == "recurrent_gemma":
        rules += [RG_LRU, BIASES]
    if text.model_type == "minigpt" and text.bias:
        rules += [BIASES]
    if text.model_type.startswith("gemma3n") or getattr(text, "enable_moe_block", False):
        rules += [SCALES]
    if any(getattr(c, "use_dora", False) for c in getattr(model, "peft_config", {}).values()):
        rules += [MAGNITUDES]
    return tuple(rules)


def groups(
    model: "nn.Module", weight_decay: float, rules: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters in two groups, decayed and not.

    ``rules`` (default: ``no_decay``) are searched in the paths of all parameters, frozen ones too,
    so that one set serves a model with and without an adapter. Raises ``UserError`` for a rule that
    matches none, and if nothing trains.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError("the model has no trainable parameter: attach an adapter first")
    named = list(model.named_parameters())
    spared: set[str] = set()
    for rule in no_decay(model) if rules is None else rules:
        found = {name for name, _ in named if re.search(rule, name)}
        if not found:
            some = ", ".join(name for name, _ in named[:3])
            raise UserError(
                f"the rule {rule!r} of what does not decay matches no parameter; they are named "
                f"{some} …"
            )
        spared |= found
    both = [
        {
            "params": [p for name, p in named if p.requires_grad and (name in spared) == is_spared],
            "weight_decay": 0.0 if is_spared else weight_decay,
        }
        for is_spared in (False, True)
    ]
    return [group for group in both if group["params"]]


def create(
    model: "nn.Module",
    name: Name,
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    rules: Sequence[str] | None = None,
    joint: bool = False,
) -> Any:
    """An optimizer over the trainable parameters of ``model``; SGD is plain, without momentum.

    AdamW is PyTorch's fused one, with decoupled decay. The 8-bit ones are bitsandbytes' and need a
    CUDA GPU. ``betas`` are AdamW's; ``rules`` say what does not decay (``groups``). ``joint``: it sees
    each group as one parameter (``join``).
    """
    import torch

    if wrong := check(name):
        raise UserError(wrong[0])
    params = groups(model, weight_decay, rules)
    if joint:
        params = [group | {"params": [join(group["params"])]} for group in params]
    if name == "sgd":
        return torch.optim.SGD(params, lr=learning_rate)
    if name == "adamw":
        return torch.optim.AdamW(params, lr=learning_rate, betas=betas, fused=True)
    if not torch.cuda.is_available():
        raise UserError(
            f"optim={name!r} keeps its states in 8 bits on a CUDA GPU; use adamw or sgd"
        )
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    make = {"adamw_8bit": AdamW8bit, "paged_adamw_8bit": PagedAdamW8bit}
    return make[name](params, lr=learning_rate, betas=betas)


def to_come(optimizer: Any, name: Name) -> int:
    """Bytes of the states that the first step will make on this device; none where they are there."""
    if optimizer.state:
        return 0
    parts = (p for group in optimizer.param_groups for p in group["params"])
    local = [
        p.to_local() if hasattr(p, "to_local") else p for p in parts
    ]  # of what FSDP shares out
    each = STATE_BYTES[name]
    return sum(
        p.numel() * (p.element_size() * each // 4 if name == "adamw" else each) for p in local
    )


def join(parameters: "Sequence[nn.Parameter]") -> "nn.Parameter":
    """One parameter of which ``parameters``, of one dtype and device, become pieces, and so their gradients.

    An adapter is hundreds of small matrices: an update of them all is one kernel then, and so are zeros for
    their gradients, whose place stays the same. Those that no backward reaches have zeros.
    """
    import torch

    sizes = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
    whole = torch.nn.Parameter(parameters[0].new_zeros(sum(sizes)))
    whole.grad = torch.zeros_like(whole)
    pieces = zip(parameters, whole.data.split(sizes), whole.grad.split(sizes), strict=True)
    for parameter, value, gradient in pieces:
        value, parameter.grad = (
            x[: parameter.numel()].view_as(parameter) for x in (value, gradient)
        )
        parameter.data = value.copy_(parameter.data)
    return whole


def muon(
    model: "nn.Module",
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.95),
) -> list[Any]:
    """Muon for the blocks' matrices, and AdamW for embeddings, norms and biases: two optimizers.

    Muon makes an update orthogonal (kellerjordan.github.io/posts/muon); scaled to the length of
    AdamW's (arXiv:2502.16982), both go by one learning rate. Its products are in bf16.
    """
    import torch

    inner, rest = groups(model, weight_decay)
    adamw = torch.optim.AdamW([rest], lr=learning_rate, betas=betas, fused=True)
    return [
        torch.optim.Muon([inner], lr=learning_rate, adjust_lr_fn="match_rms_adamw"),
        adamw,
    ]
