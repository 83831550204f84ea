"""Folders of tiny models that a GGUF file can be made of, and what stands in one."""

import math
from pathlib import Path
from typing import Any

from support import tiny

from ft.models import gguf as gguf_tokenizer

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"]
OWN = ["[multimodal]", "\n", "\n\n", "  ", "   "]
LETTERS = ["▁", *"abcdefgh", "ab", "▁a", "▁ab", "cd", "abcd", "é"]
TOKENS = SPECIAL + OWN + [f"<0x{byte:02X}>" for byte in range(256)] + LETTERS
SCORES = [-1000.0] * len(SPECIAL + OWN) + [0.0] * 256 + [-float(n) for n in range(len(LETTERS))]
KINDS = [3] * len(SPECIAL) + [4] * len(OWN) + [6] * 256 + [1] * len(LETTERS)
SIZES: dict[str, Any] = {"vocab_size": 300}  # more rows than tokens
SIX = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
OVERRIDES = {"gemma": SIZES, "gemma2": SIZES, "gemma3_text": SIZES | SIX, "gemma3": SIZES | SIX}
KNOWN = list(OVERRIDES)


def model_folder(path: Path, kind: str, **overrides: Any) -> Path:
    """A tiny model with a tokenizer that has a SentencePiece model, as Gemma's have."""
    model = tiny.build(kind, **OVERRIDES.get(kind, {}) | overrides)
    model.generation_config.eos_token_id = [1, 6]
    model.save_pretrained(path)
    gguf_tokenizer.write(path, TOKENS, SCORES, KINDS)
    return path


def read(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata, and tensors as arrays of float32."""
    import gguf
    import numpy as np

    content = bytearray(file.read_bytes())
    meta, places = gguf_tokenizer.read_header(content)
    tensors = {}
    for name, (shape, number, at) in places.items():
        kind = gguf.GGMLQuantizationType(number)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        count = math.prod(shape) // block * size
        raw = np.frombuffer(content, np.uint8, count, at).reshape(math.prod(shape[:-1]), -1)
        tensors[name] = gguf.dequantize(raw, kind).reshape(shape)
    return meta, tensors
