"""Peer: the same model in Keras 3, written as the book's chapter describes it, on one of its backends."""

import os
from typing import Any

from minigpt_job import open_job, threads


def main() -> None:
    """Keras's own layers, Adam and ``train_on_batch``, compiled where the backend's default is to."""
    job, pipe = open_job()
    os.environ["KERAS_BACKEND"] = job.backend
    if job.backend == "torch":
        import torch

        torch.set_num_threads(threads())
        torch.set_flush_denormal(True)
    import keras  # pyright: ignore[reportMissingImports]
    import numpy as np
    from keras import layers, ops  # pyright: ignore[reportMissingImports]
    from safetensors.numpy import load_file

    keras.utils.set_random_seed(42)
    s: dict[str, Any] = job.shape
    width, heads, p = s["hidden_size"], s["num_attention_heads"], s["dropout"]
    positions = np.arange(s["max_position_embeddings"])

    class Embedding(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = layers.Embedding(s["vocab_size"], width)
            self.positions = layers.Embedding(len(positions), width)

        def build(self, _: Any) -> None:
            self.tokens.build()
            self.positions.build()

        def call(self, x: Any, reverse: bool = False) -> Any:
            if reverse:
                return ops.matmul(x, ops.transpose(self.tokens.embeddings))
            return self.tokens(x) + self.positions(positions)

    embedding = Embedding()
    ids = keras.Input((len(positions),), dtype="int32")
    front = layers.LayerNormalization()
    x, blocks = front(embedding(ids)), []
    for _ in range(s["num_hidden_layers"]):
        attention = layers.MultiHeadAttention(heads, width // heads, dropout=p)
        norms = layers.LayerNormalization(), layers.LayerNormalization()
        up, down = layers.Dense(s["intermediate_size"], activation="relu"), layers.Dense(width)
        drop = layers.Dropout(p)
        x = norms[0](x + drop(attention(query=x, key=x, value=x, use_causal_mask=True)))
        x = norms[1](x + drop(down(up(x))))
        blocks.append((attention, *norms, up, down))
    model: Any = keras.Model(ids, embedding(x, reverse=True))

    w = load_file(job.weights)
    embedding.tokens.set_weights([w["model.embed_tokens.weight"]])
    embedding.positions.set_weights([w["model.embed_positions.weight"]])
    front.set_weights([w["model.norm.weight"], w["model.norm.bias"]])
    size = width // heads
    for i, (attention, first, second, up, down) in enumerate(blocks):

        def of(name: str, i: int = i) -> list[Any]:
            return [w[f"model.layers.{i}.{name}.{kind}"] for kind in ("weight", "bias")]

        for name, dense in (
            ("q", attention.query_dense),
            ("k", attention.key_dense),
            ("v", attention.value_dense),
        ):
            weight, bias = of(f"attention.{name}_proj")
            dense.set_weights([weight.T.reshape(width, heads, size), bias.reshape(heads, size)])
        weight, bias = of("attention.o_proj")
        attention.output_dense.set_weights([weight.T.reshape(heads, size, width), bias])
        for layer, name in ((up, "mlp.up_proj"), (down, "mlp.down_proj")):
            weight, bias = of(name)
            layer.set_weights([weight.T, bias])
        first.set_weights(of("attention_norm"))
        second.set_weights(of("mlp_norm"))

    model.compile(
        optimizer=keras.optimizers.Adam(job.learning_rate, global_clipnorm=job.max_grad_norm),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    batches = job.load_batches().astype("int32")
    result = {"check": float(model.test_on_batch(batches[0, :, :-1], batches[0, :, 1:]))}
    for batch in batches:
        pipe.wait(**result)
        result = {"loss": float(model.train_on_batch(batch[:, :-1], batch[:, 1:]))}


if __name__ == "__main__":
    main()
