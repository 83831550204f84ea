"""RG-LRU, the recurrence of RecurrentGemma: a fast scan with a backward of its own."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Elements of [B, T, W] that are worked on at once: on a CPU they stay in its cache, a GPU needs
# many to be busy.
PART = {"cpu": 2**17, "cuda": 2**24}


def rg_lru(
    x: "Tensor",
    input_gate: "Tensor",
    recurrence_gate: "Tensor",
    decay: "Tensor",
    starts: "Tensor",
    state: "Tensor | None" = None,
) -> tuple["Tensor", "Tensor"]:
    """The Real-Gated Linear Recurrent Unit (Griffin, arXiv 2402.19427, equations 1 to 4).

    x and the gates before their sigmoid [B, T, ...]; decay [...], negative, the log of ``a`` at an
    open gate; starts [B, T] bool, where a document begins; state [B, ...], what came before.
    Returns h [B, T, ...] in x's dtype and the last state, with ``a = exp(decay * sigmoid(recurrence_gate))``
    and ``h = a * h before + sqrt(1 - a²) * sigmoid(input_gate) * x``; a document starts with a = 0
    and factor 1. Computed in decay's dtype (fp32) whatever x's, a part of the sequence at a time;
    kept for backward are inputs and states, and the rest is recomputed.
    """
    return _function().apply(x, input_gate, recurrence_gate, decay, starts, state)


def advance(values: "Tensor", gates: "Tensor", *, reverse: bool = False) -> None:
    """In place ``values[:, t] += gates[:, t] * values[:, t - 1]`` for t = 1, 2, …; both [B, T, ...].

    In reverse, the transposed map: ``values[:, t] += gates[:, t + 1] * values[:, t + 1]``.
    A CPU goes cell by cell; a GPU, where each costs a launch, in log2(T) whole-tensor steps.
    """
    if values.device.type != "cpu":
        return advance_by_doubling(values, gates, reverse=reverse)
    cells, links = values.unbind(1), gates.unbind(1)[1:]
    if reverse:
        cells, links = cells[::-1], links[::-1]
    for link, old, new in zip(links, cells, cells[1:], strict=False):
        new.addcmul_(link, old)


def advance_by_doubling(values: "Tensor", gates: "Tensor", *, reverse: bool = False) -> None:
    """``advance`` as an associative scan: after each step a cell holds the terms of twice as many."""
    links, span = gates[:, 1:], 1  # links[:, t]: the share of cell t that reaches cell t + span
    while span < values.shape[1]:
        old, new = values[:, :-span], values[:, span:]
        if reverse:
            old, new = new, old
        new += links * old  # they overlap: the product is complete before the sum is written
        links = links[:, :-span] * links[:, span:]
        span *= 2


def _parts(x: "Tensor") -> Iterator[slice]:
    """Stretches of time of about ``PART`` elements."""
    step = max(1, PART.get(x.device.type, PART["cuda"]) * x.shape[1] // max(1, x.numel()))
    yield from (slice(t, min(t + step, x.shape[1])) for t in range(0, x.shape[1], step))


def _gates(
    input_gate: "Tensor", recurrence_gate: "Tensor", decay: "Tensor", reset: "Tensor"
) -> tuple["Tensor", "Tensor", "Tensor", "Tensor"]:
    """Both gates after their sigmoid, ``a`` and ``1 - a²``; reset is -inf where a is to be 0, or 0."""
    opened = input_gate.to(decay.dtype).sigmoid()
    r = recurrence_gate.to(decay.dtype).sigmoid()
    log_a = reset.addcmul(r, decay)
    return opened, r, log_a.exp(), 1 - log_a.mul_(2).exp_()


@functools.cache
def _function() -> Any:
    import torch

    class RgLru(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, input_gate, recurrence_gate, decay, starts, state):  # noqa: ANN001, ANN205
            reset = torch.zeros_like(starts, dtype=decay.dtype).masked_fill_(starts, -torch.inf)
            reset = reset.reshape(*starts.shape, *(1,) * decay.ndim)
            # one cell more than tokens: what stands before the first of them
            shape = (x.shape[0], x.shape[1] + 1, *decay.shape)
            states = torch.empty(shape, dtype=decay.dtype, device=x.device)
            states[:, 0] = 0 if state is None else state
            for t in _parts(x):
                opened, _, a, room = _gates(
                    input_gate[:, t], recurrence_gate[:, t], decay, reset[:, t]
                )
                new = states[:, t.start + 1 : t.stop + 1]
                torch.mul(x[:, t], opened, out=new).mul_(room.sqrt_())
                new[:, 0].addcmul_(a[:, 0], states[:, t.start])
                advance(new, a)
            ctx.save_for_backward(x, input_gate, recurrence_gate, decay, reset, states)
            return states[:, 1:].to(x.dtype), states[:, -1].clone()

        @staticmethod
        def backward(ctx, *grads):  # noqa: ANN001, ANN205
            d_result, carry = grads  # carry: what reaches the state from later parts
            x, input_gate, recurrence_gate, decay, reset, states = ctx.saved_tensors
            dx, d_input, d_recurrence = map(torch.empty_like, (x, input_gate, recurrence_gate))
            d_decay = torch.zeros_like(decay)
            for t in reversed([*_parts(x)]):
                opened, r, a, room = _gates(
                    input_gate[:, t], recurrence_gate[:, t], decay, reset[:, t]
                )
                d = d_result[:, t].to(decay.dtype, copy=True)
                d[:, -1] += carry
                advance(d, a, reverse=True)
                carry = a[:, 0] * d[:, 0]
                gated = x[:, t] * opened
                # dh/da is the state before, and of the root -a/sqrt(1 - a²), which Google bounds
                slope = room.clamp(min=0.25e-6).rsqrt_().mul_(a).mul_(gated)
                d_log_a = (states[:, t] - slope).mul_(a).mul_(d)
                d_gated = d.mul_(room.sqrt_())
                torch.mul(d_gated, opened, out=dx[:, t])
                d_gated.mul_(gated)  # and through a sigmoid y: dy * y * (1 - y)
                torch.addcmul(d_gated, d_gated, opened, value=-1, out=d_input[:, t])
                d_log_a.mul_(r)
                d_decay += d_log_a.sum((0, 1))
                d_log_a.mul_(decay)
                torch.addcmul(d_log_a, d_log_a, r, value=-1, out=d_recurrence[:, t])
            return (
                dx,
                d_input,
                d_recurrence,
                d_decay,
                None,
                carry if ctx.needs_input_grad[5] else None,
            )

    return RgLru
