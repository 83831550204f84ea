"""What a model is made of, from its configuration alone: parameters, their shapes and dtypes, an adapter, and more."""

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.errors import UserError

NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a value's, with scales quantised twice


@dataclass(frozen=True)
class Part:
    """Parameters that are alike in all but the number of their layer."""

    name: str  # `*` for that number
    layers: tuple[int, ...]  # where they are; none outside of layers
    shape: tuple[int, ...]
    parameters: int  # of all of them
    dtype: str
    bytes: float  # in memory, scales of a quantised tensor included
    trained: bool


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft summary``."""
    add = parser.add_argument
    add("name", metavar="MODEL|RUN", help="a folder, Hub id, `embedded`, or a run")
    add("--precision", help="as loaded in auto, fp32, bf16 or nf4 (default: as stored)")


def command(name: str, precision: str | None) -> None:
    """Print what the model is made of; no weight is read."""
    from ft.chat import partner
    from ft.cli import console
    from ft.models import description
    from ft.runs import opened

    if precision == "int8":
        raise UserError("--precision int8: a summary shows a model in fp32, bf16 or nf4")
    run = opened.finished(name) if partner.is_run(name) else None
    base = run.settings["model_name_or_path"] if run else name
    source = str(run.folder) if run and run.whole else base
    if run and precision is None:
        precision = run.record.get("model", {}).get("precision")
    model, towers = skeleton(source)
    if run and not run.whole:
        model = with_adapter(model, run.folder)
    parts = describe(model, precision)
    out = console.standard_output()
    table = console.table(
        out, "module", "layers", "shape", "parameters", "dtype", "trains", right=("parameters",)
    )
    for part in parts:
        shape = " × ".join(map(str, part.shape))
        cells = (part.name, description.spans(part.layers), shape, f"{part.parameters:,}")
        table.add_row(*cells, part.dtype, "yes" if part.trained else "")
    console.show(out, table)
    rows = console.table(out, "", "")
    rows.show_header = False
    found = [*facts(parts, model, towers), *description.facts(model)]
    for label, text in [*found, ("licence", description.licence(base, model))]:
        rows.add_row(label, text)
    console.show(out, rows)


def skeleton(name: str) -> tuple[Any, dict[str, int]]:
    """The language model as ``models.load`` would give it, without storage, and the towers left out.

    Raises ``UserError`` for a model that cannot be loaded either.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ft.models.load import TOWERS, load_config

    config = load_config(name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ImportError as error:
        lacks = " ".join(str(error).split())
        raise UserError(f"{name} needs a package that is not installed: {lacks}") from None
    towers = {}
    for tower in TOWERS:
        if getattr(model.base_model, tower, None) is not None:
            sizes = [p.numel() for p in getattr(model.base_model, tower).parameters()]
            towers[tower.replace("_", " ")] = sum(sizes)
            setattr(model.base_model, tower, None)
    return model, towers


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the layers of an adapter, of which the shapes alone are known."""
    import logging
    import warnings

    # on a CPU it advises to install a kernel package as soon as PEFT imports it
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    import torch
    from peft import LoraConfig, get_peft_model

    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # as in training: the adapter trains
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")  # PEFT 0.21
        return get_peft_model(model, config)


def describe(model: Any, precision: str | None = None) -> list[Part]:
    """The model's parameters, in their order, those of like layers in one.

    ``precision`` is as in ``models.load``; without it, weights have the dtype that they are stored in.
    """
    import torch
    from transformers.quantizers.quantizers_utils import should_convert_module

    from ft import machine
    from ft.models import precision as hardware
    from ft.models.load import UNQUANTIZED

    stored = str(model.config.dtype or "float32").removeprefix("torch.")
    compute, quantised = stored, set()
    if precision is not None:
        choice = hardware.choose_precision(precision, machine.here())
        compute = choice.compute
        if choice.precision == "nf4":
            quantised = {
                f"{name.replace('.base_layer', '')}.weight"
                for name, module in model.named_modules()
                if isinstance(module, torch.nn.Linear)
                and "lora_" not in name
                and should_convert_module(_published(name), UNQUANTIZED)
            }
    groups: dict[tuple[Any, ...], list[int]] = {}
    for name, parameter in model.named_parameters():
        name = name.replace(".base_layer", "")
        at = re.search(r"(?<=\.layers\.)\d+(?=\.)", name)
        kind = re.sub(r"(?<=\.layers\.)\d+(?=\.)", "*", _published(name), count=1)
        dtype = "nf4" if name in quantised else "float32" if "lora_" in name else compute
        # beside 4-bit weights, which have no gradient, an adapter trains and nothing else
        trains = parameter.requires_grad and (not quantised or "lora_" in name)
        key = (kind, tuple(parameter.shape), dtype, trains)
        groups.setdefault(key, []).extend([int(at.group())] if at else [])
    parts = []
    for (kind, shape, dtype, trained), layers in groups.items():
        count = torch.Size(shape).numel() * max(1, len(layers))
        width = NF4_BYTES if dtype == "nf4" else getattr(torch, dtype).itemsize
        parts.append(Part(kind, tuple(layers), shape, count, dtype, count * width, trained))
    return parts


def facts(parts: Sequence[Part], model: Any, towers: dict[str, int]) -> list[tuple[str, str]]:
    """Label and text of the model's size, and of the adapter that it has."""
    from ft.models import lora

    total = sum(part.parameters for part in parts)
    trained = sum(part.parameters for part in parts if part.trained)
    table = model.get_input_embeddings().weight.numel()
    size = sum(part.bytes for part in parts) / 2**30
    found = [("parameters", f"{total:,}, {table:,} of them embed tokens; {size:.2f} GiB")]
    for tower, count in towers.items():
        found.append((tower, f"{count:,} parameters, left out: the data is text"))
    found.append(("trainable", f"{trained:,} ({trained / total:.2%})"))
    if hasattr(model, "peft_config"):
        found.append(("adapter", lora.summary(model)))
    return found


def _published(name: str) -> str:
    """The name of a module or parameter without what PEFT puts in front of it."""
    return name.removeprefix("base_model.model.")
