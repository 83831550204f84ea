"""A Gemma's Hugging Face folder as one GGUF file, which llama.cpp and all that builds on it load."""

import contextlib
import logging
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError, nearest
from ft.models import gguf as gguf_tokenizer
from ft.models.parameters import in_language_model

ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3"}
KQUANTS = ("q6_k", "q5_k_m", "q4_k_m")  # mixtures, which llama.cpp itself makes of a bf16 file
TYPES = ("f16", "bf16", "f32", "q8_0", *KQUANTS, "q4_0")  # of matrices; norms are always f32
# llama.cpp knows these by itself, so a model that differs cannot be said in a file:
FULL_ATTENTION = {"gemma2": 2, "gemma3": 6}  # which layers look at everything: each 2nd, each 6th
WIDE = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose queries are scaled by another rule
ROWS = 4096  # of a matrix, converted at a time


def write(
    folder: Path,
    out: Path,
    *,
    outtype: str = "f16",
    name: str,
    base: str = "",
    license: str | None = None,
    pieces: Path | None = None,
) -> int:
    """Write the model in ``folder`` as the new file ``out``; returns its number of tensors.

    ``outtype`` is that of the matrices, one of ``TYPES``: f16 keeps a bf16 weight's bits; with q4_0 the
    embedding, which is the head too, is q8_0.
    ``name`` is the model's, ``base`` the Hub's name of what it was tuned from, ``license`` the Hub's
    id, ``pieces`` the folder with ``tokenizer.model`` (by default ``folder``). Names, values and
    tokens are those that llama.cpp's own converter (``convert_hf_to_gguf.py``) gives. Raises
    ``UserError`` for a model that GGUF cannot hold as it is; nothing is written then.
    """
    check(out, outtype)
    arch, text = architecture(folder)
    tensors = _tensors(folder, arch, text)
    rows = tensors["token_embd.weight"][1].get_shape()[0]
    vocabulary = gguf_tokenizer.lists(folder, pieces or folder, rows)
    import gguf
    import numpy as np
    from tqdm import tqdm

    asked, outtype = outtype, "bf16" if outtype in KQUANTS else outtype
    kind = gguf.GGMLQuantizationType[outtype.upper()]
    shapes = {key: tensor.get_shape() for key, (_, tensor) in tensors.items()}
    kinds = {
        key: kind if len(s) > 1 else gguf.GGMLQuantizationType.F32 for key, s in shapes.items()
    }
    if outtype == "q4_0":
        kinds["token_embd.weight"] = gguf.GGMLQuantizationType.Q8_0
    with files.beside(out) as hidden:
        file = hidden / out.name
        with contextlib.closing(gguf.GGUFWriter(file, arch)) as writer:
            _origin(writer, name, base, license, sum(map(math.prod, shapes.values())))
            _settings(writer, text)
            _vocabulary(writer, folder, *vocabulary)
            file_type = f"{'ALL' if outtype == 'f32' else 'MOSTLY'}_{outtype.upper()}"
            writer.add_file_type(gguf.LlamaFileType[file_type])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, shape in shapes.items():
                if shape[-1] % (block := gguf.GGML_QUANT_SIZES[kinds[key]][0]):
                    raise UserError(
                        f"{key}: its rows of {shape[-1]} are no blocks of {block}, as {outtype} wants"
                    )
                stored = gguf.quant_shape_to_byte_shape(shape, kinds[key])
                writer.add_tensor_info(
                    key, stored, np.dtype(np.uint8), math.prod(stored), kinds[key]
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key in tqdm(shapes, desc=f"{name} to {outtype}", unit="tensor", leave=False):
                writer.write_tensor_data(_stored(key, *tensors[key], kinds[key]))
        if asked in KQUANTS:
            file = _quantised(file, asked)
        with open(file, "rb+") as stream:  # Windows syncs only what may be written
            os.fsync(stream.fileno())
        os.replace(file, out)
    files.sync_dir(out.parent)
    return len(shapes)


def check(out: Path, outtype: str) -> None:
    """Raise ``UserError`` if ``write`` could not write ``out``. Reads no model."""
    from importlib.util import find_spec

    if outtype not in TYPES:
        allowed = ", ".join(TYPES)
        raise UserError(f"outtype {outtype!r}: allowed are {allowed}.{nearest(outtype, TYPES)}")
    if out.suffix != ".gguf":
        raise UserError(f"{out}: the name of a GGUF file ends in .gguf")
    if os.path.lexists(out):
        raise UserError(f"{out} exists: name another file")
    files.check_new_file(out)
    if not find_spec("gguf"):
        raise UserError('writing GGUF needs the package gguf: pip install "gemma-ft[gguf]"')
    if outtype in KQUANTS and not find_spec("llama_cpp"):
        raise UserError(
            f"{outtype} is made by llama.cpp: pip install llama-cpp-python, which compiles it; without it "
            "there are q8_0 and q4_0"
        )


def _quantised(whole: Path, outtype: str) -> Path:
    """The file beside ``whole`` that llama.cpp makes of it."""
    import ctypes

    import llama_cpp  # pyright: ignore[reportMissingImports]

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{outtype.upper()}")
    quiet = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
    out = whole.with_name(f"{outtype}.gguf")
    paths = (os.fsencode(whole), os.fsencode(out))
    if llama_cpp.llama_model_quantize(*paths, ctypes.byref(settings)):
        raise UserError(f"llama.cpp could not make {outtype} of this model")
    return out


def architecture(folder: Path) -> tuple[str, Any]:
    """llama.cpp's name of the model's kind, and the configuration of its text part.

    Reads the configuration alone. Raises ``UserError`` for a model that llama.cpp lacks or computes
    otherwise.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json, so it is not a Hugging Face model")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind, text = config.model_type, config.get_text_config()
    if kind not in ARCHITECTURES:
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise UserError(f"{folder} is a {kind} model; ft writes GGUF for {known} only")
    arch = ARCHITECTURES[kind]

    def refuse(what: str) -> UserError:
        return UserError(f"{folder}: llama.cpp's {arch} cannot compute a model with {what}")

    if getattr(config, "quantization_config", None):
        raise refuse("weights stored in few bits; merge into the base in bf16 or fp32 first")
    heads = text.hidden_size // text.num_attention_heads
    scale = heads if WIDE.get(arch) == text.num_hidden_layers else text.head_dim
    if getattr(text, "query_pre_attn_scalar", scale) != scale:
        raise refuse(f"query_pre_attn_scalar {text.query_pre_attn_scalar}; it takes {scale}")
    every = FULL_ATTENTION.get(arch)
    layers = range(1, text.num_hidden_layers + 1)
    usual = [f"{'sliding' if every and n % every else 'full'}_attention" for n in layers]
    if list(getattr(text, "layer_types", None) or usual) != usual:
        raise refuse(f"layer_types other than one full_attention after {(every or 1) - 1} sliding")
    rope = _rope(text).get("rope_type", "default")
    if rope not in ("default", "linear"):
        raise refuse(f"rope_type {rope!r}")
    return arch, text


def _tensors(folder: Path, arch: str, text: Any) -> dict[str, tuple[bool, Any]]:
    """Each tensor by GGUF's name: whether it is a norm's, and its slice in a safetensors file."""
    import gguf
    from safetensors import safe_open

    model = gguf.MODEL_ARCH[arch.upper()]
    names = gguf.get_tensor_name_map(model, text.num_hidden_layers)
    found: dict[str, tuple[bool, Any]] = {}
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
            if not (name := names.get_name(plain, try_suffixes=(".weight",))):
                raise UserError(f"{file}: llama.cpp's {arch} has no place for the tensor {key}")
            found[name] = (name.endswith("norm.weight"), weights.get_slice(key))
    expected = {
        f"{gguf.TENSOR_NAMES[tensor].format(bid=layer)}.weight"
        for tensor in gguf.MODEL_TENSORS[model]
        if tensor != gguf.MODEL_TENSOR.OUTPUT  # the embedding once more
        for layer in range(text.num_hidden_layers)
    }
    if missing := sorted(expected - found.keys()):
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


def _stored(key: str, shifted: bool, tensor: Any, kind: Any) -> Any:
    """A tensor's values as the file has them, converted a few rows at a time."""
    import gguf
    import numpy as np

    def parts() -> Iterator[Any]:
        for first in range(0, tensor.get_shape()[0], ROWS):
            values = tensor[first : first + ROWS].float().numpy()
            if shifted:  # GGUF keeps 1 + w, the factor that the norm applies
                values = values + 1
            with np.errstate(over="ignore"):
                part = gguf.quantize(values, kind)
            if kind == gguf.GGMLQuantizationType.F16 and not np.isfinite(part).all():
                raise UserError(f"{key} holds values that f16 cannot: choose --outtype bf16")
            yield part.view(np.uint8)

    return np.concatenate(list(parts()))


def _rope(text: Any) -> dict[str, Any]:
    """The rotary embedding of the layers that look at everything."""
    return text.rope_parameters.get("full_attention", text.rope_parameters)


def _origin(writer: Any, name: str, base: str, license: str | None, n_parameters: int) -> None:
    """What the model is, and what it was tuned from."""
    import gguf

    _, _, basename, _, _, size = gguf.Metadata.get_model_id_components(base or name, n_parameters)
    writer.add_type("model")
    writer.add_name(gguf.Metadata.id_to_title(name))
    for add, value in (
        (writer.add_basename, basename),
        (writer.add_size_label, size),
        (writer.add_license, license),
    ):
        if value:
            add(value)
    if base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.split("/")[1])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")


def _settings(writer: Any, text: Any) -> None:
    """The model's hyperparameters."""
    import gguf

    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    full = _rope(text)
    writer.add_rope_freq_base(full["rope_theta"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if "sliding_attention" in text.rope_parameters:
        writer.add_rope_freq_base_swa(text.rope_parameters["sliding_attention"]["rope_theta"])
    for add, value in (
        (writer.add_sliding_window, getattr(text, "sliding_window", None)),
        (writer.add_attn_logit_softcapping, getattr(text, "attn_logit_softcapping", None)),
        (writer.add_final_logit_softcapping, getattr(text, "final_logit_softcapping", None)),
    ):
        if value is not None:
            add(value)


def _vocabulary(
    writer: Any, folder: Path, tokens: list[str], scores: list[float], kinds: list[int]
) -> None:
    """Tokens, special ids, and the chat template if there is one."""
    import gguf

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    # it wonders at the BOS of a second text, which no one gives
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(folder, n_vocab=len(tokens))
    if (generation := folder / "generation_config.json").is_file():
        ends = files.read_json(generation).get("eos_token_id", [])
        # GGUF has room for one control token more that ends an answer, such as <end_of_turn>
        for end in ends if isinstance(ends, list) else [ends]:
            if kinds[end] == gguf_tokenizer.CONTROL and end != special.special_token_ids.get("eos"):
                special.special_token_ids.setdefault("eot", end)
    special.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(False)
