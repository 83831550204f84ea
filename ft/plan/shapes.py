"""The sizes of a Gemma's language model: looked up by Hub id, or read from a configuration."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft.errors import UserError, nearest
from ft.models import tiny_vision
from ft.plan.known_shapes import DEFAULTS, RECURRENT, SLIDING, TABLE
from ft.plan.known_shapes import Shape as Shape

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
            return from_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"{name}: no readable config.json, so its shape is not known."
            ) from None
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
