"""RecurrentGemma as Google's reference computes it: window, documents, padding and cache, and a fast RG-LRU."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, RecurrentGemmaConfig
from transformers.models.recurrent_gemma import modeling_recurrent_gemma as hf

from ft.kernels import cache as caches

# Elements of [B, T, W] that are worked on at once: on a CPU they stay in its cache, a GPU needs
# many to be busy.
PART = {"cpu": 2**17, "cuda": 2**24}


def install(model: Any) -> None:
    """Let transformers' RecurrentGemma compute what Google's ``recurrentgemma`` computes, and fast.

    - RG-LRU runs as ``rg_lru`` instead of a recorded Python loop over time.
    - The convolution keeps to its document: transformers' sees three tokens back whatever they
      belong to, so that packed and left-padded rows differ from single ones.
    - A token attends to ``attention_window_size`` tokens before it and to itself; transformers
      counts itself among them, and so leaves the reference beyond that many tokens.
    - The recurrent state lies in the cache, beside keys and values, instead of in the layers:
      rows of it can be selected, and one batch leaves nothing behind for the next.

    Positions say where a document starts (0) and how far back its tokens may look; where none are
    given they follow from the 2-D mask. Parameters, their names and the configuration stay the same.
    """
    model.model.__class__ = Trunk
    for index, layer in enumerate(model.model.layers):
        block = layer.temporal_block
        if hasattr(block, "rg_lru"):
            block.__class__, block.rg_lru.__class__ = Block, RgLru
            block.layer_idx = index
        else:
            block.sliding_window = model.model.config.sliding_window


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model, or on the one that it wraps."""
    return any(isinstance(module, Trunk) for module in model.modules())


class Config(RecurrentGemmaConfig):
    """How masks and caches are made: a view of the model's configuration, which stays as it is."""

    attribute_map = {}

    @property
    def sliding_window(self) -> int:  # with the token itself
        return self.attention_window_size + 1

    @property
    def layer_types(self) -> list[str]:
        recurrent = ("recurrent", "linear_attention")  # the latter from transformers 5.17 on
        kinds = self.layers_block_type
        return ["linear_attention" if k in recurrent else "sliding_attention" for k in kinds]


class Trunk(hf.RecurrentGemmaModel):
    @property
    def config(self) -> Config:
        view = object.__new__(Config)
        view.__dict__ = self.__dict__["config"].__dict__
        return view

    def forward(self, input_ids=None, position_ids=None, attention_mask=None, **kwargs):  # noqa: ANN001, ANN003, ANN202
        cache = kwargs.get(caches.name())
        if cache is not None and not cache.get_seq_length():
            cache.layers = DynamicCache(config=self.config).layers
        mask = attention_mask if isinstance(attention_mask, torch.Tensor) else None
        if position_ids is None and mask is not None and mask.ndim == 2:
            given = kwargs["inputs_embeds"] if input_ids is None else input_ids
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)[:, -given.shape[1] :]
        return super().forward(
            input_ids=input_ids,
            position_ids=position_ids,  # pyright: ignore[reportArgumentType]
            attention_mask=attention_mask,
            **kwargs,
        )


class Block(hf.RecurrentGemmaRecurrentBlock):
    layer_idx: int

    def forward(self, input_states, position_ids, **kwargs):  # noqa: ANN001, ANN202, ANN003
        position_ids = position_ids.expand(input_states.shape[:2])
        y = self.act_fn(self.linear_y(input_states))
        x = self.linear_x(input_states)
        given = kwargs.get(caches.name())
        cache = None if given is None else given.layers[self.layer_idx]
        before, state = x.new_zeros(len(x), self.conv1d_width - 1, self.lru_width), None
        if cache is not None and cache.has_previous_state[0]:
            before, state = cache.conv_states[0].transpose(1, 2), cache.recurrent_states[0]
        x, before = convolve(x, before, self.conv_1d, position_ids)
        x, state = self.rg_lru(x, position_ids, state)
        if cache is not None:
            cache.update_conv_state(before.transpose(1, 2))
            cache.update_recurrent_state(state)
        return self.linear_out(x * y), None

    def _setup_cache(self, *_) -> None:  # noqa: ANN002
        """Nothing: the state lies in the cache."""


class RgLru(hf.RecurrentGemmaRglru):
    def forward(self, activations, position_ids, state=None):  # noqa: ANN001, ANN202
        batch, length, _ = activations.shape
        heads, width = self.num_attention_heads, self.block_width
        rows = activations.reshape(-1, heads, width).transpose(0, 1)  # [H, B * T, W / H]

        def gate(weight, bias):  # noqa: ANN001, ANN202
            found = torch.baddbmm(bias[:, None], rows, weight)
            return found.view(heads, batch, length, width).permute(1, 2, 0, 3)

        exact = torch.promote_types(activations.dtype, torch.float32)
        result, last = rg_lru(
            activations.reshape(batch, length, heads, width),
            gate(self.input_gate_weight, self.input_gate_bias),
            gate(self.recurrent_gate_weight, self.recurrent_gate_bias),
            -8.0 * torch.nn.functional.softplus(self.recurrent_param.to(exact)).view(heads, width),
            position_ids == 0,
            None if state is None else state.view(batch, heads, width),
        )
        return result.flatten(2), last.flatten(1)


def packs_exactly(model: Any) -> bool:
    """Whether packed rows give the loss of separate examples.

    transformers' RecurrentGemma looks across the border of two examples; ``models.load`` mends it. The
    mask of Unsloth's Gemma 2 does not keep examples apart.
    """
    if getattr(model, "by_unsloth", False):
        return False
    return model.config.model_type != "recurrent_gemma" or installed(model)


def convolve(
    x: Tensor, before: Tensor, layer: nn.Conv1d, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """Depthwise causal convolution within documents, and its last inputs, from which it can go on.

    x [B, T, W], before [B, K - 1, W] the inputs before it, K the layer's kernel size, positions
    [B, T]: the token at position p has p tokens before it in its document, and sees no others.
    """
    assert layer.bias is not None
    weights = layer.weight[:, 0].unbind(1)  # the last one is of the token itself
    reach, length = len(weights) - 1, x.shape[1]
    whole = torch.cat([before.to(x.dtype), x], dim=1)
    result = torch.addcmul(layer.bias, whole[:, reach:], weights[-1])
    for back in range(1, reach + 1):
        seen = whole[:, reach - back : reach - back + length] * weights[reach - back]
        result = torch.addcmul(result, seen, (positions >= back)[..., None].to(seen.dtype))
    return result, whole[:, length:]


def rg_lru(
    x: Tensor,
    input_gate: Tensor,
    recurrence_gate: Tensor,
    decay: Tensor,
    starts: Tensor,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The Real-Gated Linear Recurrent Unit (Griffin, arXiv 2402.19427, equations 1 to 4).

    x and the gates before their sigmoid [B, T, ...]; decay [...], negative, the log of ``a`` at an
    open gate; starts [B, T] bool, where a document begins; state [B, ...], what came before.
    Returns h [B, T, ...] in x's dtype and the last state, with ``a = exp(decay * sigmoid(recurrence_gate))``
    and ``h = a * h before + sqrt(1 - a²) * sigmoid(input_gate) * x``; a document starts with a = 0
    and factor 1. Computed in decay's dtype (fp32) whatever x's, a part of the sequence at a time;
    kept for backward are inputs and states, and the rest is recomputed.
    """
    return _Scan.apply(x, input_gate, recurrence_gate, decay, starts, state)


def advance(values: Tensor, gates: Tensor, *, reverse: bool = False) -> None:
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


def advance_by_doubling(values: Tensor, gates: Tensor, *, reverse: bool = False) -> None:
    """``advance`` as an associative scan: after each step a cell holds the terms of twice as many."""
    links, span = gates[:, 1:], 1  # links[:, t]: the share of cell t that reaches cell t + span
    while span < values.shape[1]:
        old, new = values[:, :-span], values[:, span:]
        if reverse:
            old, new = new, old
        new += links * old  # they overlap: the product is complete before the sum is written
        links = links[:, :-span] * links[:, span:]
        span *= 2


def _parts(x: Tensor) -> Iterator[slice]:
    """Stretches of time of about ``PART`` elements."""
    step = max(1, PART.get(x.device.type, PART["cuda"]) * x.shape[1] // max(1, x.numel()))
    yield from (slice(t, min(t + step, x.shape[1])) for t in range(0, x.shape[1], step))


def _gates(
    input_gate: Tensor, recurrence_gate: Tensor, decay: Tensor, reset: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both gates after their sigmoid, ``a`` and ``1 - a²``; reset is -inf where a is to be 0, or 0."""
    opened = input_gate.to(decay.dtype).sigmoid()
    r = recurrence_gate.to(decay.dtype).sigmoid()
    log_a = reset.addcmul(r, decay)
    return opened, r, log_a.exp(), 1 - log_a.mul_(2).exp_()


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, input_gate, recurrence_gate, decay, starts, state):  # noqa: ANN001, ANN205
        reset = torch.zeros_like(starts, dtype=decay.dtype).masked_fill_(starts, -torch.inf)
        reset = reset.reshape(*starts.shape, *(1,) * decay.ndim)
        # one cell more than tokens: what stands before the first of them
        shape = (x.shape[0], x.shape[1] + 1, *decay.shape)
        states = torch.empty(shape, dtype=decay.dtype, device=x.device)
        states[:, 0] = 0 if state is None else state
        for t in _parts(x):
            opened, _, a, room = _gates(input_gate[:, t], recurrence_gate[:, t], decay, reset[:, t])
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
            opened, r, a, room = _gates(input_gate[:, t], recurrence_gate[:, t], decay, reset[:, t])
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
