"""A Gemma of random weights in the sizes of a published one, and a tokenizer as large as its vocabulary."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.plan import shapes
from ft.plan.shapes import TABLE, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TINY: dict[str, Any] = {  # Gemma 2's layers, in a size for a test
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 1024,
    "layer_types": TABLE["gemma-2-2b"].layer_types[:2],
}


def shape_of(name: str) -> Shape:
    """A published shape, or ``tiny``."""
    if name == "tiny":
        return dataclasses.replace(TABLE["gemma-2-2b"], **TINY)
    return shapes.of(f"google/{name}")


def build(shape: Shape, device: str) -> "PreTrainedModel":
    """Random weights in bfloat16, drawn on the device."""
    import torch
    import transformers as hf

    kinds = {
        "gemma": hf.GemmaConfig,
        "gemma2": hf.Gemma2Config,
        "gemma3_text": hf.Gemma3TextConfig,
    }
    sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim")
    sizes += ("num_attention_heads", "num_key_value_heads", "max_position_embeddings")
    options: dict[str, Any] = {name: getattr(shape, name) for name in sizes}
    if shape.window:
        options |= {"sliding_window": shape.window, "layer_types": list(shape.layer_types)}
    config = kinds[shape.family](**options)
    torch.manual_seed(0)
    with torch.device(device):
        return hf.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def save_zeros(shape: Shape, folder: Path) -> None:
    """The folder of a model of zeros in bfloat16, whose weights are a hole in a file, and of its tokenizer."""
    model = build(shape, "meta")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tied, at, named = set(model.all_tied_weights_keys), 0, {"__metadata__": {"format": "pt"}}
    for name, weight in model.state_dict().items():
        if name not in tied:
            end = at + weight.numel() * weight.element_size()
            where: Any = {"dtype": "BF16", "shape": [*weight.shape], "data_offsets": [at, end]}
            named[name], at = where, end
    header = json.dumps(named).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + at)
    save_tokenizer(shape, folder)


def save_tokenizer(shape: Shape, folder: Path) -> None:
    """As many entries as the model has rows, since that is checked; the rows are ids already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    words = special + [f"w{i}" for i in range(len(special), shape.vocab_size)]
    plain = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    names = {f"{word[1:-1]}_token": word for word in special}
    PreTrainedTokenizerFast(tokenizer_object=plain, **names).save_pretrained(folder)
