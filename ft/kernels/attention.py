"""Attention on a CPU: the examples of a packed row one by one, and one new token without a kernel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

NAME = "sdpa_by_example"


def install(model: Any) -> None:
    """Let a model whose attention is sdpa run packed rows example by example.

    A row of examples under a block mask costs the square of the row; the examples alone cost the
    sum of their squares, a tenth of it at MTNT's lengths, and cannot see each other by
    construction. A single new token of each row (decoding) is two small matrix products, which
    PyTorch's fused kernel makes slow: in bf16 it took half of a decoding step. Everything else goes
    through transformers' sdpa as before.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.config.get_text_config()._attn_implementation = NAME


def installed(model: Any) -> bool:
    """Whether ``install`` was called on this model."""
    return model.config.get_text_config()._attn_implementation == NAME


def examples_of(position_ids: "Tensor") -> list[int] | None:
    """Lengths of the examples of a packed row [1, T]; none for any other batch."""
    if position_ids.shape[0] != 1:
        return None
    starts = (position_ids[0] == 0).nonzero().flatten().tolist()
    ends = [*starts[1:], position_ids.shape[1]]
    return [end - start for start, end in zip(starts, ends, strict=True)]


def _forward(
    module: Any,
    query: "Tensor",  # [1, H, T, D]
    key: "Tensor",  # [1, K, T, D]
    value: "Tensor",
    attention_mask: Any,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    example_lengths: Sequence[int] | None = None,
    **kwargs: Any,
) -> tuple["Tensor", None]:
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.shape[2] == 1 and not dropout:
        return _one_token(query, key, value, attention_mask, scaling), None
    if example_lengths is None:
        return sdpa_attention_forward(
            module,
            query,
            key,
            value,
            attention_mask,
            dropout=dropout,
            scaling=scaling,
            sliding_window=sliding_window,
            **kwargs,
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    parts = [x.split(list(example_lengths), dim=2) for x in (query, key, value)]
    outputs = []
    for q, k, v in zip(*parts, strict=True):
        length = q.shape[2]
        band = None
        if sliding_window is not None and length > sliding_window:
            ones = torch.ones(length, length, dtype=torch.bool, device=q.device)
            band = ones.tril().triu(1 - sliding_window)
        outputs.append(
            torch.nn.functional.scaled_dot_product_attention(
                q, k, v, attn_mask=band, dropout_p=dropout, is_causal=band is None, scale=scaling
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _one_token(
    query: "Tensor", key: "Tensor", value: "Tensor", mask: Any, scaling: float | None
) -> "Tensor":
    """One query for each row: [B, H, 1, D] with [B, K, S, D] to [B, 1, H, D]; softmax in fp32."""
    import torch

    batch, heads, _, size = query.shape
    groups = query.reshape(batch, key.shape[1], -1, size)  # heads that share a key: [B, K, H/K, D]
    scores = (groups @ key.transpose(2, 3)).float() * (size**-0.5 if scaling is None else scaling)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask[:, :, :, -key.shape[2] :], float("-inf"))
    elif mask is not None:
        scores = scores + mask[:, :, :, -key.shape[2] :]
    weights = scores.softmax(dim=-1).to(value.dtype)
    return (weights @ value).reshape(batch, heads, 1, size).transpose(1, 2)
