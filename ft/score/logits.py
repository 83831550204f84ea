"""Scores of given tokens: logits, losses or the likeliest tokens of each position, with a hook on every layer."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ft.errors import UserError, nearest
from ft.models.load import context_of
from ft.text import batches
from ft.text.tokens import IGNORE

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

MODES = ("logits", "loss")
Intercept = Callable[[Any, int], Any]  # (x [B, T, D], layer) to what goes on in its place, or None


@dataclass(frozen=True)
class Top:
    """The likeliest next tokens of each position, and its target; log-probabilities in nats."""

    ids: "Int[Tensor, 'b t k']"  # the likeliest first
    logprobs: "Float[Tensor, 'b t k']"
    target_logprobs: "Float[Tensor, 'b t']"  # 0 where there is no target


def score(
    model: Any,
    ids: "Int[Tensor, 'b t']",
    mask: "Int[Tensor, 'b t'] | Bool[Tensor, 'b t'] | None" = None,
    mode: str = "logits",
    intercept: Intercept | None = None,
    targets: "Int[Tensor, 'b t'] | None" = None,
) -> "Float[Tensor, 'b t v'] | Float[Tensor, 'b t']":
    """Logits [B, T, V] that follow each token, or the loss [B, T] of each position's target; fp32.

    ``mask`` is 0 at padding, on either side. A target is the id that should follow; without
    ``targets`` it is the next token. The loss is in nats, and 0 at padding and where there is no
    target (``IGNORE``, the end of a row); the logits behind it never exist at once.

    ``intercept(x, i)`` is called with the token embeddings as ``i = -1``, before the model scales
    them, and with the output of each block as ``i = 0 … N - 1``, as keras-hub's
    ``GemmaCausalLM.score`` calls it. What it returns, of the same shape, goes on in place of ``x``
    (keras-hub drops it for -1), and ``None`` leaves ``x``. Of Gemma 3n's parallel streams it gets the
    active one. Gradients flow to every ``x``; ``torch.no_grad`` spares their memory.

    Raises ``UserError`` for arguments that do not fit and for logits that are not finite.
    """
    if mode not in MODES:
        known = ", ".join(map(repr, MODES))
        raise UserError(f"mode is {mode!r}; it must be one of {known}.{nearest(str(mode), MODES)}")
    if mode == "logits" and targets is not None:
        raise UserError("mode='logits' has no use for targets; mode='loss' has")
    import torch

    goals = _goals(model, ids, mask, targets)
    hidden, head = last(model, ids, mask, intercept), _head(model)
    if mode == "logits":
        logits = head(hidden)
        _check_finite(logits.detach().amax(-1), ids, mask)
        return logits
    places = (goals != IGNORE).flatten().nonzero().squeeze(1)
    rows, wanted = hidden.flatten(0, 1)[places], goals.flatten()[places]

    def part(rows: "Tensor", wanted: "Tensor") -> "Tensor":
        logits = head(rows)
        return _log_total(logits) - logits.gather(1, wanted[:, None]).squeeze(1)

    found = [_recomputed(part, rows[tile], wanted[tile]) for tile in _tiles(model, len(rows))]
    empty = torch.zeros(ids.numel(), device=rows.device)
    losses = empty.index_copy(0, places, torch.cat(found)).view(ids.shape)
    _check_finite(losses.detach(), ids, mask)
    return losses


def top(
    model: Any,
    ids: "Int[Tensor, 'b t']",
    mask: "Int[Tensor, 'b t'] | Bool[Tensor, 'b t'] | None" = None,
    k: int = 1,
    intercept: Intercept | None = None,
    targets: "Int[Tensor, 'b t'] | None" = None,
) -> Top:
    """The ``k`` likeliest tokens to follow each position, and the log-probability of its target.

    The head sees a few positions at a time, so that a long text takes the memory of its hidden
    states and no more. Arguments and errors are those of ``score``, which has the gradients.
    """
    import torch

    vocabulary = model.config.get_text_config().vocab_size
    if not 0 < k <= vocabulary:
        raise UserError(
            f"k is {k}; it must be from 1 to {vocabulary:,}, the size of the vocabulary"
        )
    goals = _goals(model, ids, mask, targets)
    with torch.no_grad():
        hidden, head = last(model, ids, mask, intercept), _head(model)
        rows, wanted = hidden.flatten(0, 1), goals.flatten()
        found: list[tuple[Tensor, ...]] = []
        for tile in _tiles(model, len(rows)):
            logits = head(rows[tile])
            best, total = logits.topk(k), _log_total(logits)[:, None]
            chosen = logits.gather(1, wanted[tile, None].clamp(min=0)) - total
            found.append((best.indices, best.values - total, chosen.squeeze(1)))
        which, logprobs, chosen = (torch.cat(parts) for parts in zip(*found, strict=True))
    _check_finite(logprobs[:, 0].view(ids.shape), ids, mask)
    chosen = chosen.view(ids.shape).masked_fill(goals == IGNORE, 0)
    return Top(which.view(*ids.shape, k), logprobs.view(*ids.shape, k), chosen)


def following(model: Any, ids: "Int[Tensor, 'b t']") -> "Float[Tensor, 'b v']":
    """Logits [B, V] of the token after the last one of each row, in fp32, without gradients."""
    import torch

    _goals(model, ids, None, None)
    with torch.no_grad():
        logits = _head(model)(last(model, ids)[:, -1])
    highest = logits.amax(-1, keepdim=True)
    _check_finite(torch.nn.functional.pad(highest, (ids.shape[1] - 1, 0)), ids, None)
    return logits


def last(
    model: Any,
    ids: "Int[Tensor, 'b t']",
    mask: "Int[Tensor, 'b t'] | Bool[Tensor, 'b t'] | None" = None,
    intercept: Intercept | None = None,
) -> "Float[Tensor, 'b t d']":
    """What the head of a causal language model reads, in eval mode.

    ``mask`` is 0 at padding, on either side; positions count each row's own tokens. ``intercept`` is
    as in ``score``, which says what it gets and what becomes of its answer.
    """
    model, options = unwrapped(model), {}
    if mask is not None:
        mask = mask.long()
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    was_training = model.training
    model.eval()
    try:
        with intercepted(model, intercept) if intercept else contextlib.nullcontext():
            return model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state
    finally:
        model.train(was_training)


@contextlib.contextmanager
def intercepted(model: Any, intercept: Intercept) -> Iterator[None]:
    """While this lasts, what ``intercept`` returns goes on from the embedding and from each block.

    Raises ``UserError``, in the model's forward, for an answer of another shape.
    """
    import torch

    active = getattr(model.config.get_text_config(), "altup_active_idx", None)  # Gemma 3n's stream

    def change(x: "Tensor", layer: int) -> "Tensor":
        new = intercept(x, layer)
        if new is None:
            return x
        if not isinstance(new, torch.Tensor) or new.shape != x.shape:
            what = list(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            where = "the embedding (-1)" if layer < 0 else f"layer {layer}"
            raise UserError(
                f"intercept returned {what} for {where}; it must return a tensor of the shape that "
                f"it was given, {list(x.shape)}, or None"
            )
        return new.to(x.dtype)

    def embedding(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
        scale = getattr(module, "embed_scale", None)
        if scale is None:  # the model scales later, or not at all
            return change(output, -1)
        plain = torch.nn.functional.embedding(inputs[0], module.weight, module.padding_idx)
        return change(plain, -1) * scale.to(plain.dtype)

    def block(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
            if active is None:
                return change(output, layer)
            streams = list(output.unbind())  # [S, B, T, D]
            streams[active] = change(streams[active], layer)
            return torch.stack(streams)

        return hook

    handles = [model.get_input_embeddings().register_forward_hook(embedding)]
    for layer, module in enumerate(model.get_decoder().layers):
        handles.append(module.register_forward_hook(block(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unwrapped(model: Any) -> Any:
    """The causal language model itself; PEFT puts an adapter's layers into it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _goals(model: Any, ids: "Tensor", mask: "Tensor | None", targets: "Tensor | None") -> "Tensor":
    """The target of each position [B, T], ``IGNORE`` where there is none."""
    import torch

    text = model.config.get_text_config()
    if ids.ndim != 2 or not ids.numel():
        raise UserError(
            f"ids have the shape {list(ids.shape)}; it must be [rows, tokens], not empty"
        )
    for name, given in (("mask", mask), ("targets", targets)):
        if given is not None and given.shape != ids.shape:
            raise UserError(
                f"{name} have the shape {list(given.shape)} and the ids {list(ids.shape)}: they must "
                "be of one length, an entry for each token"
            )
    for name, given in (("ids", ids), ("targets", targets)):
        if given is None:
            continue
        wrong = (given < 0) | (given >= text.vocab_size)
        if name == "targets":
            wrong &= given != IGNORE
        if bool(wrong.any()):
            raise UserError(
                f"{name} hold {int(given[wrong][0])}; the model has the ids 0 to {text.vocab_size - 1}"
            )
    context = context_of(text)
    if context and ids.shape[1] > context:
        raise UserError(f"{ids.shape[1]} tokens are more than the model's context of {context}")
    if targets is None:
        targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=IGNORE)
        if mask is not None:
            follows = torch.nn.functional.pad(mask[:, 1:].bool(), (0, 1))
            targets = targets.masked_fill(~follows, IGNORE)
    targets = targets.long()
    return targets if mask is None else targets.masked_fill(~mask.bool(), IGNORE)


def _head(model: Any) -> Callable[["Tensor"], "Tensor"]:
    """Hidden states [..., D] to logits [..., V] in fp32, under the model's soft cap."""
    head = unwrapped(model).get_output_embeddings()
    from ft.kernels import cross_entropy

    cap = cross_entropy.softcap_of(model.config)

    def logits(hidden: "Tensor") -> "Tensor":
        found = head(hidden).float()
        return found if cap is None else (found / cap).tanh() * cap

    return logits


def _tiles(model: Any, count: int) -> list[slice]:
    """``count`` positions in tiles whose logits may exist at once; one empty tile for none."""
    size = max(1, batches.TILE // model.config.get_text_config().vocab_size)
    return [slice(first, first + size) for first in range(0, max(count, 1), size)]


def _recomputed(function: Callable[..., "Tensor"], *inputs: "Tensor") -> "Tensor":
    """``function(*inputs)``, computed once more where gradients are taken, so that none of it is kept."""
    from torch.utils.checkpoint import checkpoint

    result: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def _log_total(logits: "Tensor") -> "Tensor":
    """Logarithm of the sum of exponentials, [N, V] to [N], summed pairwise (see ``ft.kernels.cross_entropy``)."""
    best = logits.detach().amax(-1, keepdim=True)
    return (logits - best).exp().sum(-1).log() + best.squeeze(-1)


def _check_finite(values: "Tensor", ids: "Tensor", mask: "Tensor | None") -> None:
    """Raise ``UserError`` for the first token whose value [B, T] is not finite, padding aside."""
    wrong = ~values.isfinite()
    if mask is not None:
        wrong &= mask.bool()
    if bool(wrong.any()):
        row, token = wrong.nonzero()[0].tolist()
        raise UserError(
            f"the logits after token {token + 1} of row {row + 1} (id {int(ids[row, token])}) are not "
            "finite: the weights are damaged, an intercept returned NaN, or activations overflow, "
            "which fp32 and bf16 prevent"
        )
