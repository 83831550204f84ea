"""What a model is made of, from its configuration alone: parameters, an adapter, and the architecture in words."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import machine
from ft.errors import UserError
from ft.models import lora, parameters, sources
from ft.models import precision as hardware
from ft.models.load import context_of, load_config
from ft.models.precision import import_bitsandbytes


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


def skeleton(name: str) -> tuple[Any, dict[str, int]]:
    """The language model as ``models.load`` would give it, without storage, and the towers left out.

    Raises ``UserError`` for a model that cannot be loaded either.
    """
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(name)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except ImportError as error:
        lacks = " ".join(str(error).split())
        raise UserError(f"{name} needs a package that is not installed: {lacks}") from None
    return model, parameters.drop_towers(model)


def with_adapter(model: Any, folder: Path) -> Any:
    """The model with the layers of an adapter, of which the shapes alone are known."""
    import_bitsandbytes()  # as PEFT does
    import torch
    from peft import LoraConfig, get_peft_model

    lora.check_kind(folder / "adapter_config.json")
    config = LoraConfig.from_pretrained(str(folder))
    config.inference_mode = False  # as in training: the adapter trains
    config.base_model_name_or_path = None  # PEFT warns where it has moved
    with torch.device("meta"), lora.quiet():
        return get_peft_model(model, config)


def parameters_of(model: Any, precision: str | None = None) -> list[Part]:
    """The model's parameters, in their order, those of like layers in one.

    ``precision`` is as in ``models.load``; without it, weights have the dtype that they are stored in.
    """
    import torch
    from transformers.quantizers.quantizers_utils import should_convert_module

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
                and should_convert_module(_published(name), parameters.UNQUANTIZED)
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
        width = parameters.NF4_BYTES if dtype == "nf4" else getattr(torch, dtype).itemsize
        parts.append(Part(kind, tuple(layers), shape, count, dtype, count * width, trained))
    return parts


def sizes(parts: Sequence[Part], model: Any, towers: dict[str, int]) -> list[tuple[str, str]]:
    """Label and text of the model's size, and of the adapter that it has."""
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


def facts(model: Any) -> list[tuple[str, str]]:
    """Label and text of what a causal language model computes; its weights may be without storage."""
    from ft.kernels.cross_entropy import softcap_of

    config = model.config.get_text_config()
    scores, logits = getattr(config, "attn_logit_softcapping", None), softcap_of(config)
    caps = [
        f"{cap:g} on {where}" for where, cap in (("attention", scores), ("logits", logits)) if cap
    ]
    context = context_of(config)
    experts = []
    if getattr(config, "enable_moe_block", False):
        each, all_of_them = config.top_k_experts, config.num_experts
        experts.append(("experts", f"{each} of {all_of_them} in each layer for a token"))
    tied = "the head is the embedding" if config.tie_word_embeddings else "the head is its own"
    return [
        ("architecture", f"{model.config.model_type}, {config.num_hidden_layers} layers"),
        *(("attention", text) for text in attention(model)),
        ("positions", positions(config)),
        ("activation", activation(model)),
        *experts,
        ("norms", norms(model)),
        ("soft caps", ", ".join(caps) or "none"),
        ("context", f"{context:,} tokens" if context else "without a limit"),
        ("vocabulary", f"{config.vocab_size:,} tokens, {tied}"),
    ]


def attention(model: Any) -> list[str]:
    """How each kind of layer mixes tokens, and which layers are of that kind."""
    kinds: dict[str, list[int]] = {}
    for index, layer in enumerate(model.get_decoder().layers):
        kinds.setdefault(_mixing(layer, model.config.get_text_config()), []).append(index)
    return [f"{kind}: layers {spans(layers)}" for kind, layers in kinds.items()]


def _mixing(layer: Any, config: Any) -> str:
    found = [m for m in layer.modules() if hasattr(m, "q_proj") and hasattr(m, "head_dim")]
    if not found:
        return f"RG-LRU, {config.lru_width} wide, convolution of {config.conv1d_width} tokens"
    (block,) = found
    heads = block.q_proj.weight.shape[0] // block.head_dim
    if getattr(block, "is_kv_shared_layer", False):
        kind = "keys and values of an earlier layer"
    else:
        own = block.k_proj.weight.shape[0] // block.head_dim
        name = {heads: "multi-head", 1: "multi-query"}.get(own, "grouped")
        kind = f"{name}, {own} key-value head{'s' * (own > 1)}"
    window = getattr(block, "sliding_window", None)
    if hasattr(layer, "temporal_block"):  # RecurrentGemma's, with the token itself
        window = config.attention_window_size + 1
    reach = f"sliding window of {window:,} tokens" if window else "all tokens before"
    return f"{heads} heads of {block.head_dim}, {kind}, {reach}"


def positions(config: Any) -> str:
    """RoPE with its base frequencies and scaling, or learned vectors."""
    given = getattr(config, "rope_parameters", None)
    if given is None:
        rope = getattr(config, "rope", False)
        return "RoPE, theta 10,000" if rope else f"{config.max_position_embeddings} learned vectors"
    nested = {kind: value for kind, value in given.items() if isinstance(value, dict)}
    texts = []
    for kind, rope in (nested or {"": given}).items():
        where = f"{kind.removesuffix('_attention')} layers " if kind else ""
        share = rope.get("partial_rotary_factor", 1)
        part = f" of {share:.0%} of each head" if share != 1 else ""
        scale = rope.get("rope_type", "default")
        scaling = "" if scale == "default" else f", {scale} scaling × {rope.get('factor', 1):g}"
        texts.append(f"{where}theta {rope['rope_theta']:,.0f}{part}{scaling}")
    return "RoPE, " + "; ".join(texts)


def activation(model: Any) -> str:
    """The MLP's function, and whether a gate multiplies it."""
    gated = any(name.endswith("gate_proj") for name, _ in model.named_modules())
    config = model.config.get_text_config()
    name = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    name = name or ("silu" if gated else "relu")  # the mini-GPT's
    return f"{name}, {'gated' if gated else 'not gated'}"


def norms(model: Any) -> str:
    """The class of the norms, their epsilon, and where in a layer they stand."""
    layer = model.get_decoder().layers[0]
    found = [(n, m) for n, m in layer.named_modules() if "Norm" in type(m).__name__]
    kinds = sorted(
        {re.sub(r"^.*?(RMS|Layer)", r"\1", type(module).__name__) for _, module in found}
    )
    eps = {
        getattr(module, "eps", None) or getattr(module, "variance_epsilon", None)
        for _, module in found
    }
    names = ", ".join(name.rpartition(".")[2] for name, _ in found)
    return f"{', '.join(kinds)}, epsilon {min(filter(None, eps)):g}: {names}"


def licence(name: str, model: Any) -> str:
    """What a local model's README says, else what its published name tells."""
    readme = Path(name).expanduser() / "README.md"
    if readme.is_file():
        head = readme.read_text(encoding="utf-8", errors="replace").split("---")
        stated = (
            re.search(r"^license: *['\"]?([\w.-]+)", head[1], re.MULTILINE)
            if len(head) > 2
            else None
        )
        if stated:
            return sources.TERMS.get(stated.group(1), stated.group(1))
    published = sources.published_name(name)
    known = None if Path(published).is_absolute() else sources.license_of(published)[0]
    if known:
        return sources.TERMS[known]
    gemma = "gemma" in model.config.model_type
    return "not stated" + "; Google's own weights come under ai.google.dev/gemma/terms" * gemma


def spans(layers: Iterable[int]) -> str:
    """``0-4, 6, 9-11`` for sorted numbers; empty for none."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in runs)


def _published(name: str) -> str:
    """The name of a module or parameter without what PEFT puts in front of it."""
    return name.removeprefix("base_model.model.")
