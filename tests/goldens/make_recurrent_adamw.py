"""Write recurrent_adamw.json: the losses of 60 AdamW steps of a RecurrentGemma in JAX, in fp64 and in fp32.

In the environment of `make_recurrent.py`, with optax:

    python tests/goldens/make_recurrent_adamw.py fp64
    python tests/goldens/make_recurrent_adamw.py fp32

Google's `recurrentgemma` computes loss and gradients, optax the steps, on rows of up to 100 tokens and from
the weights of `make_recurrent.py`. In fp64 what the library calls float32 is float64. The tests import the
part above `main`, which needs only numpy.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
FILE = HERE / "recurrent_adamw.json"
STEPS, RATE, DECAY, BETAS, EPSILON = 60, 0.003, 0.1, (0.9, 0.96), 1e-8
LONGEST = 100  # tokens of a row
WORDS = 96  # of the vocabulary


def rows() -> list[np.ndarray]:
    """Token ids [1, length], one row for each step, without special ones."""
    rng = np.random.default_rng(0)
    return [rng.integers(6, WORDS, (1, n)) for n in rng.integers(20, LONGEST + 1, STEPS)]


def decays(path: tuple[str, ...]) -> bool:
    """What decays by Google's tutorial (colabs/fine_tuning_tutorial_jax.ipynb): not RG-LRU, embeddings, biases, scales."""
    spared = {"rg_lru", "embedder"} & {*path}
    return not spared and path[-1] not in ("b", "bias", "scale")


def main(precision: str) -> None:
    """Train, and write the losses under the precision's name."""
    import platform
    from importlib.metadata import version

    import jax
    import jax.numpy as jnp

    double = precision == "fp64"
    if double:
        jax.config.update("jax_enable_x64", True)
        jnp.float32 = jnp.float64
    import make_recurrent
    import optax
    from recurrentgemma import conversion
    from recurrentgemma.jax import griffin
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    source = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**make_recurrent.CONFIG))
    make_recurrent.fill(source)
    state = make_recurrent.theirs(source.state_dict())
    params: Any = conversion.pytorch_state_dict_to_flax_params(
        {f"params.{name}": value for name, value in state.items()}
    )
    kind = np.float64 if double else np.float32
    params = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, dtype=kind)), params)
    model = griffin.Griffin(make_recurrent.their_config())

    def mask(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda p, _: decays(tuple(k.key for k in p)), tree)

    b1, b2 = BETAS
    optimizer = optax.adamw(RATE, b1=b1, b2=b2, eps=EPSILON, weight_decay=DECAY, mask=mask)

    def loss_of(params: Any, ids: Any, positions: Any, weight: Any) -> Any:
        logits, _ = model.apply(params, tokens=ids, segment_pos=positions, return_cache=False)
        chances = jax.nn.log_softmax(logits[:, :-1])
        found = jnp.take_along_axis(chances, ids[:, 1:, None], axis=-1)[..., 0]
        return -jnp.sum(found * weight[:, 1:]) / jnp.sum(weight[:, 1:])

    @jax.jit
    def step(params: Any, states: Any, *given: Any) -> Any:
        loss, gradients = jax.value_and_grad(loss_of)(params, *given)
        updates, states = optimizer.update(gradients, states, params)
        return loss, optax.apply_updates(params, updates), states

    states, losses = optimizer.init(params), []
    for ids in rows():
        length = ids.shape[1]
        padded = np.pad(ids, ((0, 0), (0, LONGEST - length)))  # behind what counts: nothing sees it
        at = np.minimum(np.arange(LONGEST), length - 1)[None]
        weight = (np.arange(LONGEST) < length)[None].astype(kind)
        loss, params, states = step(params, states, padded, at, weight)
        assert loss.dtype == kind
        losses.append(float(loss))
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    packages = ("recurrentgemma", "jax", "optax", "flax", "numpy")
    found["environment"] = {"python": platform.python_version()} | {p: version(p) for p in packages}
    found[precision] = losses
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
