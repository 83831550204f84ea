"""Load a Gemma to fine-tune, in the precision and with the attention that fit model and machine."""

import contextlib
import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft import machine
from ft.errors import UserError, nearest
from ft.models import parameters, unsloth_backend
from ft.models import precision as hardware
from ft.models.precision import import_bitsandbytes
from ft.models.sources import fetch, published_name, read_config, shapes_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

BACKENDS = ("auto", "transformers", "unsloth")
SPARE = 1024  # rows of an embedding that no entry of its tokenizer may name


@dataclass(frozen=True)
class Base:
    """A loaded base model, and how it was loaded."""

    model: "PreTrainedModel"
    tokenizer: Any
    name: str  # as the user gave it
    path: Path  # the folder that it was loaded from, of the Hub's cache that of a commit
    precision: str  # "fp32", "bf16", "nf4" or "int8"
    backend: str  # "transformers" or "unsloth"
    attention: str  # "eager", "sdpa", …
    notes: tuple[str, ...]  # every choice made here with its reason, to print


def load_config(name: str) -> "PreTrainedConfig":
    """The model's configuration. Raises ``UserError`` for a model that ``load`` does not support."""
    return _config(fetch(name, weights=False), name)


def context_of(config: Any) -> int | None:
    """Positions that a model of this configuration has; none where it names no bound."""
    return getattr(config.get_text_config(), "max_position_embeddings", None)


@machine.collecting_later()
def load_tokenizer(name: str) -> "PreTrainedTokenizerFast":
    """The model's own tokenizer. Raises ``UserError`` for a model without one."""
    return _tokenizer(fetch(name, weights=False), name)


@machine.collecting_later()
def load(
    name: str,
    *,
    precision: str = "auto",
    backend: str = "auto",
    attention: str = "auto",
    max_length: int | None = None,
    text_only: bool = True,
    inference: bool = False,
    tokenizer: Any = None,
) -> Base:
    """Load a base model and its tokenizer. The model answers ``labels=`` with our summed loss.

    ``text_only`` leaves out the vision and audio towers of a multimodal checkpoint; its class and
    the names of its parameters stay, so that an adapter fits the published model. ``max_length``
    is the longest sequence that it will be given; ``inference`` admits int8; ``tokenizer`` is its own,
    where that was read already. Raises ``UserError`` for every choice that cannot be met, before any weight is read where that can be known.
    """
    _check_backend(backend, precision, inference=inference)
    import_bitsandbytes()
    notes = unsloth_backend.prepare() if backend == "unsloth" else []
    on = machine.here()
    hardware.check_gpu(on)
    choice = hardware.choose_precision(precision, on)
    config = load_config(name)
    _check_length(max_length, config, name)
    head = _widest_head(config)
    only = None if attention == "auto" else attention
    if backend == "unsloth" and attention != "auto" and on.device != "cpu":
        raise UserError(f"attention {attention}: Unsloth has its own; use backend transformers")
    chosen = hardware.choose_attention(attention, config.model_type, head, on, choice.compute)
    attention, why = chosen.split(": ", 1)
    path = fetch(name)
    if precision == "auto" and on.device.startswith("cuda"):
        choice = _widened(choice, on, path)
    tokenizer = _tokenizer(path, name) if tokenizer is None else tokenizer
    with load_errors(name):
        if backend == "unsloth":
            own = attention if on.device == "cpu" else None
            model = unsloth_backend.load(
                path,
                compute=choice.compute,
                nf4=choice.precision == "nf4",
                attention=own,
                max_length=max_length or 2048,
            )
            attention, why = str(model.config._attn_implementation), "as Unsloth set it"
            model.by_unsloth = True
            notes.append("examples are padded: Unsloth's masks do not keep packed ones apart")
        else:
            backend = "transformers"
            model = _from_transformers(path, config, choice, attention, on.device)
            if on.device != "cpu" and machine.launched()["sharded"]:
                notes.append("read into the computer's memory: each GPU gets its share of a layer")
        assert model.config.get_text_config()._attn_implementation == attention
    said, more = _install_kernels(model, choice, on, backend, attention, head, only)
    why, notes = why + said, notes + more
    if text_only and parameters.drop_towers(model):
        notes.append("vision and audio towers left out: the data is text")
    _check_tokenizer(tokenizer, model, name)
    model.name_or_path = model.config._name_or_path = published_name(name)
    notes = [
        f"precision {choice.precision}: {choice.reason}",
        f"attention {attention}: {why}",
        f"backend {backend}",
        *notes,
    ]
    return Base(model, tokenizer, name, path, choice.precision, backend, attention, tuple(notes))


def _check_backend(backend: str, precision: str, *, inference: bool) -> None:
    if backend not in BACKENDS:
        raise UserError(
            f"unknown backend {backend!r}; allowed: {', '.join(BACKENDS)}."
            + nearest(backend, BACKENDS)
        )
    if precision == "int8" and (backend == "unsloth" or not inference):
        raise UserError(
            "precision int8 is for generation with the backend transformers: rounded weights cannot be "
            "trained or merged. Use fp32, bf16 or nf4."
        )


def _check_length(max_length: int | None, config: Any, name: str) -> None:
    context = context_of(config)
    if max_length and context and max_length > context:
        raise UserError(
            f"max_length={max_length} is longer than {name} allows: it has {context:,} positions. "
            "Lower --max-length."
        )


def _widest_head(config: Any) -> int:
    # by text: transformers refuses to answer for a model whose layers differ
    heads = re.findall(r'head_dim": (\d+)', config.get_text_config().to_json_string(use_diff=False))
    return max(map(int, heads), default=0)


def _widened(choice: hardware.Choice, on: machine.Machine, path: Path) -> hardware.Choice:
    """bf16 in place of nf4 where a GPU has room for it."""
    import torch

    found = machine.launched()
    share = found["processes"] if found["sharded"] else 1
    return hardware.widen(choice, on, _numbers(path), torch.cuda.mem_get_info()[0], share)


def _numbers(path: Path) -> int:
    """How many numbers the weights in a folder are, by the headers of their files."""
    return sum(map(math.prod, shapes_of(path).values()))


def _from_transformers(
    path: Path, config: Any, choice: hardware.Choice, attention: str, device: str
) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    compute, sharded = getattr(torch, choice.compute), machine.launched()["sharded"]
    quantization = None
    if choice.precision == "nf4":
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            # what processes share out must look like numbers: bytes would stay whole in each of them
            bnb_4bit_quant_storage=compute if sharded else torch.uint8,
            llm_int8_skip_modules=parameters.UNQUANTIZED,
        )
    # a tower keeps its own default: Gemma 4's for audio has no sdpa
    towers = config is not config.get_text_config()
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        config=config,
        dtype=compute,
        attn_implementation={"text_config": attention} if towers else attention,
        quantization_config=quantization,
        # where it is shared out, a GPU need not hold all of it at any time
        device_map={"": "cpu" if sharded else device},
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    model, info = loaded
    if info["missing_keys"]:
        some = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{path}: the weights lack {len(info['missing_keys'])} tensors: {some} …")
    return model


def _install_kernels(
    model: Any,
    choice: hardware.Choice,
    on: machine.Machine,
    backend: str,
    attention: str,
    head: int,
    only: str | None,
) -> tuple[str, list[str]]:
    """Let the model compute as ``ft.kernels`` do: faster, or right where it is not.

    Returns what is to be said of its attention, and other notes.
    """
    import torch

    from ft.kernels import attention as by_example
    from ft.kernels import cross_entropy, fused, fused_layers, half, quantized

    said, notes, kind = "", [], model.config.model_type
    dtype = model.get_input_embeddings().weight.dtype
    sample = torch.empty(0, dtype=dtype, device=on.device)  # weights may come to it later
    if backend == "transformers" and choice.precision == "nf4" and on.device == "cpu":
        quantized.install_nf4(model)
    elif backend == "transformers" and choice.half:
        half.install(model)
    if choice.precision == "int8":
        quantized.install_int8(model, parameters.int8_layers(model))
    if kind == "recurrent_gemma":
        from ft.kernels import recurrent

        recurrent.install(model)
    if backend == "transformers" and by_example.helps(on.device, attention, kind):
        by_example.install(model, only)
        said = "; " + by_example.describe(model, sample.device, choice.compute, head)
    known = fused_layers.install(model) if backend == "transformers" else {}
    if backend == "transformers" and fused.usable(sample):
        counts = [f"{n} {what}" for what, n in known.items() if n]
        notes.append("fused kernels: " + (", ".join(counts) or "none knows this model's layers"))
    elif backend == "transformers" and (why := fused.lack(sample.device)):
        notes.append(
            f"fused kernels: none, and PyTorch's slower operations, as Triton fails here ({why}); it compiles with gcc "
            "and Python's headers (python3-dev)"
        )
    cross_entropy.install(model)
    return said, notes


def _check_tokenizer(tokenizer: Any, model: Any, name: str) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    # some tables are filled up to a round number; the text-only Gemma 3 have no row for the last
    # entry of their tokenizer, an image's placeholder, which text never becomes
    if not rows - SPARE <= len(tokenizer) <= rows + 1:
        raise UserError(
            f"the tokenizer of {name} has {len(tokenizer):,} entries, its embedding {rows:,} rows: "
            "they do not belong together. Use the tokenizer that the model was published with."
        )


def _config(path: Path, name: str) -> Any:
    from transformers import AutoConfig

    raw = read_config(path, name)
    kind = raw["model_type"]
    if kind == "minigpt":
        from ft import minigpt  # noqa: F401  # tells transformers of it
    with load_errors(name):
        config = AutoConfig.from_pretrained(path, local_files_only=True)
    if kind == "gemma" and config.hidden_act == "gelu":
        # Gemma's first settings say so and mean tanh; transformers before 5.23 takes them at their word
        config.hidden_act = "gelu_pytorch_tanh"
    return config


def _tokenizer(path: Path, name: str) -> Any:
    from transformers import AutoTokenizer

    if not any((path / file).is_file() for file in ("tokenizer.json", "tokenizer.model")):
        raise UserError(f"{name} has no tokenizer (tokenizer.json or tokenizer.model).")
    if not (path / "tokenizer.json").is_file() and not importlib.util.find_spec("google.protobuf"):
        raise UserError(
            f"{name} has a tokenizer.model alone, which is read with protobuf: pip install protobuf"
        )
    with load_errors(name):
        return AutoTokenizer.from_pretrained(path, local_files_only=True)


@contextlib.contextmanager
def load_errors(name: str) -> Iterator[None]:
    """Turn what the libraries raise for a damaged or unknown model into one line."""
    from safetensors import SafetensorError

    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        lacks = " ".join(str(error).split())
        raise UserError(f"{name} needs a package that is not installed: {lacks}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if "out of memory" in str(error):
            raise
        raise UserError(f"{name} cannot be loaded: {' '.join(str(error).split())}") from error
