"""The sizes of every published Gemma's language model: by Hub id, or read from a configuration."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.errors import UserError, nearest
from ft.files import read_json
from ft.models import tiny_vision
from ft.models.sources import check_config, pinned

SLIDING, FULL, RECURRENT = "sliding_attention", "full_attention", "recurrent"


@dataclass(frozen=True)
class Shape:
    """The sizes of a language model, by the names of its configuration."""

    family: str  # gemma, gemma2, gemma3_text, gemma3n_text, gemma4_text, recurrent_gemma
    hidden_size: int
    intermediate_size: int  # of one MLP, gate and up apart
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    layer_types: tuple[str, ...]  # one for each layer
    window: int = 0  # tokens that a sliding layer looks back
    max_position_embeddings: int = 8192
    softcap: bool = False  # of the final logits
    # Gemma 4: what its full-attention layers have instead
    global_head_dim: int = 0
    num_global_key_value_heads: int = 0
    attention_k_eq_v: bool = False  # their values are their keys
    # Gemma 3n and 4
    num_kv_shared_layers: int = 0  # the last ones take keys and values of earlier layers
    use_double_wide_mlp: bool = False  # of those layers
    hidden_size_per_layer_input: int = 0
    vocab_size_per_layer_input: int = 0
    # Gemma 4, mixture of experts
    num_experts: int = 0
    top_k_experts: int = 0
    moe_intermediate_size: int = 0
    # Gemma 3n
    laurel_rank: int = 0
    altup_num_inputs: int = 0
    sparse_layers: int = 0  # the first ones, whose MLP keeps few of its inputs
    # RecurrentGemma
    lru_width: int = 0
    conv1d_width: int = 0
    towers: int = 0  # parameters of image and audio towers and their projectors, about
    stored: int = 2  # bytes of a weight in its file

    def kv_shared(self, layer: int) -> bool:
        """Whether a layer has no keys and values of its own."""
        return layer >= self.num_hidden_layers - self.num_kv_shared_layers


def _pattern(every: int, layers: int) -> tuple[str, ...]:
    """Layers of which each ``every``th attends to all, and so does the last."""
    kinds = [FULL if (i + 1) % every == 0 else SLIDING for i in range(layers)]
    return (*kinds[:-1], FULL)


def _gemma(hidden: int, inner: int, layers: int, heads: int, kv: int, **more: Any) -> Shape:
    kinds = (FULL,) * layers
    return Shape("gemma", hidden, inner, layers, heads, kv, 256, 256_000, kinds, **more)


def _gemma2(hidden: int, inner: int, layers: int, heads: int, kv: int, head: int = 256) -> Shape:
    kinds = tuple((SLIDING, FULL)[i % 2] for i in range(layers))
    return Shape("gemma2", hidden, inner, layers, heads, kv, head, 256_000, kinds, 4096, 8192, True)


def _gemma3(
    hidden: int, inner: int, layers: int, heads: int, kv: int, head: int = 256, **more: Any
) -> Shape:
    kinds = tuple(FULL if (i + 1) % 6 == 0 else SLIDING for i in range(layers))
    values: dict[str, Any] = {
        "vocab_size": 262_208,
        "window": 1024,
        "max_position_embeddings": 131_072,
    } | more
    return Shape("gemma3_text", hidden, inner, layers, heads, kv, head, layer_types=kinds, **values)


def _gemma3n(inner: int, layers: int, shared: int) -> Shape:
    return Shape(
        "gemma3n_text",
        *(2048, inner, layers, 8, 2, 256, 262_400),
        tuple(FULL if (i + 1) % 5 == 0 else SLIDING for i in range(layers)),
        window=512,
        max_position_embeddings=32_768,
        softcap=True,
        num_kv_shared_layers=shared,
        hidden_size_per_layer_input=256,
        vocab_size_per_layer_input=262_144,
        laurel_rank=64,
        altup_num_inputs=4,
        sparse_layers=10,
        towers=983_000_000,
    )


def _gemma4(
    hidden: int, inner: int, layers: int, heads: int, kv: int, every: int = 6, **more: Any
) -> Shape:
    values: dict[str, Any] = {
        "window": 1024,
        "max_position_embeddings": 262_144,
        "global_head_dim": 512,
    } | more
    values = {"softcap": True} | values
    kinds = _pattern(every, layers)
    return Shape("gemma4_text", hidden, inner, layers, heads, kv, 256, 262_144, kinds, **values)


def _recurrent(hidden: int, inner: int, layers: int, heads: int) -> Shape:
    kinds = tuple((RECURRENT, RECURRENT, SLIDING)[i % 3] for i in range(layers))
    return Shape(
        *("recurrent_gemma", hidden, inner, layers, heads, 1, 256, 256_000, kinds),
        window=2049,  # with the token itself
        softcap=True,
        lru_width=hidden,
        conv1d_width=4,
    )


_SMALL = {
    "window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262_144,
    "max_position_embeddings": 131_072,
}
_TEXT = {"vocab_size": 262_144, "window": 512, "max_position_embeddings": 32_768}
_SIGLIP = 416_866_032  # Gemma 3's image tower

# By the end of a Hub id of google's; `-it`, `-pt` and their like have the same shape.
TABLE = {
    "gemma-2b": _gemma(2048, 16384, 18, 8, 1),
    "gemma-7b": _gemma(3072, 24576, 28, 16, 16),
    "gemma-2-2b": _gemma2(2304, 9216, 26, 8, 4),
    "gemma-2-9b": _gemma2(3584, 14336, 42, 16, 8),
    "gemma-2-27b": _gemma2(4608, 36864, 46, 32, 16, 128),
    "gemma-3-270m": _gemma3(640, 2048, 18, 4, 1, **_TEXT),
    "gemma-3-1b": _gemma3(1152, 6912, 26, 4, 1, **_TEXT),
    "gemma-3-4b": _gemma3(2560, 10240, 34, 8, 4, towers=_SIGLIP + 1152 * (2560 + 1)),
    "gemma-3-12b": _gemma3(3840, 15360, 48, 16, 8, towers=_SIGLIP + 1152 * (3840 + 1)),
    "gemma-3-27b": _gemma3(5376, 21504, 62, 32, 16, 128, towers=_SIGLIP + 1152 * (5376 + 1)),
    "gemma-3n-E2B": _gemma3n(8192, 30, 10),
    "gemma-3n-E4B": _gemma3n(16384, 35, 15),
    "gemma-4-E2B": _gemma4(
        *(1536, 6144, 35, 8, 1, 5),
        num_kv_shared_layers=20,
        use_double_wide_mlp=True,
        towers=470_000_000,
        **_SMALL,
    ),
    "gemma-4-E4B": _gemma4(
        2560, 10240, 42, 8, 2, num_kv_shared_layers=18, towers=470_000_000, **_SMALL
    ),
    "gemma-4-12B": _gemma4(
        3840, 15360, 48, 16, 8, num_global_key_value_heads=1, attention_k_eq_v=True
    ),
    "gemma-4-26B-A4B": _gemma4(
        *(2816, 2112, 30, 16, 8),
        num_global_key_value_heads=2,
        attention_k_eq_v=True,
        num_experts=128,
        top_k_experts=8,
        moe_intermediate_size=704,
        towers=570_000_000,
    ),
    "gemma-4-31B": _gemma4(
        *(5376, 21504, 60, 32, 16),
        num_global_key_value_heads=4,
        attention_k_eq_v=True,
        towers=570_000_000,
    ),
    "recurrentgemma-2b": _recurrent(2560, 7680, 26, 10),
    "recurrentgemma-9b": _recurrent(4096, 12288, 38, 16),
}

# What a config.json may leave out, by transformers' configuration classes.
DEFAULTS = {
    "gemma": TABLE["gemma-7b"],
    "gemma2": TABLE["gemma-2-2b"],
    "gemma3_text": _gemma3(2304, 9216, 26, 8, 4, window=4096),
    "gemma3n_text": TABLE["gemma-3n-E4B"],
    "gemma4_text": _gemma4(2304, 9216, 30, 8, 4, softcap=False, **_SMALL),
    "recurrent_gemma": TABLE["recurrentgemma-2b"],
}

_SAME = {"gemma-1.1-": "gemma-", "codegemma-1.1-": "gemma-", "codegemma-": "gemma-"}


def of(name: str) -> Shape:
    """The shape of a model by Hub id, local folder, ``embedded`` or ``tiny-vision``; nothing is downloaded or made.

    Raises ``UserError`` for an id that is not in the table, and for a folder of another model.
    """
    if name == "embedded":
        return dataclasses.replace(TABLE["gemma-3-270m"], stored=4)
    if name == "tiny-vision":
        return from_config(tiny_vision.CONFIG)
    folder = Path(name).expanduser()
    if folder.is_dir():
        try:
            raw = read_json(folder / "config.json")
            check_config(raw, folder / "config.json")
            return from_config(raw)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{name}: no readable config.json, so its shape is not known."
            ) from None
    name, _ = pinned(name)
    key = re.sub(r"-(it|pt)$", "", name.removeprefix("google/"))
    for prefix, same in _SAME.items():
        key = re.sub(f"^{re.escape(prefix)}", same, key)
    by_lower = {known.lower(): shape for known, shape in TABLE.items()}
    if key.lower() not in by_lower or ("/" in name and not name.startswith("google/")):
        known = [f"google/{key}" for key in TABLE]
        raise UserError(
            f"the shape of {name!r} is not known. Give a local folder with its config.json, "
            f"`embedded`, or one of {', '.join(known)} (also with -it)." + nearest(name, known)
        )
    return by_lower[key.lower()]


def from_config(config: Mapping[str, Any]) -> Shape:
    """The shape that a configuration describes, as ``config.json`` or ``to_dict()`` has it.

    Raises ``UserError`` for a model that is no Gemma.
    """
    text = {**config, **config.get("text_config", {})}
    family = str(text.get("model_type", ""))
    family = {"gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text"}.get(
        family,
        family.replace("gemma4_unified", "gemma4").replace("gemma4_text_text", "gemma4_text"),
    )
    family = "gemma4_text" if family == "gemma4" else family
    base = DEFAULTS.get(family)
    if base is None:
        raise UserError(
            f"model type {config.get('model_type')!r} has no known shape; known: "
            f"{', '.join(DEFAULTS)}."
        )
    given = {f.name for f in dataclasses.fields(Shape)} & {
        k for k, v in text.items() if v is not None
    }
    values: dict[str, Any] = {name: text[name] for name in given - {"layer_types"}}
    layers = values.get("num_hidden_layers", base.num_hidden_layers)
    kinds = text.get("layer_types") or (base.layer_types * layers)[:layers]
    if family == "recurrent_gemma":
        blocks = list(text.get("block_types") or (RECURRENT, RECURRENT, "attention"))
        kinds = [RECURRENT if b == RECURRENT else SLIDING for b in (blocks * layers)[:layers]]
        hidden = values.get("hidden_size", base.hidden_size)
        heads = values.get("num_attention_heads", base.num_attention_heads)
        values["intermediate_size"] = values.get("intermediate_size", 7680) // 2
        values["head_dim"] = hidden // heads
        values["num_key_value_heads"] = values.get("num_key_value_heads") or heads
        values["lru_width"] = values.get("lru_width") or hidden
    if family == "gemma3n_text":
        sparsity = text.get("activation_sparsity_pattern") or [0.95] * 10
        values["sparse_layers"] = sum(share > 0 for share in sparsity)
    if family == "gemma4_text":
        values |= _widest(text)
        if not text.get("enable_moe_block"):
            values |= {"num_experts": 0, "top_k_experts": 0, "moe_intermediate_size": 0}
    if isinstance(inner := values.get("intermediate_size"), list | tuple):
        values["intermediate_size"] = inner[0]
    reach = text.get("sliding_window", text.get("attention_window_size"))
    if reach is not None:
        values["window"] = reach + (family == "recurrent_gemma")
    stored = 4 if "32" in str(config.get("dtype") or config.get("torch_dtype") or "") else 2
    cap = text.get("final_logit_softcapping", text.get("logits_soft_cap", base.softcap))
    return dataclasses.replace(
        base, **values, layer_types=tuple(kinds), softcap=bool(cap), towers=0, stored=stored
    )


def _widest(text: Mapping[str, Any]) -> dict[str, int]:
    """What Gemma 4's full-attention layers have, in the configuration's old and new spelling."""
    layers = (text.get("per_layer_config") or {}).values()
    head = [c["head_dim"] for c in layers if "head_dim" in c]
    kv = [c["num_key_value_heads"] for c in layers if "num_key_value_heads" in c]
    return {
        "global_head_dim": max(head, default=text.get("global_head_dim") or 512),
        "num_global_key_value_heads": max(kv, default=text.get("num_global_key_value_heads") or 0),
    }
