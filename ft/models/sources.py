"""Find a base model by Hub id, local folder or ``embedded``, or say in one line what is wrong; its licence.

``ft.models.embedded`` is imported lazily, inside the function that needs it.
"""

import json
import re
import struct
from pathlib import Path
from typing import Any

from ft.errors import UserError, hub_errors, nearest

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
_HEADER = 100_000_000  # bytes; a safetensors file has no longer one
_TEXTS = ["*.json", "*.jinja", "tokenizer.model"]
_OFFLINE = "Use `embedded`, or a local folder, or connect once so that the Hub's cache has it."


def resolve(name: str) -> str | Path:
    """The local folder that ``name`` means, or its Hub id; no network.

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
    if re.fullmatch(r"[A-Za-z0-9_-][\w.-]*/[\w.-]+", name):
        return name
    raise UserError(
        f"model {name!r} is neither a folder here, nor a Hub id such as {EMBEDDED}, nor `embedded`."
        + nearest(name, ["embedded"])
    )


def published_name(name: str) -> str:
    """What others can load the same base by: a Hub id, or the full path of a local folder."""
    return EMBEDDED if name == "embedded" else str(resolve(name))


def fetch(name: str, *, weights: bool = True) -> Path:
    """The folder of a model; one on the Hub is downloaded to its cache, or brought up to date there.

    Without ``weights`` only configuration and tokenizer come. Weights are safetensors or nothing.
    Raises ``UserError`` for what is missing, gated or unreachable.
    """
    source = resolve(name)
    if isinstance(source, str):
        from huggingface_hub import snapshot_download

        patterns = _TEXTS + ["*.safetensors"] * weights
        with hub_errors(source, otherwise=_OFFLINE):
            source = _checked(Path(snapshot_download(source, allow_patterns=patterns)), name)
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
        raw = json.loads((path / "config.json").read_text(encoding="utf-8"))
        kind = raw.get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path / 'config.json'} is not valid JSON: {error}") from None
    if kind not in SUPPORTED:
        raise UserError(
            f"{name} is a {kind!r} model; supported model types: {', '.join(SUPPORTED)}."
            + nearest(str(kind), SUPPORTED)
        )
    if raw.get("quantization_config"):
        raise UserError(
            f"{name} is stored quantised, and an adapter could not be merged into it. Give the "
            "16-bit model; precision nf4 quantises it while loading."
        )
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


def shapes_of(folder: Path) -> dict[str, list[int]]:
    """Shapes of the weights in a folder by name, from the headers of their files; none without weights."""
    found: dict[str, list[int]] = {}
    for file in sorted(folder.glob("*.safetensors")):
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
        base = json.loads((path / "adapter_config.json").read_text()).get("base_model_name_or_path")
        raise UserError(
            f"{name} is an adapter, not a base model. Give its base, {base}, as the model; "
            f"`ft eval {name}` evaluates the two together."
        )
    gguf = " GGUF files are not loaded." if any(path.glob("*.gguf")) else ""
    raise UserError(f"{name} has no config.json, so it is not a Hugging Face model.{gguf}")
