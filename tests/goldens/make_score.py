"""Write score.json: what keras-hub's own `score` gives for the tiny Gemma 1 and Gemma 2 of make_gemma.py.

In an environment of its own, of Python 3.12:

    pip install keras-hub==0.32.0
    cd tests && KERAS_BACKEND=tensorflow python -m goldens.make_score

TensorFlow's tape takes the gradients, as the docstring of `GemmaCausalLM.score` shows. The tests
import the part above `main`, which needs only numpy.
"""

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
from goldens.make_gemma import CONFIGS as GEMMA
from goldens.make_gemma import weights

HERE = Path(__file__).parent
# keras-hub 0.32 scales queries by the head dimension whatever it is told: right for 2B and 9B, not 27B
CONFIGS = {"gemma": GEMMA["gemma"], "gemma2": GEMMA["gemma2"] | {"query_pre_attn_scalar": 16}}
LENGTHS = (24, 15)  # tokens of each row; what follows them is padding
EVERY = (slice(None), slice(None, None, 4), slice(None, None, 25))  # of the logits that are kept
WIDE = (slice(None), slice(None, None, 4), slice(None, None, 5))  # of activations and gradients
CHANGED, FACTOR = 0, -0.5  # a block whose output is multiplied


def ids() -> np.ndarray:
    """Token ids [2, 24]; no special ones but the padding's 0."""
    found = np.random.default_rng(5).integers(6, 384, (2, max(LENGTHS)))
    return np.where(mask(), found, 0)


def mask() -> np.ndarray:
    """1 at each token and 0 at padding, [2, 24]."""
    return (np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]).astype(np.int64)


def targets() -> np.ndarray:
    """The next id of each position, and the row's first for its last, [2, 24]."""
    return np.roll(ids(), -1, axis=1)


def main() -> None:
    """Compute and write the goldens."""
    from importlib.metadata import version

    packages = ("keras-hub", "keras", "tensorflow", "numpy")
    result: dict[str, Any] = {
        "environment": {"python": platform.python_version()} | {p: version(p) for p in packages}
    }
    result |= {kind: _scores(kind) for kind in CONFIGS}
    text = json.dumps(result).replace("]], ", "]],\n").replace("], [", "],\n[")
    (HERE / "score.json").write_text(text + "\n")


def _list(x: Any) -> Any:
    return json.loads(json.dumps(np.asarray(x, np.float64).tolist()), parse_float=_short)


def _short(text: str) -> float:
    return float(f"{float(text):.7g}")


def _scores(kind: str) -> dict[str, Any]:
    import tensorflow as tf

    model = _model(kind)
    seen: dict[int, Any] = {}

    def watch(x: Any, i: int) -> Any:
        tape.watch(x)
        seen[i] = x
        return x

    with tf.GradientTape(persistent=True, watch_accessed_variables=False) as tape:
        loss = model.score(ids(), mask(), "loss", layer_intercept_fn=watch, target_ids=targets())
        real = tf.reduce_sum(loss * mask())
    changed = model.score(
        ids(), mask(), layer_intercept_fn=lambda x, i: x * FACTOR if i == CHANGED else x
    )
    return {
        "logits": _list(model.score(ids(), mask())[EVERY]),
        "loss": _list(loss),
        "activations": [_list(seen[i][WIDE]) for i in sorted(seen)],  # from -1 on
        "gradients": [_list(tape.gradient(real, seen[i])[WIDE]) for i in sorted(seen)],
        "changed": _list(changed[EVERY]),
    }


def _model(kind: str) -> Any:
    """keras-hub's model with the weights of make_gemma.py."""
    from keras_hub.models import GemmaBackbone, GemmaCausalLM
    from keras_hub.src.utils.transformers import convert_gemma

    config, tensors = CONFIGS[kind], weights(kind)
    backbone = GemmaBackbone(**convert_gemma.convert_backbone_config(config), dtype="float32")

    class Loader:
        """What keras-hub reads a Hugging Face folder with, over the tensors at hand."""

        def port_weight(self, keras_variable: Any, hf_weight_key: str, hook_fn: Any = None) -> None:
            x = tensors[hf_weight_key]
            keras_variable.assign(hook_fn(x, list(keras_variable.shape)) if hook_fn else x)

    convert_gemma.convert_weights(backbone, Loader(), config)
    return GemmaCausalLM(backbone=backbone)


if __name__ == "__main__":
    main()
