"""Find a base model by Hub id, local folder or ``embedded``, or say in one line what is wrong; its licence.

``ft.models.embedded`` is imported lazily, inside the function that needs it.
"""

import json
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ft.errors import UserError, hub_errors, nearest
from ft.files import read_json, weight_files

EMBEDDED = "google/gemma-3-270m"  # the Hub id of the model that `embedded` is
# By the start of the base model's name; the terms of Gemma 1 to 3 ask for the first sentence.
LICENSES = {
    "gemma-4": ("apache-2.0", "{} is under the Apache License 2.0 (ai.google.dev/gemma/apache_2)."),
    "gemma": (
        "gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms. They cover what lies here too, which modifies {}.",
    ),
}
LICENSES["recurrentgemma"] = LICENSES["gemma"]
# what the Hub's id of a licence stands for
TERMS = {
    "gemma": "Gemma Terms of Use (ai.google.dev/gemma/terms)",
    "apache-2.0": "Apache License 2.0",
}
SUPPORTED = (
    ("gemma", "gemma2", "gemma3_text", "gemma3", "gemma3n_text", "gemma3n", "gemma4_text", "gemma4")
    + ("gemma4_unified_text", "gemma4_unified")
    + ("recurrent_gemma", "minigpt")
)
_FEW_BITS = (
    r"(-unsloth)?-(bnb|nf4|[48]bit|gptq|awq|int[48]|w4a16)\b.*$"  # ends of quantised copies' names
)
_HEADER = 100_000_000  # bytes; a safetensors file has no longer one
_TEXTS = ["*.json", "*.jinja", "tokenizer.model"]
_OFFLINE = "Use `embedded`, or a local folder, or connect once so that the Hub's cache has it."


def resolve(name: str) -> str | Path:
    """The local folder that ``name`` means, or its Hub id, with ``@revision`` behind it where it has one; no network.

    ``embedded`` and ``tiny-vision`` are made on first use. Raises ``UserError`` for a folder that is not a model, and
    for a name that is neither.
    """
    if name == "embedded":
        from ft.models import embedded

        return embedded.folder()
    if name == "tiny-vision":
        from ft.models import tiny_vision

        return tiny_vision.folder()
    path = Path(name).expanduser()
    if path.is_dir():
        return _checked(path.resolve(), name)
    if path.is_file() or path.suffix in {".gguf", ".bin", ".safetensors"}:
        raise UserError(
            f"model {name!r} is one file. Give the folder of a Hugging Face model (config.json and "
            "*.safetensors), a Hub id, or `embedded`. GGUF files and pickles are not loaded."
        )
    if re.fullmatch(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+(@[\w.-]+)?", name):
        return name
    raise UserError(
        f"model {name!r} is neither a folder here, nor a Hub id such as {EMBEDDED}, nor `embedded`."
        + nearest(name, ["embedded"])
    )


def published_name(name: str) -> str:
    """What others can load the same base by: a Hub id, or the full path of a local folder."""
    return EMBEDDED if name == "embedded" else pinned(str(resolve(name)))[0]


def pinned(name: str) -> tuple[str, str | None]:
    """A Hub id without its ``@revision``, a commit, branch or tag, and that; none: the main branch."""
    if Path(name).is_absolute():
        return name, None
    repo, _, revision = name.partition("@")
    return repo, revision or None


def commit_of(folder: Path) -> str | None:
    """The commit that a folder of the Hub's cache is of; none for another folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def fetch(name: str, *, weights: bool = True) -> Path:
    """The folder of a model; one on the Hub is downloaded to its cache, or brought up to date there.

    ``owner/name@revision`` is the model as it was at a commit, branch or tag.

    Without ``weights`` only configuration and tokenizer come. Weights are safetensors or nothing.
    Raises ``UserError`` for what is missing, gated or unreachable.
    """
    source = resolve(name)
    if isinstance(source, str):
        from huggingface_hub import snapshot_download

        patterns, (repo, at) = _TEXTS + ["*.safetensors"] * weights, pinned(source)
        with hub_errors(repo, otherwise=_OFFLINE):
            found = Path(snapshot_download(repo, revision=at, allow_patterns=patterns))
            source = _checked(found, name)
    if weights and not any(source.glob("*.safetensors")):
        raise UserError(
            f"{name} has no *.safetensors weights. Pickled weights (*.bin, *.pt, *.pth) can run "
            "code and are not loaded: convert them first, or use a repository with safetensors."
        )
    return source


def read_config(path: Path, name: str) -> dict[str, Any]:
    """The ``config.json`` of a model's folder as it is, without transformers.

    Raises ``UserError`` for a model that ``load`` does not support: of another type, stored quantised, or
    one whose text attends in both directions.
    """
    try:
        raw = read_json(path / "config.json")
    except OSError as error:
        raise UserError(f"{path / 'config.json'}: {error.strerror}") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path / 'config.json'} is not valid JSON of a model: no object")
    kind = raw.get("model_type")
    if kind not in SUPPORTED:
        raise UserError(
            f"{name} is a {kind!r} model; supported model types: {', '.join(SUPPORTED)}."
            + nearest(str(kind), SUPPORTED)
        )
    if raw.get("quantization_config"):
        known = f", such as {whole}" if (whole := in_16_bits(name)) != name else ""
        raise UserError(
            f"{name} is stored quantised, and an adapter could not be merged into it. Give the "
            f"16-bit model{known}; precision nf4 quantises it while loading."
        )
    check_config(raw, path / "config.json")
    # Gemma 4's "vision" is of images alone
    if {**raw, **(raw.get("text_config") or {})}.get("use_bidirectional_attention") in (
        True,
        "all",
    ):
        raise UserError(
            f"{name} has use_bidirectional_attention: its text looks ahead, as an embedding model's "
            "does, so that packed examples would see each other and no next token is learnt. Give a "
            "model that generates."
        )
    return raw


def in_16_bits(name: str) -> str:
    """The Hub id that a quantised copy was made of, by its name: ``…/gemma-3-4b-it-bnb-4bit`` of ``…/gemma-3-4b-it``."""
    return name if Path(name).exists() else re.sub(_FEW_BITS, "", name)


def check_config(raw: dict[str, Any], file: Path) -> None:
    """Raise ``UserError`` for a value of a model's configuration that none can have, by its key."""
    for part in ("text_config", "vision_config", "audio_config", "rope_scaling", "rope_parameters"):
        if not isinstance(raw.get(part) or {}, dict):
            raise UserError(f"{file}: {part} is {raw[part]!r:.80}; expected an object")
    text = {**raw, **(raw.get("text_config") or {})}
    for key, (wanted, fits) in _VALUES.items():
        value = text.get(key)
        if value is not None and not fits(value):
            raise UserError(f"{file}: {key} is {value!r:.80}; expected {wanted}")
    heads, shared = (text.get(f"num_{what}_heads") for what in ("attention", "key_value"))
    if heads and shared and heads % shared:
        raise UserError(f"{file}: num_key_value_heads is {shared}, which does not divide {heads}")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < float("inf")


_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
_SIZES += ("head_dim", "vocab_size", "max_position_embeddings", "sliding_window", "lru_width")
_SIZES += ("attention_window_size",)
_AMOUNTS = ("rms_norm_eps", "rope_theta", "query_pre_attn_scalar", "attn_logit_softcapping")
_AMOUNTS += ("final_logit_softcapping",)
_ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "gelu_new", "gelu_fast", "relu", "silu", "swish")
_VALUES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(_SIZES, ("a whole number above 0", _is_size)),
    **dict.fromkeys(_AMOUNTS, ("a number above 0", _is_amount)),
    # Gemma 3n has one for each layer
    "intermediate_size": (
        "a whole number above 0",
        lambda v: all(map(_is_size, v)) and bool(v) if isinstance(v, list) else _is_size(v),
    ),
    "layer_types": (
        "a list of names",
        lambda v: isinstance(v, list) and all(isinstance(x, str) for x in v),
    ),
    **dict.fromkeys(
        ("hidden_act", "hidden_activation"),
        (f"one of {', '.join(_ACTIVATIONS)}", _ACTIVATIONS.__contains__),
    ),
}


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """Shapes of the weights in a folder by name, from the headers of their files; none without weights."""
    found: dict[str, list[int]] = {}
    for file in weight_files(folder):
        try:
            with open(file, "rb") as stream:
                (size,) = struct.unpack("<Q", stream.read(8))
                header = json.loads(stream.read(min(size, _HEADER)))
        except (OSError, ValueError, struct.error):
            raise UserError(f"{file} is damaged: it has no readable header") from None
        found |= {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return found


def license_of(base: str) -> tuple[str | None, str]:
    """The Hub's id of a base model's licence, and what to say of it; nothing for one that is not Gemma's."""
    name = base.partition("/")[2].lower()
    return next((found for start, found in LICENSES.items() if name.startswith(start)), (None, ""))


def _checked(path: Path, name: str) -> Path:
    if (path / "config.json").is_file():
        return path
    if (path / "adapter_config.json").is_file():
        base = read_json(path / "adapter_config.json").get("base_model_name_or_path") or "a model"
        raise UserError(
            f"{name} is an adapter, not a base model. Give its base, {base}, as the model; "
            f"`ft eval {name}` evaluates the two together."
        )
    gguf = " GGUF files are not loaded." if any(path.glob("*.gguf")) else ""
    raise UserError(f"{name} has no config.json, so it is not a Hugging Face model.{gguf}")
