"""RecurrentGemma as Google's reference computes it: window, documents, padding and cache, and a fast RG-LRU."""

import functools
import types
from typing import TYPE_CHECKING, Any

from ft.kernels.rg_lru import rg_lru

if TYPE_CHECKING:
    from torch import Tensor, nn


def install(model: Any) -> None:
    """Let transformers' RecurrentGemma compute what Google's ``recurrentgemma`` computes, and fast.

    - RG-LRU runs as ``ft.kernels.rg_lru`` instead of a recorded Python loop over time.
    - The convolution keeps to its document: transformers' sees three tokens back whatever they
      belong to, so that packed and left-padded rows differ from single ones.
    - A token attends to ``attention_window_size`` tokens before it and to itself; transformers
      counts itself among them, and so leaves the reference beyond that many tokens.
    - The recurrent state lies in the cache, beside keys and values, instead of in the layers:
      rows of it can be selected, and one batch leaves nothing behind for the next.

    Positions say where a document starts (0) and how far back its tokens may look; where none are
    given they follow from the 2-D mask. Parameters, their names and the configuration stay the same.
    """
    made = _classes()
    model.model.__class__ = made.Trunk
    for index, layer in enumerate(model.model.layers):
        block = layer.temporal_block
        if hasattr(block, "rg_lru"):
            block.__class__, block.rg_lru.__class__ = made.Block, made.RgLru
            block.layer_idx = index
        else:
            block.sliding_window = model.model.config.sliding_window


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model, or on the one that it wraps."""
    return any(isinstance(module, _classes().Trunk) for module in model.modules())


def packs_exactly(model: Any) -> bool:
    """Whether packed rows give the loss of separate examples.

    transformers' RecurrentGemma looks across the border of two examples; ``models.load`` mends it. The
    mask of Unsloth's Gemma 2 does not keep examples apart.
    """
    if getattr(model, "by_unsloth", False):
        return False
    return model.config.model_type != "recurrent_gemma" or installed(model)


def convolve(
    x: "Tensor", before: "Tensor", layer: "nn.Conv1d", positions: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """Depthwise causal convolution within documents, and its last inputs, from which it can go on.

    x [B, T, W], before [B, K - 1, W] the inputs before it, K the layer's kernel size, positions
    [B, T]: the token at position p has p tokens before it in its document, and sees no others.
    """
    import torch

    assert layer.bias is not None
    weights = layer.weight[:, 0].unbind(1)  # the last one is of the token itself
    reach, length = len(weights) - 1, x.shape[1]
    whole = torch.cat([before.to(x.dtype), x], dim=1)
    result = torch.addcmul(layer.bias, whole[:, reach:], weights[-1])
    for back in range(1, reach + 1):
        seen = whole[:, reach - back : reach - back + length] * weights[reach - back]
        result = torch.addcmul(result, seen, (positions >= back)[..., None].to(seen.dtype))
    return result, whole[:, length:]


@functools.cache
def _classes() -> types.SimpleNamespace:
    import torch
    from transformers import DynamicCache, RecurrentGemmaConfig
    from transformers.models.recurrent_gemma import modeling_recurrent_gemma as hf

    class Config(RecurrentGemmaConfig):
        """How masks and caches are made: a view of the model's configuration, which stays as it is."""

        attribute_map = {}

        @property
        def sliding_window(self) -> int:  # with the token itself
            return self.attention_window_size + 1

        @property
        def layer_types(self) -> list[str]:
            recurrent = (
                "recurrent",
                "linear_attention",
            )  # the names in transformers 5.17 and later
            kinds = self.layers_block_type
            return ["linear_attention" if k in recurrent else "sliding_attention" for k in kinds]

    class Trunk(hf.RecurrentGemmaModel):
        @property
        def config(self) -> Config:
            view = object.__new__(Config)
            view.__dict__ = self.__dict__["config"].__dict__
            return view

        def forward(self, input_ids=None, position_ids=None, attention_mask=None, **kwargs):  # noqa: ANN001, ANN003, ANN202
            cache = kwargs.get("past_key_values")
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

        def forward(self, input_states, position_ids, past_key_values=None, **_):  # noqa: ANN001, ANN202, ANN003
            position_ids = position_ids.expand(input_states.shape[:2])
            y = self.act_fn(self.linear_y(input_states))
            x = self.linear_x(input_states)
            cache = None if past_key_values is None else past_key_values.layers[self.layer_idx]
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
                -8.0
                * torch.nn.functional.softplus(self.recurrent_param.to(exact)).view(heads, width),
                position_ids == 0,
                None if state is None else state.view(batch, heads, width),
            )
            return result.flatten(2), last.flatten(1)

    return types.SimpleNamespace(Trunk=Trunk, Block=Block, RgLru=RgLru)
