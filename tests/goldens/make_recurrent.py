"""Write recurrent.json: what Google's `recurrentgemma` computes beyond its window, packed, and decoding.

In an environment of its own:

    pip install "recurrentgemma[full]==1.0.1" torch==2.13.0 transformers==5.23.0
    python tests/goldens/make_recurrent.py

JAX computes the logits, and Google's own PyTorch port must agree with it to 1e-5; that port generates.
The tests import the part above `main`, which needs only numpy.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
CONFIG: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 96,  # of both halves
    "num_hidden_layers": 6,  # two of attention
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "lru_width": 32,
    "attention_window_size": 8,
}
PROMPT = 20  # tokens that generation starts from
NEW = 12  # tokens that it writes
DOCUMENTS = (17, 3, 1, 19)  # lengths, packed into one row
COLUMNS = slice(None, None, 12)  # of the logits that are kept


def ids(length: int) -> np.ndarray:
    """Token ids [1, length], no special ones."""
    return np.random.default_rng(1).integers(6, CONFIG["vocab_size"], (1, length))


def positions(*lengths: int) -> np.ndarray:
    """Positions [1, T] of documents in one row."""
    return np.concatenate([np.arange(n) for n in lengths])[None]


def fill(model: Any) -> None:
    """Set all parameters of a transformers model, in the order of their names, from numpy's PCG64.

    Large enough for a token more or less in a window or a convolution to show in the logits.
    """
    import torch

    rng = np.random.default_rng(0)
    for name, parameter in sorted(model.named_parameters()):
        x = rng.standard_normal(parameter.shape)
        if "norm" in name or name.endswith("bias"):
            x *= 0.2
        elif name.endswith("recurrent_param"):
            x = rng.uniform(-4, 1, parameter.shape)  # a long memory and a short one
        elif name.endswith("embed_tokens.weight"):
            x *= 0.15  # a larger one would make the model repeat its last token
        elif name.endswith("conv_1d.weight"):
            x *= 0.5
        else:
            x /= np.sqrt(parameter.shape[1 if "gate_weight" in name else -1])
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(x))


def main() -> None:
    """Compute and write the goldens."""
    import platform
    from importlib.metadata import version

    import jax.numpy as jnp
    import torch
    from recurrentgemma import conversion
    from recurrentgemma.jax import griffin as in_jax
    from recurrentgemma.torch import griffin as in_torch
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    source = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**CONFIG))
    fill(source)
    config = their_config()
    state = theirs(source.state_dict())
    port = in_torch.Griffin(config, gradient_checkpointing=False)
    port.load_state_dict(state)
    params = conversion.pytorch_state_dict_to_flax_params(
        {f"params.{name}": value for name, value in state.items()}
    )

    def logits(tokens: np.ndarray, at: np.ndarray) -> list[list[float]]:
        found, _ = in_jax.Griffin(config).apply(
            params, tokens=jnp.asarray(tokens), segment_pos=jnp.asarray(at), return_cache=False
        )
        with torch.no_grad():
            again, _ = port(torch.from_numpy(tokens), torch.from_numpy(at))
        np.testing.assert_allclose(again.numpy(), found, atol=1e-5)
        rows = np.asarray(found)[0, :, COLUMNS]
        return [[float(f"{x:.7g}") for x in row] for row in rows.tolist()]

    def generated() -> list[int]:
        prompt = torch.from_numpy(ids(PROMPT))
        at, chosen = torch.arange(PROMPT)[None], []
        with torch.no_grad():
            found, cache = port(prompt, at)
            while True:
                chosen.append(int(found[0, -1].argmax()))
                if len(chosen) == NEW:
                    return chosen
                at = at[:, -1:] + 1
                found, cache = port(torch.tensor([chosen[-1:]]), at, cache)

    total = sum(DOCUMENTS)
    packages = ("recurrentgemma", "jax", "flax", "torch", "numpy")
    result = {
        "environment": {"python": platform.python_version()} | {p: version(p) for p in packages},
        "one_document": logits(ids(total), positions(total)),
        "packed": logits(ids(total), positions(*DOCUMENTS)),
        "generated": generated(),
    }
    text = json.dumps(result).replace("]], ", "]],\n").replace("], [", "],\n[")
    (HERE / "recurrent.json").write_text(text + "\n")


def their_config() -> Any:
    """The same sizes as Google's library names them."""
    from recurrentgemma import common

    kinds = (common.TemporalBlockType.RECURRENT,) * 2 + (common.TemporalBlockType.ATTENTION,)
    return common.GriffinConfig(
        vocab_size=CONFIG["vocab_size"],
        width=CONFIG["hidden_size"],
        mlp_expanded_width=CONFIG["intermediate_size"] // 2,
        num_heads=CONFIG["num_attention_heads"],
        block_types=kinds * (CONFIG["num_hidden_layers"] // 3),
        embeddings_scale_by_sqrt_dim=True,
        attention_window_size=CONFIG["attention_window_size"],
        logits_soft_cap=30.0,
    )


def theirs(state: dict[str, Any]) -> dict[str, Any]:
    """The weights by the names and in the layouts of Google's PyTorch port."""
    import re

    import torch

    names = {
        "conv_1d.bias": "conv_1d.b",
        "rg_lru.recurrent_param": "rg_lru.a_param",
        "rg_lru.input_gate_weight": "rg_lru.input_gate.w",
        "rg_lru.input_gate_bias": "rg_lru.input_gate.b",
        "rg_lru.recurrent_gate_weight": "rg_lru.a_gate.w",
        "rg_lru.recurrent_gate_bias": "rg_lru.a_gate.b",
        "o_proj.": "proj_final.",
        "q_proj.": "proj_q.",
        "k_proj.": "proj_k.",
        "v_proj.": "proj_v.",
        "down_proj.": "ffw_down.",
        "embed_tokens.weight": "embedder.input_embedding",
        "norm.weight": "norm.scale",
    }
    found = {}
    for name, value in state.items():
        if name == "lm_head.weight" or "up_proj" in name:
            continue
        block = "attention" if re.search("[qkvo]_proj", name) else "recurrent"
        name = name.removeprefix("model.").replace("layers.", "blocks.")
        name = name.replace("temporal_block", f"{block}_block")
        if name.endswith("conv_1d.weight"):
            name, value = name.replace("weight", "w"), value[:, 0].T.contiguous()
        elif "gate_proj" in name:  # one tensor of theirs holds both halves
            half = f"model.{name.replace('blocks.', 'layers.').replace('gate_proj', 'up_proj')}"
            value = torch.stack([value, state[half]])
            value = value.mT.contiguous() if name.endswith("weight") else value[:, None, None]
            name = name.replace("gate_proj.weight", "ffw_up.w").replace(
                "gate_proj.bias", "ffw_up.b"
            )
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        found[name] = value
    return found


if __name__ == "__main__":
    main()
