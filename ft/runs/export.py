"""A Gemma's Hugging Face folder as one GGUF file, which llama.cpp and all that builds on it load."""

import contextlib
import math
import os
from pathlib import Path

from ft import files
from ft.errors import UserError, nearest
from ft.models import llama
from ft.runs import gguf_settings, gguf_tensors
from ft.runs.gguf_settings import architecture as architecture

KQUANTS = ("q6_k", "q5_k_m", "q4_k_m")  # mixtures, which llama.cpp itself makes of a bf16 file
TYPES = ("f16", "bf16", "f32", "q8_0", *KQUANTS, "q4_0")  # of matrices; norms are always f32
# greedy answers of llama.cpp that must be the model's own; rounding parts some at a near tie
EQUAL = {"f32": 0.8, "f16": 0.8, "bf16": 0.5, "q8_0": 0.2}


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
    tensors = gguf_tensors.tensors(folder, arch, text)
    rows = tensors["token_embd.weight"].get_shape()[0]
    tokens = gguf_settings.tokens(arch, folder, pieces or folder, rows)
    import gguf
    import numpy as np
    from tqdm import tqdm

    asked, outtype = outtype, "bf16" if outtype in KQUANTS else outtype
    shapes = {key: tensor.get_shape() for key, tensor in tensors.items()}
    kinds = gguf_tensors.kinds(shapes, outtype)
    with files.beside(out) as hidden:
        file = hidden / out.name
        with contextlib.closing(gguf.GGUFWriter(file, arch)) as writer:
            size = sum(map(math.prod, shapes.values()))
            gguf_settings.origin(writer, name, base, license, size)
            gguf_settings.settings(writer, arch, text)
            gguf_settings.vocabulary(writer, arch, folder, tokens)
            file_type = f"{'ALL' if outtype == 'f32' else 'MOSTLY'}_{outtype.upper()}"
            writer.add_file_type(gguf.LlamaFileType[file_type])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for key, shape in shapes.items():
                stored = gguf.quant_shape_to_byte_shape(shape, kinds[key])
                writer.add_tensor_info(
                    key, stored, np.dtype(np.uint8), math.prod(stored), kinds[key]
                )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for key in tqdm(shapes, desc=f"{name} to {outtype}", unit="tensor", leave=False):
                writer.write_tensor_data(gguf_tensors.stored(key, tensors[key], kinds[key], arch))
        if asked in KQUANTS:
            whole = file.rename(file.with_suffix(".whole"))  # never the name that is written
            llama.quantise(whole, file, asked)
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
    if outtype in KQUANTS:
        llama.check(f"{outtype} is made by", program=True)
