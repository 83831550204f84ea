"""The shape of a mini-GPT: a book's by default, and the choices of a modern one.

The book is Chollet & Watson, Deep Learning with Python, 3rd edition, chapter 16.

    tokens     V * D           32,000 * 512                 16,384,000
    positions  T * D           256 * 512                       131,072
    attention  4 * (D + 1) * D                               1,050,624  of each of 8 blocks
    feed       (D + 1) * F + (F + 1) * D   with F = 2,056    2,107,912  of each
    norms      2 * 2 * D                                         2,048  of each, and half of it in front
    all        16,384,000 + 131,072 + 8 * 3,160,584 + 1,024 = 41,800,768; the head is the tokens' table
"""

from typing import Any

from transformers import PreTrainedConfig

from ft.errors import UserError

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
    keys_to_ignore_at_inference = ["past_key_values"]

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
