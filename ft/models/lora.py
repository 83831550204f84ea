"""LoRA adapters on every linear layer of a Gemma's language model: attach, describe, load."""

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ft import machine
from ft.errors import UserError
from ft.files import read_json, write_json
from ft.models import lora_starts, parameters, unsloth_backend
from ft.models.parameters import count
from ft.models.sources import commit_of, in_16_bits

if TYPE_CHECKING:
    from peft import PeftModel

Variant = Literal["lora", "rslora", "dora"]


@machine.collecting_later()
def attach(
    base: Any,
    *,
    r: int,
    alpha: float,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "auto",
    variant: Variant = "lora",
    vision: bool = False,
) -> "PeftModel":
    """Wrap a ``models.Base`` (or a bare model) in a new LoRA adapter; only the adapter trains.

    What comes back answers ``labels=`` with our summed loss, whoever made the model inside.
    With ``vision`` the image tower's linear layers have one too, and what projects its results into the
    language model trains as it is and is saved with the adapter.

    The adapter's weights are float32 whatever the base's precision, and drawn from PyTorch's
    generator. It starts as the identity: B is zero. ``variant``: LoRA (https://arxiv.org/abs/2106.09685),
    rsLoRA (scale alpha/sqrt(r), 2312.03732) or DoRA (2402.09353). Raises ``UserError`` for a bad option.
    """
    if r < 1 or alpha <= 0 or not 0 <= dropout < 1:
        raise UserError(
            f"LoRA needs r >= 1, alpha > 0 and 0 <= dropout < 1; got r {r}, alpha {alpha}, "
            f"dropout {dropout}."
        )
    model = base.model if hasattr(base, "precision") else base
    chosen = parameters.select(model, targets)
    chosen += parameters.tower_layers(model) if vision else []
    options: dict[str, Any] = {
        "r": r,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "target_modules": parameters.portable(model, chosen),
        "use_rslora": variant == "rslora",
        "use_dora": variant == "dora",
    }
    if vision:
        options["modules_to_save"] = parameters.projectors(model)
    if getattr(base, "backend", "transformers") == "unsloth":
        peft_model = unsloth_backend.attach(model, **options)
    else:
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(task_type="CAUSAL_LM", bias="none", **options)
        with quiet():
            peft_model = get_peft_model(model, config)
    assert _adapted(peft_model) == set(chosen), "the saved target_modules mean something else"
    _train_in_fp32(peft_model)
    if hasattr(base, "path"):
        peft_model.active_peft_config.revision = commit_of(base.path)
    return _ready(peft_model)


def summary(model: Any) -> str:
    """One line: the adapter, the number of its layers, the trained parameters and their share.

    Of a model without one, how many of its parameters train.
    """
    if not hasattr(model, "peft_config"):
        return parameters.summary(model)
    config: Any = model.active_peft_config
    trained, total = count(model)
    kind = "DoRA" if config.use_dora else "rsLoRA" if config.use_rslora else "LoRA"
    return (
        f"{kind} r {config.r}, alpha {config.lora_alpha:g} on {len(_adapted(model))} linear layers: "
        f"{trained:,} of {total:,} parameters trained ({trained / total:.2%})"
    )


def describe(model: Any) -> dict[str, Any]:
    """The adapter as plain values, for a run's record."""
    config: Any = model.active_peft_config
    targets, (trained, total) = config.target_modules, count(model)
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "use_rslora": config.use_rslora,
        "use_dora": config.use_dora,
        "targets": targets if isinstance(targets, str) else sorted(targets),
        "layers": len(_adapted(model)),
        "trainable": trained,
        "share": trained / total,
    }


@machine.collecting_later()
def load(
    base: Any, folder: Path, *, trainable: bool = False, any_base: bool = False
) -> "PeftModel":
    """Attach the adapter that lies in ``folder`` to a ``models.Base``.

    Names that other versions of transformers gave the same tensors, and those of a compiled model, are
    taken for what they mean. On a base without its towers, what an adapter has there is left out, unless it
    is to learn on. Raises ``UserError`` when it is none, or belongs to another base: by the Hub ids
    of both, unless ``any_base`` says that it goes there, by the shapes, or by names of layers that only one of
    the two has.
    """
    from peft import LoraConfig, PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
    from safetensors import SafetensorError, safe_open

    from ft.kernels import lora_copies

    needed = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    if missing := [file.name for file in needed if not file.is_file()]:
        raise UserError(f"{folder} is not an adapter: it has no {' and no '.join(missing)}.")
    check_kind(needed[0])
    with _as_configured(needed[0]):
        config: Any = LoraConfig.from_pretrained(str(folder))
    start, config.init_lora_weights = config.init_lora_weights, True  # all tensors are read
    recorded, given = in_16_bits(config.base_model_name_or_path or ""), base.model.name_or_path
    wrong = f"the adapter {folder} was trained on {recorded}, not on {given}"
    if recorded == given:
        wrong = f"the adapter {folder} does not fit {given}"
    hub_ids = not Path(recorded).is_absolute() and not Path(given).is_absolute()
    if recorded != given and hub_ids and not any_base:
        raise UserError(
            f"{wrong}. Name {recorded} as the base; for a run that is model_name_or_path in its "
            "config.yaml."
        )
    try:
        with safe_open(needed[1], framework="pt") as weights:
            shapes = {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
        if on_head := [name for name in shapes if ".lm_head.lora_" in name]:
            raise UserError(
                f"{folder} has LoRA on the head ({on_head[0]}): losses here are taken from the head's own "
                "weight, and would leave it out. Train one without lm_head."
            )
        _check_vocabulary(shapes, base.model, wrong)
        with quiet(), _as_configured(needed[0]):
            model = PeftModel.from_pretrained(
                base.model, str(folder), is_trainable=trainable, config=config
            )
    except UserError:
        raise
    except SafetensorError as error:
        raise UserError(f"{needed[1]} is damaged: {error}.") from None
    except (RuntimeError, ValueError) as error:
        first = next((line for line in str(error).splitlines() if "size mismatch" in line), error)
        raise UserError(f"{wrong}: {' '.join(str(first).split())}") from error
    expected: set[str] = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    known: dict[str, str] = {_plain(key): key for key in expected}
    meant: dict[str, str] = {key: known.get(_plain(key)) or key for key in shapes}
    if any(key != name for key, name in meant.items()):
        from safetensors.torch import load_file

        tensors = load_file(needed[1])
        set_peft_model_state_dict(model, {meant[key]: value for key, value in tensors.items()})
    stored = set(meant.values())
    # a copy of one of the base's own tensors, which PEFT has read into its place
    strange = sorted(stored - expected - set(model.state_dict()))
    if not trainable:
        strange = [name for name in strange if not parameters.of_dropped(base.model, name)]
    missing = sorted(expected - stored)
    if missing or strange:
        raise UserError(
            f"{wrong}: {len(missing)} of its tensors are missing and {len(strange)} fit nothing, such as "
            f"{', '.join((missing + strange)[:3])}."
        )
    if start in lora_starts.WITHIN:
        lora_starts.rebase(model, start, wrong)
    if trainable and hasattr(base, "path"):
        model.active_peft_config.revision = commit_of(base.path)
    ready = _ready(model)
    if not trainable:
        lora_copies.refresh(ready, lora_copies.matrices(ready))
    return ready


def active(model: Any) -> str:
    """The names of a model's adapters that are at work; nothing where they are switched off."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layer = next(m for m in model.modules() if isinstance(m, BaseTunerLayer))
    return "" if layer.disable_adapters else "+".join(layer.active_adapters)


@contextlib.contextmanager
def unrounded(model: Any) -> Iterator[None]:
    """While TRL makes a trainer, which rounds the adapters of a quantised base to bf16, where small steps are lost: undone."""
    trained = model.named_parameters() if hasattr(model, "peft_config") else ()
    kept = {name: p.data for name, p in trained if p.requires_grad}
    yield
    for name, parameter in model.named_parameters():
        if name in kept:
            parameter.data = kept[name].to(parameter.device)


_BEYOND = {  # what PEFT's LoRA can have beside its matrices, and is not done here
    "alora_invocation_tokens": "works behind certain tokens alone, and answers here are those of one model",
    "layer_replication": "repeats layers of its base, which has others here",
}


def check_kind(file: Path) -> None:
    """Raise ``UserError`` for another adapter than LoRA, one without a scale, and one whose start is lost."""
    values = read_json(file)
    if not isinstance(values, dict):
        raise UserError(f"{file} is not the configuration of an adapter: no object")
    merged = "merge it with PEFT's merge_and_unload and give that folder"
    if (kind := values.get("peft_type", "LORA")) != "LORA":
        raise UserError(
            f"{file} is of a {kind} adapter; only LoRA, rsLoRA and DoRA are put on a base here: {merged}"
        )
    for key, why in _BEYOND.items():
        if values.get(key):
            raise UserError(f"{file} has {key}: such an adapter {why}")
    for key, kind, words in (("r", int, "whole number"), ("lora_alpha", int | float, "number")):
        value = values.get(key, 1)
        if not isinstance(value, kind) or isinstance(value, bool) or not value > 0:
            raise UserError(f"{file}: {key} is {value!r}; expected a {words} above 0")
    lora_starts.check(values.get("init_lora_weights"), file)


@contextlib.contextmanager
def _as_configured(file: Path) -> Iterator[None]:
    """What PEFT cannot make of a configuration's values, as a ``UserError`` that names its file."""
    try:
        yield
    except (TypeError, AttributeError, KeyError, ImportError, re.error) as error:
        raise UserError(
            f"{file}: PEFT makes no adapter of these values ({type(error).__name__}: {error})"
        ) from error


def _plain(name: str) -> str:
    """A tensor's name in an adapter without what versions of transformers, and ``torch.compile``, put into it."""
    return re.sub(
        r"^(base_model|model|language_model)(\.(model|language_model))*\.",
        "",
        name.replace("_orig_mod.", "").replace("vision_tower.vision_model.", "vision_tower."),
    )


def _check_vocabulary(shapes: dict[str, list[int]], model: Any, wrong: str) -> None:
    """Raise ``UserError`` for an adapter of a model whose vocabulary has another size."""
    rows = len(model.get_input_embeddings().weight)
    for name, shape in shapes.items():
        of_rows = (
            re.search(r"(embed_tokens|lm_head)\.(\w+\.)*weight$", name) and "lora_" not in name
        )
        if of_rows and len(shape) == 2 and shape[0] != rows:
            raise UserError(
                f"{wrong}: its {name} has {shape[0]:,} rows and the base's {rows:,}: the vocabulary was "
                "resized in training. Give a base of that size, saved with its tokenizer."
            )


def settle_config(folder: Path) -> None:
    """Have a saved adapter's configuration list names in one order: PEFT keeps them in sets."""
    file = folder / "adapter_config.json"
    if file.exists():
        values = read_json(file)
        names = ("target_modules", "exclude_modules", "modules_to_save")
        values |= {n: sorted(values[n]) for n in names if isinstance(values.get(n), list)}
        write_json(file, values)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """While this lasts: PEFT 0.21 asks transformers 5.23 by an old name; and what it warns of is refused or done here."""
    with warnings.catch_warnings():
        # weights of the embedding or the head that come along: they are read, and merging unties the two
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings")
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing")
        warnings.filterwarnings("ignore", message="Found missing adapter keys")
        yield


def _ready(model: "PeftModel") -> "PeftModel":
    from ft.kernels import cross_entropy, lora_linear

    # On each save PEFT would otherwise ask the Hub whether the vocabulary grew, which it never does
    # here. `partial` and not a closure: it follows a deep copy of the model.
    save: Any = functools.partial(model.save_pretrained, save_embedding_layers=False)
    model.save_pretrained = save
    lora_linear.install(model)
    cross_entropy.install(model.get_base_model())
    return model


def _train_in_fp32(model: Any) -> None:
    """Have modules that train beside the adapter take and keep float32, as the adapter does."""
    from peft.utils.other import ModulesToSaveWrapper

    def widened(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return tuple(x.float() for x in args), {name: x.float() for name, x in kwargs.items()}

    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copy in module.modules_to_save.values():
                copy.float().register_forward_pre_hook(widened, with_kwargs=True)


def _adapted(model: Any) -> set[str]:
    """Names, in the base model, of the layers that have an adapter."""
    modules = model.base_model.model.named_modules()
    return {name for name, module in modules if hasattr(module, "lora_A")}
