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
LAYERS = 25  # of Gemma 3n: the last five share what the 19th and 20th have, as llama.cpp takes it
OVERRIDES["gemma3n"] = SIZES | {
    "num_hidden_layers": LAYERS,
    "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 5,
    "num_kv_shared_layers": 5,
    "activation_sparsity_pattern": [0.95] * 10 + [0.0] * 15,
    "hidden_size_per_layer_input": 256,
    "laurel_rank": 64,
    "altup_num_inputs": 4,
    "intermediate_size": 1024,  # llama.cpp's deviation of the gates divides by one less than so many
    "vocab_size_per_layer_input": 290,  # fewer than the embedding has
}
GEMMA4 = SIZES | {"vocab_size_per_layer_input": 300}
OVERRIDES |= {"gemma4_text": GEMMA4 | {"use_double_wide_mlp": True}, "gemma4": GEMMA4}
OVERRIDES["gemma4_moe"] = SIZES | {"moe_intermediate_size": 32}
NEWER = [kind for kind in OVERRIDES if kind not in KNOWN]


def model_folder(path: Path, kind: str, **overrides: Any) -> Path:
    """A tiny model with a tokenizer that has a SentencePiece model, as Gemma's have."""
    model = tiny.build(kind, **OVERRIDES.get(kind, {}) | overrides)
    model.generation_config.eos_token_id = [1, 6]
    if kind == "gemma3n":  # so many random layers would make a large difference of every rounding
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") and ".post_" in name:
                parameter.data.mul_(0.1)
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
