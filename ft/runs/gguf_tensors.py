"""A Gemma's weights by llama.cpp's names, as slices of its safetensors files, and their values as a GGUF file has them."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError
from ft.models.parameters import in_language_model
from ft.runs import gguf_settings

ROWS = 4096  # of a matrix, converted at a time
SHIFTED = ("gemma", "gemma2", "gemma3")  # whose norms apply 1 + w, which is what GGUF keeps
# of Gemma 4: no module's weight, and llama.cpp's name is that of another one
RENAMED = {"router.scale": "router.proj.scale"}
RENAMED |= {"router.per_expert_scale": "experts.down_proj.scale"}
STACK = re.compile(r"(.*\.altup_(?:unembed_)?projections)\.(\d+)\.weight")  # of Gemma 3n
EXACT = ("altup_correct_coef", "altup_predict_coef", "ffn_gate_inp")  # small matrices, kept in f32
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")  # of 8 bits in q4_0


class Made:
    """Values of a file's slices or of none, read as such a slice is."""

    def __init__(self, shape: Sequence[int], rows: Any) -> None:
        self._shape, self._rows = list(shape), rows

    def get_shape(self) -> list[int]:
        return self._shape

    def __getitem__(self, rows: slice) -> Any:
        return self._rows(rows)


def tensors(folder: Path, arch: str, text: Any) -> dict[str, Any]:
    """Each tensor's slice by GGUF's name. Raises ``UserError`` where one is missing or has no place."""
    import gguf
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], text.num_hidden_layers)
    found: dict[str, Any] = {}
    stacks: dict[str, dict[int, Any]] = {}
    for file in files.weight_files(folder):
        weights = safe_open(file, framework="pt")
        for key in weights.keys():  # noqa: SIM118  # not a dict
            plain = "model." + re.sub(r"^(model\.|language_model\.)*", "", key)
            if not in_language_model(key):
                continue
            if plain == "model.lm_head.weight":
                plain = "lm_head.weight"
                if text.tie_word_embeddings and _same(weights, key):
                    continue  # the embedding once more
            if part := STACK.fullmatch(plain):
                stacks.setdefault(part[1], {})[int(part[2])] = weights.get_slice(key)
                continue
            for end, other in RENAMED.items():
                plain = re.sub(rf"\.{end}$", f".{other}", plain)
            if not (name := names.get_name(plain, try_suffixes=(".weight", ".scale"))):
                raise UserError(f"{file}: llama.cpp's {arch} has no place for the tensor {key}")
            name += ".weight" * (not name.endswith((".weight", ".scale")))
            found[name] = weights.get_slice(key)
    for key, parts in stacks.items():
        found[f"{names.get_name(key)}.weight"] = _stacked([parts[n] for n in sorted(parts)])
    _complete(found, arch, text)
    if missing := sorted(_expected(arch, text) - found.keys()):
        raise UserError(f"{folder} lacks weights: {len(missing)} tensors, such as {missing[0]}")
    return {key: found[key] for key in sorted(found)}


def _same(weights: Any, head: str) -> bool:
    """Whether a head is the embedding, number for number, a few rows at a time."""
    import torch

    names = [key for key in weights.keys() if key.endswith("embed_tokens.weight")]  # noqa: SIM118
    table = next(filter(in_language_model, names), "")
    if not table:
        return False  # in another file of the model: kept, and if it is the embedding, twice
    a, b = weights.get_slice(head), weights.get_slice(table)
    if a.get_shape() != b.get_shape():
        return False
    starts = range(0, a.get_shape()[0], ROWS)
    return all(torch.equal(a[at : at + ROWS], b[at : at + ROWS]) for at in starts)


def _stacked(parts: Sequence[Any]) -> Made:
    import torch

    shape = [len(parts), *parts[0].get_shape()]
    return Made(shape, lambda rows: torch.stack([part[:] for part in parts[rows]]))


def _complete(found: dict[str, Any], arch: str, text: Any) -> None:
    """Add what llama.cpp reads and no file of transformers' holds."""
    import torch

    def zeros(*shape: int) -> Made:
        return Made(shape, lambda rows: torch.zeros(shape)[rows])

    if arch == "gemma4":
        factors = torch.tensor(gguf_settings.rope_factors(text))
        found["rope_freqs.weight"] = Made(factors.shape, factors.__getitem__)
    if arch != "gemma3n":
        return
    wide, count = text.head_dim, text.num_hidden_layers
    kv = text.num_key_value_heads * wide
    # a layer that shares another's keys has none, where llama.cpp wants them and never looks
    for layer in range(count - text.num_kv_shared_layers, count):
        for name, shape in {
            "attn_k": (kv, text.hidden_size),
            "attn_v": (kv, text.hidden_size),
            "attn_k_norm": (wide,),
        }.items():
            found.setdefault(f"blk.{layer}.{name}.weight", zeros(*shape))
    # the tokens of images and sounds have a row of the one embedding alone
    if (table := found.get(EMBEDDINGS[1])) and EMBEDDINGS[0] in found:
        found[EMBEDDINGS[1]] = _padded(table, found[EMBEDDINGS[0]].get_shape()[0])


def _padded(table: Any, rows: int) -> Any:
    import torch

    has, width = table.get_shape()

    def read(asked: slice) -> Any:
        start, stop, _ = asked.indices(rows)
        part = table[min(start, has) : min(stop, has)]
        return torch.cat([part, part.new_zeros(stop - start - len(part), width)])

    return table if has >= rows else Made((rows, width), read)


def _expected(arch: str, text: Any) -> set[str]:
    """Names of the weights that such a model has."""
    import gguf

    own = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", 0) or 0)
    keys_alone = getattr(text, "attention_k_eq_v", False)

    def absent(name: str, layer: int) -> bool:
        if name == "output":  # the embedding once more
            return True
        if arch != "gemma4":
            return False
        if "attn_k" in name or "attn_v" in name:
            full = text.layer_types[layer] == gguf_settings.FULL
            return layer >= own or "attn_v" in name and full and keys_alone
        if "per_layer" in name or name.endswith((".inp_gate", ".proj", ".post_norm")):
            return not text.hidden_size_per_layer_input
        expert = name.endswith(("_exps", "ffn_gate_inp", "norm_1", "norm_2"))
        return expert and not text.enable_moe_block

    every = range(text.num_hidden_layers)
    names = [
        (gguf.TENSOR_NAMES[tensor].format(bid=layer), layer)
        for tensor in gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch.upper()]]
        for layer in every
    ]
    return {f"{name}.weight" for name, layer in names if not absent(name, layer)}


def kinds(shapes: Mapping[str, Sequence[int]], outtype: str) -> dict[str, Any]:
    """The type of each tensor. Raises ``UserError`` for one that has no such blocks."""
    import gguf

    types = gguf.GGMLQuantizationType
    found = {}
    for key, shape in shapes.items():
        exact = len(shape) == 1 or any(f".{name}." in key for name in EXACT)
        found[key] = types.F32 if exact else types[outtype.upper()]
        if outtype == "q4_0" and key in EMBEDDINGS:
            found[key] = types.Q8_0
        if shape[-1] % (block := gguf.GGML_QUANT_SIZES[found[key]][0]):
            raise UserError(
                f"{key}: its rows of {shape[-1]} are no blocks of {block}, as {outtype} wants"
            )
    return found


def stored(key: str, tensor: Any, kind: Any, arch: str) -> Any:
    """A tensor's values as the file has them, converted a few rows at a time."""
    import gguf
    import numpy as np

    first, *inner = tensor.get_shape()
    step = max(1, ROWS // math.prod(inner[:-1]))

    def parts() -> Iterator[Any]:
        for at in range(0, first, step):
            values = tensor[at : at + step].float().numpy()
            if arch in SHIFTED and key.endswith("norm.weight"):
                values = values + 1
            with np.errstate(over="ignore"):
                part = gguf.quantize(values, kind)
            if kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(part).all():
                raise UserError(f"{key} holds values that f16 cannot: choose --outtype bf16")
            yield part.view(np.uint8)

    return np.concatenate(list(parts()))
