"""An adapter that was made elsewhere, by PEFT, TRL, Unsloth or axolotl: its base, and how it is asked."""

import re
import sys
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.files import read_json
from ft.models import lora, sources
from ft.text.template import Template, to_record

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
SPOKEN = "chat_template.jinja"
_PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
_IN_4_BITS = re.compile(r"(bnb|nf4)-?4bit|-nf4\b")


def check(folder: Path, named: str) -> dict[str, Any]:
    """The configuration of the adapter in a folder.

    Raises ``UserError`` where it has no weights that are loaded here, or is no LoRA.
    """
    if not (folder / WEIGHTS).is_file():
        pickled = next((name for name in _PICKLES if (folder / name).is_file()), "")
        raise UserError(
            f"{named} has its weights in {pickled}, a pickle, which can run code and is not loaded: load it with "
            f"PEFT and save it again, which writes {WEIGHTS}"
            if pickled
            else f"{named} is not a whole adapter: it has no {WEIGHTS}"
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise UserError(f"{folder / CONFIG} is not the configuration of an adapter: no object")
    lora.check_kind(folder / CONFIG)
    return config


def base_of(config: dict[str, Any], named: str, model: str | None) -> tuple[str, str | None]:
    """The base of an adapter, as ``models.load`` takes it, and its commit where that is known.

    It is ``model``, else the one that the adapter names, for a copy in few bits the model that this was made of.
    Raises ``UserError`` for one that is not to be found.
    """
    if model:
        sources.resolve(model)
        return model, None
    name = config.get("base_model_name_or_path")
    where = f"{named}/{CONFIG}"
    if not name or not isinstance(name, str):
        raise UserError(
            f"{where} does not say which base it belongs to: name it with --model, a Hub id or a folder"
        )
    whole = sources.in_16_bits(name)
    try:
        sources.resolve(whole)
    except UserError as error:
        raise UserError(
            f"{where} names a base that is not here: {error} Name the base with --model."
        ) from None
    if whole != name:
        copy = f"of which {name} is a copy in few bits; --model names another"
        print(f"note: on {whole}, {copy}", file=sys.stderr)
        return whole, None
    return whole, config.get("revision") or None


def is_alone(folder: Path) -> bool:
    """Whether a folder holds an adapter that no run of ``ft`` made."""
    from ft.runs.folder import CONFIG as SETTINGS
    from ft.runs.folder import RECORD

    own = any((folder / file).is_file() for file in (RECORD, SETTINGS))
    return not own and (folder / CONFIG).is_file()


def known(
    folder: Path, named: str, *, model: str | None, template: str | None
) -> tuple[dict[str, Any], dict[str, Any], Template | None]:
    """Record, settings and template of an adapter, as a run's folder has them.

    ``model`` is its base, where another than the one that it names is meant. Raises ``UserError`` for what is
    wrong with it, before any weight is read.
    """
    config = check(folder, named)
    base, revision = base_of(config, named, model)
    pair = template if template and _is_pair(template) else None
    asked = _template(template, folder, base, pair) if template else None
    recorded = str(config.get("base_model_name_or_path") or "")
    known: dict[str, Any] = {"name": base, "base_model": sources.published_name(base)}
    if revision and not Path(base).expanduser().is_dir():
        known["revision"] = revision
    if not model and _IN_4_BITS.search(recorded) and not Path(recorded).exists():
        known["precision"] = "nf4"  # which it learnt in
    settings = {"model_name_or_path": base}
    settings |= {"language_pair": pair} if pair else {}
    record: dict[str, Any] = {"model": known}
    if asked:
        task = "translation" if "source" in asked.reads else "instructions"
        record |= {"task": task, "template": to_record(asked)}
    return record, settings, asked


def unasked(named: str) -> UserError:
    """What is said where a command asks an adapter and no template was given."""
    return UserError(
        f"{named} was made elsewhere and does not say how it is asked: give --template, as it was trained, "
        f"{allowed()}"
    )


def allowed() -> str:
    """The templates that an adapter may be asked with, in words."""
    from ft.text.prompts import INSTRUCTION

    return (
        f"{', '.join(['chat', *INSTRUCTION])}, a pair of languages such as en-fr (translation), or a file "
        "NAME.yaml"
    )


def chat_template_of(folder: Path) -> str | None:
    """The chat template that was saved with an adapter, in a file of its own or in its tokenizer's; or none."""
    if (folder / SPOKEN).is_file():
        return (folder / SPOKEN).read_text(encoding="utf-8")
    file = folder / "tokenizer_config.json"
    found = read_json(file).get("chat_template") if file.is_file() else None
    if isinstance(found, list):  # several by name
        found = next((one["template"] for one in found if one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _is_pair(name: str) -> bool:
    return "-" in name and not name.endswith((".yaml", ".yml"))


def _template(name: str, folder: Path, base: str, pair: str | None) -> Template:
    from ft.models.load import load_tokenizer
    from ft.text import prompts

    if pair:
        return prompts.translation_of(pair)
    if name != "chat" and name not in prompts.INSTRUCTION and not name.endswith((".yaml", ".yml")):
        raise UserError(f"template {name!r}: allowed are {allowed()}")
    tokenizer = load_tokenizer(base)
    if spoken := chat_template_of(folder):
        tokenizer.chat_template = spoken
    return prompts.by_name(name, tokenizer)
