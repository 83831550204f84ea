"""Cross-entropy from hidden states: supervised positions only, gradient formed in forward, soft caps honoured."""

import functools
import types
from typing import TYPE_CHECKING, Any

from ft import attention
from ft.tokens import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

TILE = 2**25  # logits held at once (128 MiB in fp32), whatever the number of positions


def cross_entropy(
    hidden: "Float[Tensor, 'n d']",
    weight: "Float[Tensor, 'v d']",
    targets: "Int[Tensor, ' n']",
    softcap: float | None = None,
) -> "Float[Tensor, '']":
    """Summed cross-entropy of ``softcap * tanh(hidden @ weight.T / softcap)`` against ``targets``.

    ``hidden`` and ``weight`` have one dtype, ``targets`` are token ids; the sum is in fp32.

    The logits [N, V] never exist at once: they are formed in tiles of rows, and because the loss is
    a sum, the gradient of a tile is known as soon as its logits are. So it is taken in the forward
    pass, and the backward pass only scales it: 4·V·D FLOPs a row where the weight is frozen, with
    nothing recomputed (the idea of Liger's and Unsloth's fused linear cross-entropy).
    """
    return _function().apply(hidden, weight, targets, softcap).sum()


def token_losses(
    hidden: "Float[Tensor, 'n d']",
    weight: "Float[Tensor, 'v d']",
    targets: "Int[Tensor, ' n']",
    softcap: float | None = None,
) -> "Float[Tensor, ' n']":
    """``cross_entropy`` of each target alone, with its own gradient; ``weight`` gets none."""
    return _function().apply(hidden, weight.detach(), targets, softcap)


def supervised_loss(
    hidden: "Float[Tensor, 'b t d']",
    weight: "Float[Tensor, 'v d']",
    labels: "Int[Tensor, 'b t']",
    softcap: float | None = None,
) -> "Float[Tensor, '']":
    """Summed next-token loss: labels stand at their own tokens and are ``IGNORE`` elsewhere."""
    rows, targets = supervised(hidden, weight, labels)
    return cross_entropy(rows, weight, targets, softcap)


def supervised_score(
    hidden: "Float[Tensor, 'b t d']",
    weight: "Float[Tensor, 'v d']",
    labels: "Int[Tensor, 'b t']",
    softcap: float | None = None,
) -> "tuple[Float[Tensor, ''], Float[Tensor, '']]":
    """``supervised_loss`` without gradients, and the number of tokens whose logit is the highest.

    Where n tokens share the highest logit, as they do in bf16, each counts as a n-th.
    """
    import torch

    rows, targets = supervised(hidden, weight, labels)
    total, correct = torch.zeros(2, dtype=torch.float32, device=hidden.device)
    for at in range(0, len(targets), max(1, TILE // len(weight))):
        part = slice(at, at + max(1, TILE // len(weight)))
        logits = (rows[part] @ weight.T).float()
        top = logits.amax(-1)
        best = logits.gather(1, targets[part, None])[:, 0] == top
        if best.any():  # the cap is monotonic: it moves no maximum
            correct += (1 / (logits[best] == top[best, None]).sum(-1)).sum()
        total += _each(logits, targets[part], softcap)[0].sum()
    return total, correct


def softcap_of(config: Any) -> float | None:
    """The soft cap of a model's final logits, as each Gemma generation names it."""
    text = config.get_text_config()
    return getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)


def install(model: Any) -> None:
    """Let a causal language model answer ``forward(..., labels=…)`` with ``supervised_loss``.

    Without gradients it also answers ``correct``, as ``supervised_score`` counts.
    The method is set on the innermost model so that wrappers (PEFT, DDP, FSDP) still see one call of
    their ``forward``. Without labels the model answers as before.
    """
    import torch

    plain = model.forward
    softcap = softcap_of(model.config)
    trunk = model.model  # every Gemma's causal model is `model` and a head without bias

    def forward(self: Any, *args: Any, labels: "Tensor | None" = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain(*args, **kwargs)
        if attention.installed(self) and kwargs.get("position_ids") is not None:
            kwargs["example_lengths"] = attention.examples_of(kwargs["position_ids"])
        hidden = trunk(*args, use_cache=False, **kwargs).last_hidden_state
        weight = self.get_output_embeddings().weight
        if not torch.is_grad_enabled():
            total, correct = supervised_score(hidden, weight, labels, softcap)
            return {"loss": total, "correct": correct}
        return {"loss": supervised_loss(hidden, weight, labels, softcap)}

    model.forward = types.MethodType(forward, model)


@functools.cache
def _function() -> Any:
    import torch

    class TiledCrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, targets, softcap):  # noqa: ANN001, ANN205
            needs_hidden, needs_weight = ctx.needs_input_grad[:2]
            d_hidden = torch.empty_like(hidden) if needs_hidden else None
            d_weight = torch.zeros_like(weight) if needs_weight else None
            losses = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
            for rows in range(0, len(targets), max(1, TILE // len(weight))):
                part = slice(rows, rows + max(1, TILE // len(weight)))
                losses[part], grad = _tile(
                    hidden[part], weight, targets[part], softcap, d_hidden, d_weight
                )
                if grad is None:
                    continue
                if d_hidden is not None:
                    torch.mm(grad, weight, out=d_hidden[part])
                if d_weight is not None:
                    d_weight.addmm_(grad.T, hidden[part])
                del grad  # or it would lie there beside the logits of the next tile
            ctx.save_for_backward(d_hidden, d_weight)
            return losses

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            (scales,) = grads  # [N]; all the same where the weight has a gradient
            d_hidden, d_weight = ctx.saved_tensors
            return (
                None if d_hidden is None else d_hidden * scales[:, None].to(d_hidden.dtype),
                None if d_weight is None else d_weight * scales[:1].sum().to(d_weight.dtype),
                None,
                None,
            )

    return TiledCrossEntropy


def _tile(hidden, weight, targets, softcap, *wanted):  # noqa: ANN001, ANN202
    """Losses of some rows and, if wanted, their gradients by the logits before the cap. [n, D] -> [n], [n, V]"""
    import torch

    logits = (hidden @ weight.T).float()
    losses, chosen, total, slope = _each(logits, targets, softcap)
    if all(w is None for w in wanted):
        return losses, None
    probs = logits.div_(total)
    probs.scatter_add_(1, targets[:, None], torch.full_like(chosen, -1.0))
    if slope is not None:
        probs.mul_(slope)
    return losses, probs.to(weight.dtype)


def _each(logits, targets, softcap):  # noqa: ANN001, ANN202
    """Losses of rows of logits, which become exp(logit - highest): also the targets' logits, the rows' sums
    and the slope of the cap.
    """
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    slope = None if softcap is None else 1 - (logits / softcap) ** 2
    top = logits.amax(dim=-1, keepdim=True)
    chosen = logits.gather(1, targets[:, None])
    # a plain sum adds pairwise, softmax and logsumexp one by one: 7e-6 off over 262,144 words
    total = logits.sub_(top).exp_().sum(-1, keepdim=True)
    return (total.log() + top - chosen).squeeze(1), chosen, total, slope


def supervised(hidden, weight, labels):  # noqa: ANN001, ANN202
    """The hidden states [n, D] whose next token is supervised, in the head's dtype, and these tokens [n]."""
    targets = labels[:, 1:].reshape(-1)
    keep = (targets != IGNORE).nonzero().squeeze(1)
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, keep)
    return rows.to(weight.dtype), targets.index_select(0, keep)
