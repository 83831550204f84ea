"""The mini-GPT: a small decoder to read in one sitting and to pretrain, as a book has it and as one builds it today.

The book is Chollet & Watson, Deep Learning with Python, 3rd edition, chapter 16: ``MiniGPTConfig``'s
defaults, of which ``MODERN`` changes some. Importing this module tells transformers of it, so that
``AutoModelForCausalLM.from_pretrained`` loads it; others import it only where they need it.

    B rows   T new tokens   S tokens with the cached ones   D width   H heads   V vocabulary

    tokens     V * D           32,000 * 512                 16,384,000
    positions  T * D           256 * 512                       131,072
    attention  4 * (D + 1) * D                               1,050,624  of each of 8 blocks
    feed       (D + 1) * F + (F + 1) * D   with F = 2,056    2,107,912  of each
    norms      2 * 2 * D                                         2,048  of each, and half of it in front
    all        16,384,000 + 131,072 + 8 * 3,160,584 + 1,024 = 41,800,768; the head is the tokens' table
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ft.errors import UserError
from ft.kernels import cache as caches
from ft.kernels.cross_entropy import cross_entropy
from ft.kernels.dropout import causal_attention, dropout
from ft.text.tokens import IGNORE

MODERN: dict[str, Any] = {
    "intermediate_size": 1376,  # three matrices of it have the parameters of two of 2,056
    "dropout": 0.0,  # text that is seen once needs none
    "attention_dropout": 0.0,
    "norm_eps": 1e-6,
    "pre_norm": True,
    "rms_norm": True,
    "rope": True,
    "gated": True,
    "qk_norm": True,
    "bias": False,
}


class MiniGPTConfig(PreTrainedConfig):
    """The shape of a mini-GPT; the defaults are the book's."""

    model_type = "minigpt"
    keys_to_ignore_at_inference = [caches.name()]

    vocab_size: int = 32_000
    hidden_size: int = 512
    intermediate_size: int = 2056
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 256
    dropout: float = 0.1  # of what attention and feed-forward add
    attention_dropout: float = 0.1  # of attention weights
    norm_eps: float = 1e-3  # Keras's
    pre_norm: bool = False  # norms in front of attention and feed-forward, not behind the sum
    rms_norm: bool = False  # RMSNorm for LayerNorm
    rope: bool = False  # positions turn queries and keys; else they are learned vectors
    gated: bool = False  # down(silu(gate(x)) * up(x)) for down(relu(up(x)))
    qk_norm: bool = False  # queries and keys of each head are normalised
    bias: bool = True  # of the linear layers
    use_cache: bool = True
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.hidden_size % (2 * self.num_attention_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of twice the "
                f"{self.num_attention_heads} attention heads"
            )
        super().__post_init__(**kwargs)

    def flops_per_token(self, length: int) -> float:
        """Of forward and backward: 6 for each entry of a matrix, and attention's own products.

        A query meets (length + 1) / 2 keys, in two products of 2 * D each, three times.
        """
        d, inner = self.hidden_size, self.intermediate_size * (3 if self.gated else 2)
        matrices = self.num_hidden_layers * (4 * d * d + inner * d) + self.vocab_size * d
        return 6 * matrices + 6 * self.num_hidden_layers * d * (length + 1)


class RMSNorm(nn.RMSNorm):
    """RMSNorm whose scale follows its input's dtype, as PyTorch's fused one demands."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]"""
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


def norm(c: MiniGPTConfig, size: int) -> nn.Module:
    """Over the last dimension."""
    return (RMSNorm if c.rms_norm else nn.LayerNorm)(size, eps=c.norm_eps)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: turn the pairs (x[i], x[i + D/2H]) by their angles. [B, H, T, D/H], [B, 1, T, D/2H]"""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Attention(nn.Module):
    """Causal attention of H heads."""

    def __init__(self, c: MiniGPTConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer_idx, self.is_causal = c, layer, True
        d, size = c.hidden_size, c.hidden_size // c.num_attention_heads
        self.q_proj, self.k_proj = nn.Linear(d, d, bias=c.bias), nn.Linear(d, d, bias=c.bias)
        self.v_proj, self.o_proj = nn.Linear(d, d, bias=c.bias), nn.Linear(d, d, bias=c.bias)
        self.q_norm, self.k_norm = (norm(c, size) if c.qk_norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor, mask: Any, turn: tuple[Tensor, Tensor] | None, cache: Any) -> Any:
        """[B, T, D] to [B, T, D]; ``mask`` [B, 1, T, S], or none where it is plainly causal."""
        heads = (self.config.num_attention_heads, -1)
        q = self.q_norm(self.q_proj(x).unflatten(-1, heads)).transpose(1, 2)  # [B, H, T, D/H]
        k = self.k_norm(self.k_proj(x).unflatten(-1, heads)).transpose(1, 2)
        v = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        if turn is not None:
            q, k = rotate(q, *turn), rotate(k, *turn)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # [B, H, S, D/H]
        p = self.config.attention_dropout if self.training else 0.0
        if p and mask is None and cache is None and x.device.type == "cpu":
            return self.o_proj(causal_attention(q, k, v, p).flatten(2))
        name = self.config._attn_implementation or "sdpa"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, sdpa_attention_forward)
        mixed, _ = attend(self, q, k, v, mask, dropout=p)  # [B, T, H, D/H]
        return self.o_proj(mixed.flatten(2))


class FeedForward(nn.Module):
    """Two layers with ReLU between, or three with a gate."""

    def __init__(self, c: MiniGPTConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.bias)
        if c.gated:
            self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.bias)
        self.gated = c.gated

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]"""
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)))


class Block(nn.Module):
    """Attention and feed-forward, each added to what it read."""

    def __init__(self, c: MiniGPTConfig, layer: int) -> None:
        super().__init__()
        self.attention, self.mlp = Attention(c, layer), FeedForward(c)
        self.attention_norm, self.mlp_norm = norm(c, c.hidden_size), norm(c, c.hidden_size)
        self.p, self.pre_norm = c.dropout, c.pre_norm

    def forward(self, x: Tensor, *seen: Any) -> Tensor:
        """[B, T, D] to [B, T, D]; ``seen`` is attention's mask, RoPE and cache."""
        drop = functools.partial(dropout, p=self.p, training=self.training)
        if self.pre_norm:
            x = x + drop(self.attention(self.attention_norm(x), *seen))
            return x + drop(self.mlp(self.mlp_norm(x)))
        x = self.attention_norm(x + drop(self.attention(x, *seen)))
        return self.mlp_norm(x + drop(self.mlp(x)))


class MiniGPTPreTrainedModel(PreTrainedModel):
    """What both classes below share with transformers."""

    config_class = MiniGPTConfig
    config: MiniGPTConfig
    base_model_prefix = "model"
    _supports_sdpa = _supports_flash_attn = _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Keras's defaults, from which the book starts."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -0.05, 0.05)
        else:
            super()._init_weights(module)


class MiniGPTModel(MiniGPTPreTrainedModel):
    """Embeddings and blocks: ids in, the last hidden states out."""

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(c := config)
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        if not c.rope:
            self.embed_positions = nn.Embedding(c.max_position_embeddings, c.hidden_size)
        self.layers = nn.ModuleList(Block(c, layer) for layer in range(c.num_hidden_layers))
        self.norm = norm(c, c.hidden_size)  # in front of the blocks, or of the head where pre_norm
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Ids [B, T] to hidden states [B, T, D]; ``attention_mask`` [B, S] is 0 at padding.

        Raises ``UserError`` for more tokens than the model has positions.
        """
        c, cache = self.config, kwargs.get("past_key_values", cache)
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        use_cache = c.use_cache and not self.training if use_cache is None else use_cache
        if use_cache and cache is None:
            cache = DynamicCache(config=c)
        past = 0 if cache is None else cache.get_seq_length()
        end, given = past + x.shape[1], position_ids  # of rows that begin at 0, sdpa needs no mask
        if position_ids is None and attention_mask is not None and attention_mask.dim() == 2:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, past:end]  # [B, T]
            given = position_ids
        elif position_ids is None:
            position_ids = torch.arange(past, end, device=x.device)[None]  # [1, T]
        if end > (most := c.max_position_embeddings) and position_ids.max() >= most:
            raise UserError(f"{end} tokens are more than the model's {most} positions")
        mask = create_causal_mask(c, x, attention_mask, cache, given)
        turn = None
        if c.rope:
            half = c.hidden_size // c.num_attention_heads // 2
            speeds = 10_000.0 ** -(torch.arange(half, device=x.device) / half)
            angles = (position_ids[..., None] * speeds)[:, None]  # [B, 1, T, D/2H]
            turn = (angles.cos().to(x.dtype), angles.sin().to(x.dtype))
        else:
            x = x + self.embed_positions(position_ids)
        x = x if c.pre_norm else self.norm(x)
        states = [x]
        for layer in self.layers:
            x = layer(x, mask, turn, cache)
            states += [x] * output_hidden_states
        x = self.norm(x) if c.pre_norm else x
        every = (*states[:-1], x) if output_hidden_states else None
        return BaseModelOutputWithPast(x, cache, every)


class MiniGPTForCausalLM(MiniGPTPreTrainedModel, GenerationMixin):
    """The decoder and its head, whose weight is the token embedding's."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MiniGPTConfig) -> None:
        super().__init__(config)
        self.model = MiniGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, T, V] of ids [B, T]; with labels the loss alone, whose logits are not kept.

        ``labels`` stand at their own tokens and ``shift_labels`` at the ones before, both [B, T] and
        ``IGNORE`` where no loss is taken. The loss is a mean, or a sum over ``num_items_in_batch``.
        """
        if labels is not None:
            shift_labels = F.pad(labels[:, 1:], (0, 1), value=IGNORE)
        kept = {} if shift_labels is None else {"use_cache": False}
        found = self.model(input_ids, **kwargs | kept)
        hidden, *rest = found.last_hidden_state, found.get(caches.name()), found.hidden_states
        if shift_labels is None:
            return CausalLMOutputWithPast(None, self.lm_head(hidden[:, -logits_to_keep:]), *rest)
        targets = shift_labels.flatten()
        count = num_items_in_batch or (targets != IGNORE).sum().clamp(min=1)
        loss = self._summed_loss(hidden.flatten(0, 1), targets) / count
        return CausalLMOutputWithPast(loss, None, *rest)

    def _summed_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of rows [N, D] against targets [N], summed."""
        kind, weight = rows.device.type, self.lm_head.weight
        if kind != "cpu":  # torch.compile fuses the softmax into what reads the logits
            logits = self.lm_head(rows).float()
            return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum")
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        keep = (targets != IGNORE).nonzero().squeeze(1)
        return cross_entropy(rows[keep].to(dtype), weight.to(dtype), targets[keep])


AutoConfig.register("minigpt", MiniGPTConfig, exist_ok=True)
AutoModelForCausalLM.register(MiniGPTConfig, MiniGPTForCausalLM, exist_ok=True)
