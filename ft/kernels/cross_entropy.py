"""Cross-entropy from hidden states: supervised positions only, gradient formed in forward, soft caps honoured."""

import functools
import inspect
from typing import TYPE_CHECKING, Any

from ft.kernels import attention, fused, fused_head
from ft.text.batches import PIECE, tiles
from ft.text.tokens import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def cross_entropy(
    hidden: "Float[Tensor, 'n d']",
    weight: "Float[Tensor, 'v d']",
    targets: "Int[Tensor, ' n']",
    softcap: float | None = None,
) -> "Float[Tensor, '']":
    """Summed cross-entropy of ``softcap * tanh(hidden @ weight.T / softcap)`` against ``targets``.

    ``hidden`` and ``weight`` have one dtype; ``targets`` are token ids, and a row whose target is
    ``IGNORE`` adds neither loss nor gradient, so that callers can pad. The sum is in fp32.

    The logits [N, V] never exist at once: they are formed in tiles of rows, and because the loss is
    a sum, the gradient of a tile is known as soon as its logits are. So it is taken in the forward
    pass, and the backward pass only scales it: 4·V·D FLOPs a row where the weight is frozen, with
    no product recomputed (the idea of Liger's and Unsloth's fused linear cross-entropy). On a CPU a
    tile is worked through in pieces of the vocabulary; on a GPU with Triton (``fused_head``) the logits
    of a tile are one product, overwritten with their gradient. Logits are rounded to the dtype of
    ``weight``, as transformers' are: in bf16 a row's loss is within max|logit| / 128 of the exact one.
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
    if fused.usable(rows, weight):
        losses, shares = fused_head.scores(rows, weight, targets, softcap)
        return losses.sum(), shares.sum()
    total, correct = torch.zeros(2, dtype=torch.float32, device=hidden.device)
    for part in tiles(len(targets), len(weight)):
        pieces, losses, chosen, top, _ = _logits(rows[part], weight, targets[part], softcap)
        best = (chosen == top).squeeze(1) & (targets[part] != IGNORE)
        if best.any():
            same = torch.stack([(piece[best] == top[best]).sum(-1) for piece in pieces])
            correct += (1 / same.sum(0)).sum()
        total += losses.sum()
    return total, correct


def softcap_of(config: Any) -> float | None:
    """The soft cap of a model's final logits, as each Gemma generation names it."""
    text = config.get_text_config()
    return getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)


def install(model: Any) -> None:
    """Let a causal language model answer ``forward(..., labels=…)`` with ``supervised_loss``.

    Without gradients it also answers ``correct``, as ``supervised_score`` counts. Where the batch brings
    ``supervised_at`` [S], places in the flat batch whose next token is supervised, and these tokens as
    ``targets`` [S], no size depends on values, and nothing waits for a GPU; nor does attention with
    ``example_lengths`` or ``example_offsets`` of a packed row.
    The method is set on the innermost model so that wrappers (PEFT, DDP, FSDP) still see one call of
    their ``forward``. Without labels the model answers as before. A second call changes nothing.
    """
    import torch

    if isinstance(model.forward, functools.partial) and model.forward.func.__module__ == __name__:
        return
    softcap = softcap_of(model.config)

    def forward(
        self: Any,
        plain: Any,
        *args: Any,
        labels: "Tensor | None" = None,
        supervised_at: "Tensor | None" = None,
        targets: "Tensor | None" = None,
        **kwargs: Any,
    ) -> Any:
        if labels is None and targets is None:
            return plain(*args, **kwargs)
        positions = kwargs.get("position_ids")
        if attention.installed(self) and positions is not None:
            if {"example_lengths", "example_offsets"}.isdisjoint(kwargs):
                kwargs["example_lengths"] = attention.examples_of(positions)  # waits for a GPU
            if kwargs.get("example_lengths") or "example_offsets" in kwargs:
                kwargs |= attention.no_mask(self, positions)
        else:
            for name in ("example_lengths", "example_offsets"):
                kwargs.pop(name, None)
        # every Gemma's causal model is `model` and a head without bias
        hidden = self.model(*args, **kwargs | {"use_cache": False}).last_hidden_state
        weight = self.get_output_embeddings().weight
        if labels is None:
            rows = hidden.flatten(0, 1).index_select(0, supervised_at).to(weight.dtype)
            return {"loss": cross_entropy(rows, weight, targets, softcap)}  # pyright: ignore[reportArgumentType]
        if torch.is_grad_enabled():
            return {"loss": supervised_loss(hidden, weight, labels, softcap)}
        total, correct = supervised_score(hidden, weight, labels, softcap)
        return {"loss": total, "correct": correct}

    # `partial` and not a closure: it follows a deep copy of the model
    new: Any = functools.partial(forward, model, model.forward)
    # by its names transformers' `generate` decides what to give, such as positions of padded prompts
    new.__signature__ = inspect.signature(model.forward)
    model.forward = new


@functools.cache
def _function() -> Any:
    import torch

    class TiledCrossEntropy(torch.autograd.Function):
        @staticmethod
        def forward(ctx, hidden, weight, targets, softcap):  # noqa: ANN001, ANN205
            needs_hidden, needs_weight = ctx.needs_input_grad[:2]
            d_hidden = torch.empty_like(hidden) if needs_hidden else None
            d_weight = torch.zeros_like(weight) if needs_weight else None
            ctx.save_for_backward(d_hidden, d_weight)
            if fused.usable(hidden, weight):
                return fused_head.losses(hidden, weight, targets, softcap, d_hidden, d_weight)
            losses = torch.zeros(len(targets), dtype=torch.float32, device=hidden.device)
            for part in tiles(len(targets), len(weight)):
                into = None if d_hidden is None else d_hidden[part]
                losses[part] = _tile(hidden[part], weight, targets[part], softcap, into, d_weight)
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


def _tile(hidden, weight, targets, softcap, d_hidden, d_weight):  # noqa: ANN001, ANN202
    """Losses of some rows; their gradients are written into d_hidden [n, D] and added to d_weight [V, D]."""
    import torch

    pieces, losses, _, _, lse = _logits(hidden, weight, targets, softcap)
    ignored = targets < 0
    losses.masked_fill_(ignored, 0.0)
    if d_hidden is None and d_weight is None:
        return losses
    total = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    for at, logits in zip(range(0, len(weight), pieces[0].shape[1]), pieces, strict=True):
        words = slice(at, at + logits.shape[1])
        slope = None if softcap is None else 1 - (logits / softcap) ** 2
        probs = logits.sub_(lse).exp_()
        place, inside = _within(targets, words)
        probs.scatter_add_(1, place, -inside.float()).masked_fill_(ignored[:, None], 0.0)
        grad = (probs if slope is None else probs.mul_(slope)).to(weight.dtype)
        if d_hidden is not None and grad.dtype == total.dtype:
            total.addmm_(grad, weight[words])
        elif d_hidden is not None:
            total += grad @ weight[words]
        if d_weight is not None:
            d_weight[words].addmm_(grad.T, hidden)
    if d_hidden is not None:
        d_hidden.copy_(total)
    return losses


def _logits(hidden, weight, targets, softcap):  # noqa: ANN001, ANN202
    """Logits after the cap in pieces of the vocabulary [n, ≤ PIECE], and of each row: the loss [n], the
    target's logit, the highest, and the logarithm of the sum of exponentials [n, 1]. All in fp32.

    That logarithm is infinite where nothing is supervised: no probability, so no gradient.
    """
    import torch

    width = PIECE if hidden.device.type == "cpu" else len(weight)
    pieces, tops, sums = [], [], []
    chosen = torch.zeros(len(hidden), 1, dtype=torch.float32, device=hidden.device)
    for at in range(0, len(weight), width):
        logits = (hidden @ weight[at : at + width].T).float()
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        place, inside = _within(targets, slice(at, at + logits.shape[1]))
        chosen = torch.where(inside, logits.gather(1, place), chosen)
        tops.append(logits.amax(-1, keepdim=True))
        # a plain sum adds pairwise, softmax and logsumexp one by one: 7e-6 off over 262,144 words
        sums.append((logits - tops[-1]).exp_().sum(-1, keepdim=True))
        pieces.append(logits)
    highest, sums = torch.cat(tops, 1), torch.cat(sums, 1)
    top = highest.amax(-1, keepdim=True)
    lse = top + (sums * (highest - top).exp()).sum(-1, keepdim=True).log()
    ignored = (targets == IGNORE)[:, None]
    losses = (lse - chosen).masked_fill_(ignored, 0).squeeze(1)
    return pieces, losses, chosen, top, lse.masked_fill_(ignored, float("inf"))


def _within(targets, words):  # noqa: ANN001, ANN202
    """Where in a piece of the vocabulary the targets stand [n, 1], and which of them do."""
    inside = (targets >= words.start) & (targets < words.stop)
    return (targets - words.start).where(inside, 0)[:, None], inside[:, None]


def supervised(hidden, weight, labels):  # noqa: ANN001, ANN202
    """The hidden states [n, D] whose next token is supervised, in the head's dtype, and these tokens [n]."""
    targets = labels[:, 1:].reshape(-1)
    keep = (targets != IGNORE).nonzero().squeeze(1)
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, keep)
    return rows.to(weight.dtype), targets.index_select(0, keep)
