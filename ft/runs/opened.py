"""Runs as a user names them: a recipe's file and flags before training, a run's folder after it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.text.template import Template, from_record


@dataclass(frozen=True)
class Finished:
    """A run that is done: what its folder says of itself."""

    folder: Path
    record: dict[str, Any]  # run.json
    settings: dict[str, Any]  # config.yaml
    template: Template  # the one it was trained with

    @property
    def whole(self) -> bool:
        """Whether its folder is a model, of a full-parameter run, and not an adapter."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def translates(self) -> bool:
        """Whether it was trained on pairs of source and target, and not on instructions."""
        return "{source}" in self.template.prompt

    @property
    def weights(self) -> str:
        """The model that it is, or that its adapter belongs to."""
        return str(self.folder) if self.whole else self.settings["model_name_or_path"]

    @property
    def sees(self) -> bool:
        """Whether it was trained on images."""
        return "train_vision" in self.settings

    @property
    def reasons(self) -> bool:
        """Whether it learnt to reach a number step by step, and is scored by chains that it draws."""
        return "chains" in self.settings


def recipe(path: Path, flags: list[str], *, pairs: bool = False) -> tuple[Any, Any]:
    """A recipe's module, and its settings from flags. Raises ``UserError`` if it is none.

    With ``pairs`` also for one that pretrains on text, which has no prompts and completions.
    """
    import importlib.util

    from ft.config import parse

    if not path.is_file():
        raise UserError(f"{path}: there is no such recipe; the recipes lie in recipes/")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    if not hasattr(module, "Config") or not hasattr(module, "rows"):
        raise UserError(f"{path}: not a recipe, it has no Config and rows")
    if pairs and not hasattr(module, "template"):
        raise UserError(f"{path} pretrains on text: it has no prompts and completions to look at")
    config = parse(module.Config, flags, doc=module.__doc__)
    # what starts from a finished run takes its model from there
    return module, module.resolved(config) if hasattr(module, "resolved") else config


def finished(run: str | Path) -> Finished:
    """The run in a folder or a Hub repository. Raises ``UserError`` if it is not a whole one."""
    import yaml

    from ft.runs import hub
    from ft.runs.folder import CONFIG, read

    folder = hub.pull(run)
    record = read(folder)
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{run}: not a run's folder, it has no {CONFIG}") from None
    return Finished(folder, record, settings, from_record(record["template"]))


def load(
    run: Finished, precision: str = "auto", *, tuned: bool = True, images: bool = False
) -> tuple[Any, Any]:
    """The tuned model of a run, on all cores and with the loss of ``ft.kernels.cross_entropy``, and its tokenizer.

    Without ``tuned``, its base model. With ``images`` it can be shown some, as one can that was trained
    on them.
    """
    from ft import machine
    from ft.models import lora
    from ft.models.load import load as load_base

    machine.use_all_cores()
    if precision == "auto":  # the one that it was trained in
        precision = run.record.get("model", {}).get("precision", precision)
    whole = tuned and run.whole
    name = str(run.folder) if whole else run.settings["model_name_or_path"]
    text = not (images or run.sees)
    base = load_base(name, precision=precision, inference=True, text_only=text)
    if not tuned or whole:
        return base.model, base.tokenizer
    model = lora.load(base, run.folder)
    return model, base.tokenizer
