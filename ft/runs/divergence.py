"""How far one model's next-token distributions are from another's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

# Mean KL divergence, in nats a token, between adapter and merged model that rounding can explain:
# bfloat16 keeps 8 bits of a weight, and rounds the adapter's own sum elsewhere than the merged one.
BOUNDS = {"fp32": 1e-6, "bf16": 2e-2}


@dataclass(frozen=True)
class Difference:
    """How far the merged model is from base + adapter, over all tokens of the prompts."""

    tokens: int
    kl: float  # mean KL divergence of the next-token distributions, nats
    largest: float  # largest absolute difference of a logit
    agreement: float  # share of tokens where both prefer the same next token
    bound: float  # of kl

    def __str__(self) -> str:
        return (
            f"compared on {self.tokens} tokens: mean KL {self.kl:.1e} nats "
            f"(bound {self.bound:.0e}), same first choice {self.agreement:.1%}, "
            f"largest difference of a logit {self.largest:.1e}"
        )


def logits(model: Any, ids: Sequence["Int[Tensor, '1 _']"]) -> list["Float[Tensor, '_ v']"]:
    """Next-token logits of each row of ``ids``, in float32 on the CPU."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        return [model(row.to(device), use_cache=False).logits[0].float().cpu() for row in ids]


def compare(
    expected: Sequence["Float[Tensor, '_ v']"],
    got: Sequence["Float[Tensor, '_ v']"],
    bound: float,
) -> Difference:
    """The difference of two results of ``logits``."""
    tokens = sum(len(rows) for rows in expected)
    kl, largest, agreeing = 0.0, 0.0, 0
    for a, b in zip(expected, got, strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += (p.exp() * (p - q)).sum().item()
        largest = max(largest, (a - b).abs().max().item())
        agreeing += int((a.argmax(-1) == b.argmax(-1)).sum())
    return Difference(tokens, kl / tokens, largest, agreeing / tokens, bound)
