"""Cross-entropy from hidden states: supervised positions only, gradient formed in forward, soft caps honoured."""

import functools
import inspect
from types import SimpleNamespace
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

    The logits [N, V] never exist at once, and because the loss is a sum, its gradient is taken in the
    forward pass, and the backward pass only scales it: 4·V·D FLOPs a row where the weight is frozen,
    with no product recomputed (the idea of Liger's and Unsloth's fused linear cross-entropy). On a CPU
    the vocabulary is gone through once, in pieces whose logits the cache holds: the gradient is a mean of
    the weight's rows by their probabilities, and is summed as attention is (``_streamed``). On a GPU with
    Triton (``fused_head``) the logits of a tile of rows are one product, overwritten with their gradient.
    Logits are rounded to the dtype of ``weight``, as transformers' are: in bf16 a row's loss is within
    max|logit| / 128 of the exact one.
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
    for part in tiles(len(targets), _width(rows, weight)):
        losses, shares = _streamed(rows[part], weight, targets[part], softcap, count=True)
        total, correct = total + losses.sum(), correct + shares.sum()
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
    ``example_lengths`` or ``example_offsets`` of a packed row. With ``hidden_only`` the answer has ``hidden``
    [B, T, D], of which ``loss_at`` makes the loss; with ``per_token`` it is ``losses`` [S] of such places, as
    ``token_losses`` has them.
    The method is set on the innermost model so that wrappers (PEFT, DDP, FSDP) still see one call of
    their ``forward``. Without labels the model answers as before. A second call changes nothing.
    """
    import torch

    if isinstance(model.forward, functools.partial) and model.forward.func.__module__ == __name__:
        return

    def forward(
        self: Any,
        plain: Any,
        *args: Any,
        labels: "Tensor | None" = None,
        supervised_at: "Tensor | None" = None,
        targets: "Tensor | None" = None,
        hidden_only: bool = False,
        per_token: bool = False,
        **kwargs: Any,
    ) -> Any:
        if labels is None and targets is None and not hidden_only:
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
        head = self.get_output_embeddings()
        if hasattr(head, "unshard"):
            # FSDP waits for it, with the norm and the embedding, and the loss takes its weight alone
            head(hidden[:, :0].to(head.weight.dtype))
        if hidden_only:  # in no dictionary, of whose tensors Accelerate makes float32
            return SimpleNamespace(hidden=hidden)
        weight, softcap = head.weight, softcap_of(self.config)
        if labels is None:
            assert supervised_at is not None
            assert targets is not None
            if per_token:
                return {"losses": losses_at(self, hidden, supervised_at, targets)}
            return {"loss": loss_at(self, hidden, supervised_at, targets)}
        if torch.is_grad_enabled():
            return {"loss": supervised_loss(hidden, weight, labels, softcap)}
        total, correct = supervised_score(hidden, weight, labels, softcap)
        return {"loss": total, "correct": correct}

    # `partial` and not a closure: it follows a deep copy of the model
    new: Any = functools.partial(forward, model, model.forward)
    # by its names transformers' `generate` decides what to give, such as positions of padded prompts
    new.__signature__ = inspect.signature(model.forward)
    model.forward = new


def loss_at(
    model: Any,
    hidden: "Float[Tensor, 'b t d']",
    supervised_at: "Int[Tensor, ' s']",
    targets: "Int[Tensor, ' s']",
) -> "Float[Tensor, '']":
    """Summed loss of ``model``'s head at places in the flat batch, against the tokens that follow them."""
    weight = model.get_output_embeddings().weight
    rows = at_places(hidden, weight, supervised_at)
    return cross_entropy(rows, weight, targets, softcap_of(model.config))


def losses_at(
    model: Any,
    hidden: "Float[Tensor, 'b t d']",
    supervised_at: "Int[Tensor, ' s']",
    targets: "Int[Tensor, ' s']",
) -> "Float[Tensor, ' s']":
    """``loss_at`` of each place alone, as ``token_losses`` has it."""
    weight = model.get_output_embeddings().weight
    rows = at_places(hidden, weight, supervised_at)
    return token_losses(rows, weight, targets, softcap_of(model.config))


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
            held = _width(hidden, weight) if d_weight is None else len(weight)
            for part in tiles(len(targets), held):
                into = None if d_hidden is None else d_hidden[part]
                given = hidden[part], weight, targets[part], softcap, into, d_weight
                losses[part], _ = _streamed(*given)
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


def _width(hidden, weight):  # noqa: ANN001, ANN202
    """Words whose logits are formed in one product."""
    return min(PIECE, len(weight)) if hidden.device.type == "cpu" else len(weight)


def _streamed(
    hidden: "Tensor",
    weight: "Tensor",
    targets: "Tensor",
    softcap: float | None,
    d_hidden: "Tensor | None" = None,
    d_weight: "Tensor | None" = None,
    count: bool = False,
) -> "tuple[Tensor, Tensor | Any]":
    """Losses of some rows [n], in one pass over the vocabulary; their gradients are written into d_hidden
    [n, D] and added to d_weight [V, D]. With ``count`` each row's share of the highest logit too: 1/k where
    k words, the target one, have it.

    The sum that a row's gradient is, of words by the exponentials of their logits, is relative to the
    highest logit so far and shrinks where a higher one comes (the online softmax of FlashAttention,
    arXiv:2205.14135). What a trained weight gets needs all of a row's logits, so their exponentials stay.
    """
    import torch

    width = _width(hidden, weight)
    chosen = torch.zeros(len(hidden), 1, dtype=torch.float32, device=hidden.device)
    top = torch.full_like(chosen, -float("inf"))
    mixed = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
    tops, sums, ties, kept = [], [], [], []
    for at in range(0, len(weight), width):
        words = weight[at : at + width]
        logits = (hidden @ words.T).float()
        if softcap is not None:
            logits.div_(softcap).tanh_().mul_(softcap)
        place, inside = _within(targets, slice(at, at + width))
        chosen = torch.where(inside, logits.gather(1, place), chosen)
        before, top = top, torch.maximum(top, logits.amax(-1, keepdim=True))
        tops.append(top)
        if count:
            ties.append((logits == top).sum(-1, keepdim=True))
        slope = None if softcap is None else logits.div(softcap).square_().neg_().add_(1)
        shares = logits.sub_(top).exp_()
        # a plain sum adds pairwise, softmax and logsumexp one by one: 7e-6 off over 262,144 words
        sums.append(shares.sum(-1, keepdim=True))
        if slope is not None:
            shares.mul_(slope)
        if d_hidden is not None:
            _add(mixed.mul_((before - top).exp_()), shares.to(weight.dtype), words)
        if d_weight is not None:
            kept.append(shares)
    relative = (torch.cat(tops, 1) - top).exp_()
    total = (torch.cat(sums, 1) * relative).sum(-1, keepdim=True)
    ignored = (targets == IGNORE)[:, None]
    losses = (top + total.log() - chosen).masked_fill_(ignored, 0).squeeze(1)
    slope = torch.ones_like(chosen) if softcap is None else 1 - (chosen / softcap) ** 2
    slope.masked_fill_(ignored, 0)
    if d_hidden is not None:
        wanted = weight.index_select(0, targets.clamp(min=0)).float()
        d_hidden.copy_(mixed.div_(total).masked_fill_(ignored, 0).sub_(wanted * slope))
    for i, shares in enumerate(kept):
        assert d_weight is not None
        words = slice(i * width, i * width + shares.shape[1])
        shares.mul_((relative[:, i, None] / total).masked_fill_(ignored, 0))
        place, inside = _within(targets, words)
        grad = shares.scatter_add_(1, place, -(inside * slope)).to(weight.dtype)
        d_weight[words].addmm_(grad.T, hidden)
    if not count:
        return losses, None
    tied = (torch.cat(ties, 1) * (relative == 1)).sum(-1, keepdim=True)
    return losses, ((chosen == top) & ~ignored).div(tied).squeeze(1)


def _add(total, x, y):  # noqa: ANN001, ANN202
    """Add ``x @ y`` to a total in float32."""
    if x.dtype == total.dtype:
        total.addmm_(x, y)
    else:
        total += x @ y


def _within(targets, words):  # noqa: ANN001, ANN202
    """Where in a piece of the vocabulary the targets stand [n, 1], and which of them do."""
    inside = (targets >= words.start) & (targets < words.stop)
    return (targets - words.start).where(inside, 0)[:, None], inside[:, None]


def at_places(hidden, weight, places):  # noqa: ANN001, ANN202
    """The hidden states [n, D] at places in the flat batch, in the head's dtype."""
    return hidden.flatten(0, 1).index_select(0, places).to(weight.dtype)


def supervised(hidden, weight, labels):  # noqa: ANN001, ANN202
    """The hidden states [n, D] whose next token is supervised, in the head's dtype, and these tokens [n]."""
    targets = labels[:, 1:].reshape(-1)
    keep = (targets != IGNORE).nonzero().squeeze(1)
    rows = hidden[:, :-1].reshape(-1, hidden.shape[-1]).index_select(0, keep)
    return rows.to(weight.dtype), targets.index_select(0, keep)
