"""What vLLM loads of an adapter and of a merged folder, by the names of its Gemma classes: others it leaves out silently."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.files import read_json, weight_files
from ft.models import lora_starts
from ft.models.parameters import in_language_model

VERSION = "0.33.0"  # of vLLM, whose source these names were read from
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes; without it 16
_LAYER = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_EACH = r"layers\.\d+\.per_layer_(input_gate|projection)|per_layer_model_projection"
_INSIDE = "language_model.model."  # where a multimodal class has its text model
_HEAD = ("lm_head.", "language_model.lm_head.")


@dataclass(frozen=True)
class Names:
    """How a class of vLLM calls what a checkpoint and an adapter have."""

    root: str = "model."  # its text model
    renamed: tuple[tuple[str, str], ...] = ()  # beginnings of names, one after the other
    adapted: str = _LAYER  # modules under the root that take LoRA
    lora: bool = True  # whether it takes an adapter at all
    own_head: bool = True  # whether its head can be another matrix than its embedding


_WRAPPED = (("model.language_model.", _INSIDE), _HEAD)
_TOWERS = tuple(
    (f"model.{name}.", f"{name}.")
    for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio", "vision_embedder")
)
_GEMMA4 = Names(_INSIDE, (*_TOWERS, *_WRAPPED, ("model.", _INSIDE)), f"{_LAYER}|{_EACH}")
NAMES = {  # by model_type
    "gemma": Names(),
    "gemma2": Names(own_head=False),
    "gemma3_text": Names(),
    "gemma3": Names(
        _INSIDE,
        (*_WRAPPED, *_TOWERS, ("model.multi_modal_projector.", "multi_modal_projector.")),
    ),
    "gemma3n_text": Names(lora=False, own_head=False),
    "gemma3n": Names(
        _INSIDE, (*_TOWERS, *_WRAPPED, ("model.", _INSIDE)), lora=False, own_head=False
    ),
    "gemma4_text": Names("model.", (("model.language_model.", "model."),), f"{_LAYER}|{_EACH}"),
    "gemma4": _GEMMA4,
    "gemma4_unified": _GEMMA4,
}
_REFUSED = {  # keys of an adapter's configuration that vLLM refuses, in words
    "use_dora": "DoRA",
    "modules_to_save": "modules_to_save",
    "lora_bias": "lora_bias",
    "trainable_token_indices": "trainable tokens",
    "use_qalora": "QALoRA",
}


@dataclass(frozen=True)
class Taken:
    """What becomes of an adapter in vLLM."""

    modules: int
    ignored: tuple[str, ...] = ()  # modules whose names it does not have: the base answers there
    halved: tuple[str, ...] = ()  # whose change reaches keys, not the values made of them
    refused: str = ""  # why it does not start with it
    start: str = ""  # by which the adapter took a part of its base, which it does not look at
    rank: int = 0

    def __str__(self) -> str:
        if self.refused:
            return f"the adapter alone is refused there: {self.refused}"
        if self.start:
            return (
                f"of the adapter alone it takes no notice that it began as a part of its base ({self.start}), and "
                "answers otherwise: serve the merged folder"
            )
        lost = (*self.ignored, *self.halved)
        if not lost:
            rank = next((r for r in RANKS if r >= self.rank), self.rank)
            return f"the adapter alone: all {self.modules} modules are loaded (--enable-lora --max-lora-rank {rank})"
        return (
            f"of the adapter alone {len(lost)} of {self.modules} modules are left out in whole or in part, such as "
            f"{lost[0]}, and nothing is said: serve the merged folder"
        )


def adapter(folder: Path, config: Mapping[str, Any]) -> Taken:
    """What vLLM makes of the adapter in ``folder`` on a model of this ``config.json``."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="np") as weights:
        return taken(list(weights.keys()), read_json(folder / "adapter_config.json"), config)


def taken(tensors: Iterable[str], values: Mapping[str, Any], config: Mapping[str, Any]) -> Taken:
    """The same by the adapter's names of tensors and the ``values`` of its configuration."""
    kind, text = config["model_type"], {**config, **(config.get("text_config") or {})}
    names = NAMES.get(kind)
    modules = sorted(
        {re.sub(r"\.lora_.*$", "", t.removeprefix("base_model.model.")) for t in tensors}
    )
    rank = max([values.get("r", 0), *(values.get("rank_pattern") or {}).values()])
    if names is None or not names.lora:
        return Taken(len(modules), refused=f"its class of {kind} takes none")
    said = [word for key, word in _REFUSED.items() if values.get(key)]
    said += ["bias"] * (values.get("bias", "none") != "none")
    on = [
        name
        for name in modules
        if re.search(r"(^|\.)(embed_tokens\w*|lm_head|router|experts)\b", name)
    ]
    if on and not said:
        said = [f"LoRA on {on[0]}"]
    if said:
        return Taken(len(modules), refused=", ".join(said))
    ignored = [m for m in modules if not _has(names, m)]
    shared = _values_of_keys(text)
    halved = [m for m in modules if m.endswith(".k_proj") and _layer(m) in shared]
    start = values.get("init_lora_weights")
    within = start if start in lora_starts.WITHIN else ""
    return Taken(len(modules), tuple(ignored), tuple(halved), rank=rank, start=within)


def merged(folder: Path) -> str:
    """Why vLLM does not load a merged folder, or nothing where it does."""
    from safetensors import safe_open

    config = read_json(folder / "config.json")
    names = NAMES.get(config["model_type"])
    if names is None:
        return f"vLLM {VERSION} has no class for {config['model_type']}"
    text = {**(config.get("text_config") or {}), **config}
    if not text.get("tie_word_embeddings", True) and not names.own_head:
        return (
            f"the head is no longer the embedding, and vLLM {VERSION}'s {config['model_type']} has one matrix for "
            "both"
        )
    for file in weight_files(folder):
        with safe_open(file, framework="np") as weights:
            for name in weights.keys():  # noqa: SIM118  # not a dict
                if in_language_model(name) and not _named(names, name).startswith(
                    (names.root, names.root.removesuffix("model.") + "lm_head.")
                ):
                    return f"vLLM {VERSION} has no place for {name}"
    return ""


def line(adapter_folder: Path, folder: Path) -> str:
    """What to say of vLLM beside a merged ``folder`` and the adapter that it was made of."""
    if why := merged(folder):
        return f"vLLM: {why}"
    alone = adapter(adapter_folder, read_json(folder / "config.json"))
    return f"vLLM {VERSION} loads this folder (vllm serve {folder}); {alone}"


def _named(names: Names, name: str) -> str:
    for old, new in names.renamed:
        if name.startswith(old):
            name = new + name.removeprefix(old)
    return name


def _has(names: Names, module: str) -> bool:
    found = _named(names, module)
    return found.startswith(names.root) and bool(
        re.fullmatch(names.adapted, found.removeprefix(names.root))
    )


def _layer(module: str) -> int:
    return int(re.search(r"layers\.(\d+)\.", module).group(1))  # pyright: ignore[reportOptionalMemberAccess]


def _values_of_keys(text: Mapping[str, Any]) -> set[int]:
    """The layers whose values are their keys, so that one matrix makes both: Gemma 4's of 26B and 31B."""
    if not text.get("attention_k_eq_v"):
        return set()
    kinds = text.get("layer_types") or []
    return {i for i, kind in enumerate(kinds) if kind == "full_attention"}
