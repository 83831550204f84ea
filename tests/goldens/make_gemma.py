"""Write gemma.json: what Google's own libraries compute from tiny Gemmas with fixed weights.

In an environment of its own, of Python 3.12:

    pip install gemma==4.0.1 keras-hub==0.32.0
    KERAS_BACKEND=jax python tests/goldens/make_gemma.py

`gemma` (JAX, by Google DeepMind) is the reference for logits, embeddings, RoPE and windows, in float32
and in bfloat16; `keras-hub` for RMSNorm, which it computes in float32 whatever the model's dtype.
The tests import the part above `main`, which needs only numpy.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
LENGTH, WINDOW = 24, 6  # tokens of the prompt; keys that a local query sees
FAR = 4001  # a first position that bfloat16 rounds to 4000, and the next fifteen too
ROWS, COLUMNS = slice(None, None, 4), slice(None, None, 25)  # of the logits that are kept

# As the published config.json files have them: no layer types, RoPE in the old keys. Width 40, so
# that sqrt(width) is not a bfloat16 number, and a head dimension other than width / heads.
_COMMON: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 40,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gemma": {
        **_COMMON,
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "num_hidden_layers": 2,
        "num_key_value_heads": 1,
    },
    "gemma2": {  # queries scaled by width / heads, as in 27B
        **_COMMON,
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "num_hidden_layers": 4,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 10,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    "gemma3_text": {  # two base frequencies, positions of global layers divided by 8, as in 27B
        **_COMMON,
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "sliding_window": WINDOW,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 10,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
}


def ids() -> np.ndarray:
    """Token ids [1, LENGTH]; no special ones."""
    return np.random.default_rng(1).integers(6, 384, (1, LENGTH))


def norm() -> tuple[np.ndarray, np.ndarray]:
    """A weight [D] of RMSNorm, and inputs [4, D] of very different sizes."""
    rng = np.random.default_rng(2)
    sizes = np.array([[0.01], [1.0], [30.0], [1000.0]])
    weight, x = 0.3 * rng.standard_normal(40), sizes * rng.standard_normal((4, 40))
    return weight.astype(np.float32), x.astype(np.float32)


def weights(kind: str, seed: int = 0) -> dict[str, np.ndarray]:
    """All tensors by Hugging Face name, float32, drawn from numpy's PCG64 in the order of names.

    Large enough for soft caps, GELU's two forms and the attention's scale to show in the logits.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for name, shape in sorted(_shapes(kind).items()):
        x = rng.standard_normal(shape)
        if "norm" in name:
            x *= 0.3
        elif "embed_tokens" in name:
            x *= 0.5
        else:
            x *= (2 if ".q_proj" in name or ".k_proj" in name else 1) / np.sqrt(shape[-1])
        found[name] = x.astype(np.float32)
    return found


def _shapes(kind: str) -> dict[str, tuple[int, ...]]:
    c = CONFIGS[kind]
    d, heads, keys, head = (
        c[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim")
    )
    shapes = {
        "self_attn.q_proj": (heads * head, d),
        "self_attn.k_proj": (keys * head, d),
        "self_attn.v_proj": (keys * head, d),
        "self_attn.o_proj": (d, heads * head),
        "mlp.gate_proj": (c["intermediate_size"], d),
        "mlp.up_proj": (c["intermediate_size"], d),
        "mlp.down_proj": (d, c["intermediate_size"]),
        "input_layernorm": (d,),
        "post_attention_layernorm": (d,),
    }
    if kind != "gemma":
        shapes |= {"pre_feedforward_layernorm": (d,), "post_feedforward_layernorm": (d,)}
    if kind == "gemma3_text":
        shapes |= {"self_attn.q_norm": (head,), "self_attn.k_norm": (head,)}
    found = {
        f"model.layers.{i}.{name}.weight": shape
        for i in range(c["num_hidden_layers"])
        for name, shape in shapes.items()
    }
    return found | {"model.embed_tokens.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}


def main() -> None:
    """Compute and write the goldens."""
    # as the program says: XLA would leave out roundings to bfloat16 between operations
    os.environ["XLA_FLAGS"] = "--xla_allow_excess_precision=false"
    from importlib.metadata import version

    packages = ("gemma", "keras-hub", "keras", "jax", "flax", "numpy")
    result: dict[str, Any] = {
        "environment": {"python": platform.python_version()} | {p: version(p) for p in packages}
    }
    for kind in CONFIGS:
        result[kind] = {dtype: _forward(kind, dtype) for dtype in ("float32", "bfloat16")}
    result["norm"] = _norm()
    result["rope"] = [_rope(10_000, 1.0), _rope(1_000_000, 8.0)]
    text = json.dumps(result).replace("]], ", "]],\n").replace("], [", "],\n[")
    (HERE / "gemma.json").write_text(text + "\n")


def _list(x: Any) -> list[Any]:
    return [[float(f"{v:.7g}") for v in row] for row in np.asarray(x, np.float32).tolist()]


def _forward(kind: str, dtype: str) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp
    from gemma.gm.nn import _config, _modules, _transformer

    c = CONFIGS[kind]
    local, everywhere = _modules.AttentionType.LOCAL_SLIDING, _modules.AttentionType.GLOBAL
    layers = c["num_hidden_layers"]
    types = {
        "gemma": (everywhere,) * layers,
        "gemma2": (local, everywhere) * (layers // 2),
        "gemma3_text": _config.make_attention_layers_types(
            (local,) * 5 + (everywhere,), num_layers=layers
        ),
    }[kind]
    norms = _config.QueryPreAttentionNormalisation
    model = _transformer.Transformer(
        config=_config.TransformerConfig(
            num_embed=c["vocab_size"],
            embed_dim=c["hidden_size"],
            hidden_dim=c["intermediate_size"],
            num_heads=c["num_attention_heads"],
            head_dim=c["head_dim"],
            num_kv_heads=c["num_key_value_heads"],
            final_logit_softcap=c.get("final_logit_softcapping"),
            attn_logits_soft_cap=c.get("attn_logit_softcapping"),
            use_post_attn_norm=kind != "gemma",
            use_post_ffw_norm=kind != "gemma",
            use_qk_norm=kind == "gemma3_text",
            attention_types=types,
            query_pre_attn_norm=norms.BY_ONE_OVER_SQRT_HEAD_DIM
            if kind == "gemma"
            else norms.BY_ONE_OVER_SQRT_EMBED_DIM_DIV_NUM_HEADS,
            sliding_window_size=c.get("sliding_window"),
            local_base_frequency=10_000,
            global_base_frequency=int(c["rope_theta"]),
            global_scale_factor=c.get("rope_scaling", {}).get("factor", 1.0),
        ),
        dtype=dtype,
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), _nested(kind))
    tokens = jnp.asarray(ids())
    positions = jnp.arange(LENGTH)[None]
    near = model.apply({"params": params}, tokens, positions=positions)
    far = model.apply({"params": params}, tokens, positions=positions + FAR)
    embedder = _modules.Embedder(vocab_size=c["vocab_size"], embed_dim=c["hidden_size"])
    embedding = embedder.apply({"params": params["embedder"]}, tokens, method="encode")
    scores = jax.nn.log_softmax(near.logits[0, :-1].astype("float32"))
    loss = -jnp.take_along_axis(scores, tokens[0, 1:, None], axis=1).mean()
    first_seen = []  # for each layer, the first key that each query sees
    for of in types:
        mask = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
        if of is local:
            mask &= _modules.create_sliding_mask(positions, sliding_window_size=WINDOW)[0]
        first_seen.append(mask.argmax(axis=1).tolist())
    return {
        "logits": _list(near.logits[0, ROWS, COLUMNS]),
        "far": _list(far.logits[0, ROWS, COLUMNS]),
        "embedding": _list(embedding[0, :3]),
        "loss": float(loss),
        "first_seen": first_seen,
    }


def _nested(kind: str) -> dict[str, Any]:
    """The weights by the names and in the layouts of `gemma`."""
    c, w = CONFIGS[kind], weights(kind)
    heads, keys, head = (c[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    d = c["hidden_size"]
    found: dict[str, Any] = {
        "embedder": {"input_embedding": w["model.embed_tokens.weight"]},
        "final_norm": {"scale": w["model.norm.weight"]},
    }
    for i in range(c["num_hidden_layers"]):

        def of(name: str, i: int = i) -> np.ndarray:
            return w[f"model.layers.{i}.{name}.weight"]

        def split(name: str, n: int) -> np.ndarray:  # [N * H, D] to [N, D, H]
            return of(f"self_attn.{name}").reshape(n, head, d).transpose(0, 2, 1)  # noqa: B023

        attention: dict[str, Any] = {
            "q_einsum": {"w": split("q_proj", heads)},
            "kv_einsum": {"w": np.stack([split("k_proj", keys), split("v_proj", keys)])},
            "attn_vec_einsum": {"w": of("self_attn.o_proj").T.reshape(heads, head, d)},
        }
        if kind == "gemma3_text":
            attention["_query_norm"] = {"scale": of("self_attn.q_norm")}
            attention["_key_norm"] = {"scale": of("self_attn.k_norm")}
        norms = {"pre_attention_norm": "input_layernorm"}
        norms |= {"pre_ffw_norm": "post_attention_layernorm"}
        if kind != "gemma":
            norms |= {
                "post_attention_norm": "post_attention_layernorm",
                "pre_ffw_norm": "pre_feedforward_layernorm",
                "post_ffw_norm": "post_feedforward_layernorm",
            }
        found[f"layer_{i}"] = {
            "attn": attention,
            "mlp": {
                "gating_einsum": np.stack([of("mlp.gate_proj").T, of("mlp.up_proj").T]),
                "linear": of("mlp.down_proj").T,
            },
            **{theirs: {"scale": of(ours)} for theirs, ours in norms.items()},
        }
    return found


def _norm() -> list[Any]:
    """keras-hub's RMSNorm [4, D] in a bfloat16 model."""
    from keras_hub.src.models.gemma.rms_normalization import RMSNormalization

    weight, x = norm()
    layer = RMSNormalization(epsilon=1e-6, dtype="bfloat16")
    layer.build(x.shape)
    layer.set_weights([weight])
    return _list(layer(x.astype("bfloat16")))


def _rope(base: int, factor: float) -> dict[str, Any]:
    """Cosine and sine [P, H] of long positions, as `gemma` rotates a vector of ones and zeros."""
    import jax.numpy as jnp
    from gemma.gm.math import _positional_embeddings as rope

    positions = [0, 17, 1023, 8223, 32_867]  # bfloat16 rounds the last two to 8,192 and 32,768
    x = jnp.concatenate([jnp.ones(8), jnp.zeros(8)])[None, None, None]
    x = jnp.broadcast_to(x, (1, len(positions), 1, 16))
    turned = rope.apply_rope(x, jnp.asarray([positions]), base_frequency=base, scale_factor=factor)
    return {
        "base": base,
        "factor": factor,
        "positions": positions,
        "cos_sin": _list(turned[0, :, 0]),
    }


if __name__ == "__main__":
    main()
