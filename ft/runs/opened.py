"""What a user names: a recipe's file and flags before training; a run's folder, a Hub run or a model after it."""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ft import files
from ft.errors import UserError, hub_errors
from ft.models import sources
from ft.runs import elsewhere
from ft.runs.record import Task
from ft.text.template import Template, from_record

if TYPE_CHECKING:
    from ft.generate.samplers import Beam, Greedy
    from ft.models.vision import Reader


@dataclass(frozen=True)
class Finished:
    """A run that is done: what its folder says of itself."""

    folder: Path
    record: dict[str, Any]  # run.json
    settings: dict[str, Any]  # config.yaml
    trained_with: Template | None  # none: made elsewhere, and its template was not given
    named: str = ""  # as the user named it
    any_base: bool = False  # its adapter may go on other weights than those that it learnt on
    alone: bool = False  # an adapter that another program made, without a run's record

    @property
    def template(self) -> Template:
        """The one that it was trained with. Raises ``UserError`` for an adapter whose template was not given."""
        if self.trained_with is None:
            raise elsewhere.unasked(self.named or str(self.folder))
        return self.trained_with

    def check_own(self, wanted: str) -> None:
        """Raise ``UserError`` for an adapter made elsewhere, where a run with its record is needed."""
        if self.alone:
            raise UserError(
                f"{self.named} was made elsewhere, without a run's record of data and settings: {wanted}, give a "
                "run of ft, or its merged folder as a recipe's --model"
            )

    @property
    def name(self) -> str:
        """Its name on the Hub, or that of its folder."""
        on_hub = self.named and not Path(self.named).expanduser().is_dir()
        return self.named if on_hub else self.folder.resolve().name

    @property
    def task(self) -> Task:
        """What it learnt to do."""
        return task_of(self.record, self.settings, self.template)

    @property
    def asked(self) -> dict[str, Any]:
        """The settings that say which data it is judged by: its own, or those of the run that it started from."""
        return self.record.get("start", {}).get("settings", self.settings)

    @property
    def sampler(self) -> "Greedy | Beam":
        """How it looks for the likeliest answer: as its scores were made."""
        from ft.generate.samplers import from_generation_config

        return from_generation_config(self.record.get("decoding", {}))

    @property
    def whole(self) -> bool:
        """Whether its folder is a model, of a full-parameter run, and not an adapter."""
        return (self.folder / "model.safetensors").is_file()

    @property
    def weights(self) -> str:
        """The model that it is, or that its adapter belongs to."""
        return str(self.folder) if self.whole else self.base

    @property
    def base(self) -> str:
        """The model that it was trained from, as ``models.load`` takes it: on the Hub at the commit of then.

        A folder is where it was then, whatever folder one works in, or else as the settings name it.
        """
        model = self.record.get("model", {})
        name, _ = sources.pinned(str(self.settings["model_name_or_path"]))
        if model.get("revision") and not self.any_base:
            return f"{name}@{model['revision']}"
        then = Path(str(model.get("base_model", "")))
        return str(then) if then.is_absolute() and then.is_dir() else name


@dataclass
class Opened:
    """A model that is loaded, with what goes with it: the tuned one of a run, its base, or a model as it is."""

    name: str  # short, for a user to know it by
    model: Any
    tokenizer: Any
    template: Template | None  # that prompts go into; none: they are taken as they are
    see: "Reader | None" = None  # of a model that was loaded with its image tower
    run: Finished | None = None
    precision: str = "auto"
    _base: Any = field(default=None, repr=False)

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; none where the model sets no limit."""
        from ft.models.load import context_of

        return context_of(self.model.config)

    @property
    def base(self) -> Any:
        """The model that answers in ``as_base``: of a run that trained all parameters its base, loaded once.

        Raises ``UserError`` for a model, which has no other one beside it.
        """
        if self.run is None:
            raise UserError(
                f"{self.name} is a model and not a run: there is no other one beside it"
            )
        if self._base is None:
            whole = self.run.whole
            self._base = load(self.run, self.precision, tuned=False).model if whole else self.model
        return self._base

    @contextlib.contextmanager
    def as_base(self) -> Iterator[Any]:
        """The run's base while this lasts: an adapter is off then. Raises as ``base`` does."""
        base = self.base
        with self.model.disable_adapter() if base is self.model else contextlib.nullcontext():
            yield base


def task_of(record: dict[str, Any], settings: dict[str, Any], template: Template) -> Task:
    """What a run learnt to do: as its record says, or for an older one as its settings tell."""
    if "task" in record:
        return cast(Task, record["task"])
    if record.get("recipe") == "minigpt_pretrain":
        return "pretraining"
    if "train_vision" in settings:
        return "images"
    if "chains" in settings:
        return "reasoning"
    return "translation" if "{source}" in template.prompt else "instructions"


def recipe(path: Path, flags: list[str], *, pairs: bool = False) -> tuple[Any, Any]:
    """A recipe's module, and its settings from flags. Raises ``UserError`` if it is none.

    With ``pairs`` also for one that pretrains on text, which has no prompts and completions.
    """
    import importlib.util

    from ft.config import parse

    if not path.is_file():
        raise files.no_recipe(path)
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


def finished(
    run: str | Path,
    *,
    task: Task | None = None,
    any_base: bool = False,
    template: str | None = None,
    model: str | None = None,
) -> Finished:
    """The run in a folder or a Hub repository. Raises ``UserError`` if it is not a whole one.

    Also for one that learnt another ``task`` than the one that is wanted. With ``any_base`` its adapter
    goes on the base that is there, whatever its weights. An adapter that was made elsewhere takes ``template``,
    which it is asked with, and ``model``, its base where it names another; a run has both.
    """
    from ft.runs import hub
    from ft.runs.folder import RECORD, read, read_settings

    local = Path(run).expanduser()
    folder = local if elsewhere.is_alone(local) else hub.pull(local if local.is_dir() else run)
    if elsewhere.is_alone(folder):
        known = elsewhere.known(folder, str(run), model=model, template=template)
        return Finished(folder, *known, str(run), any_base or bool(model), alone=True)
    if template:
        raise UserError(f"--template {template}: {run} is a run and brings its own template")
    if model:
        raise UserError(
            f"--model {model}: {run} is a run and says in its {RECORD} what it was trained from; --any-base takes "
            "other weights there"
        )
    record = read(folder)
    settings = read_settings(folder)
    if "template" not in record:
        raise UserError(f"{folder / RECORD} names no template: that run ended before it had begun")
    found = Finished(folder, record, settings, from_record(record["template"]), str(run), any_base)
    if task and found.task != task:
        raise UserError(f"{run} is a run that learnt {found.task}; give one that learnt {task}")
    return found


def find(
    name: str, *, any_base: bool = False, template: str | None = None, model: str | None = None
) -> Finished | None:
    """The run or adapter that a name means, as ``finished`` has it; none where it names a model.

    A model may be asked with ``template`` too. Raises ``UserError`` for a run that is not whole, and for what
    is on the Hub and cannot be reached.
    """
    if is_run(name):
        return finished(name, any_base=any_base, template=template, model=model)
    if model:
        raise UserError(
            f"--model {model}: {name} is a model itself; give an adapter that goes on {model}"
        )
    return None


def is_run(name: str) -> bool:
    """Whether a name is that of a run, and not of a model: an adapter, or a folder with a record."""
    from ft.runs.folder import RECORD

    if name == "embedded":
        return False
    folder = Path(name).expanduser()
    if folder.is_dir():
        return any((folder / file).is_file() for file in (RECORD, elsewhere.CONFIG))
    repo, at = sources.pinned(str(sources.resolve(name)))
    from huggingface_hub import snapshot_download

    with hub_errors(repo, missing=f"there is no folder {name} here"):
        files_of_one = [RECORD, elsewhere.CONFIG]
        found = Path(snapshot_download(repo, revision=at, allow_patterns=files_of_one))
        return any((found / file).is_file() for file in files_of_one)


def load(
    named: Finished | str,
    precision: str = "auto",
    *,
    template: str | Template | None = None,
    tuned: bool = True,
    images: bool = False,
    tokenizer: Any = None,
) -> Opened:
    """A run or a model, ready to answer on all cores.

    A run brings its template. A model takes ``template``, itself or what ``prompts.by_name`` takes, or
    none. Without ``tuned`` it is the base model of a run. With ``images`` it can be shown some, as one
    can that was trained on them. ``tokenizer`` is the model's own, where that was read already. Raises ``UserError`` for what cannot be loaded, and for an adapter of
    other weights than those of its base.
    """
    from ft import machine
    from ft.models import lora, vision
    from ft.models.load import load as load_base
    from ft.text import prompts

    run = find(named) if isinstance(named, str) else named
    if run and template:
        raise UserError(f"--template {template}: {run.named} is a run and brings its own template")
    images = images or bool(run and run.trained_with and run.task == "images")
    if run and precision == "auto":  # the one that it was trained in
        precision = run.record.get("model", {}).get("precision", precision)
    options: dict[str, Any] = {"precision": precision, "tokenizer": tokenizer}
    options |= {"inference": True, "text_only": not images}
    if run is None:
        assert isinstance(named, str)
        if not tuned:
            raise UserError(f"{named} is a model, not a run")
        see = vision.reader(named) if images else None
        machine.use_all_cores()
        base = load_base(named, **options)
        if isinstance(template, str):
            template = prompts.by_name(template, base.tokenizer)
        return Opened(named, base.model, base.tokenizer, template, see, precision=precision)
    adapted = tuned and not run.whole
    if adapted or not tuned:
        check_base(run)
    see = vision.reader(run.weights) if images else None
    machine.use_all_cores()
    base = load_base(run.weights if tuned else run.base, **options)
    model = lora.load(base, run.folder, any_base=run.any_base) if adapted else base.model
    return Opened(run.name, model, base.tokenizer, run.trained_with, see, run, precision)


def check_base(run: Finished) -> None:
    """Raise ``UserError`` where a run's base model has other weights than those that it was trained on.

    ``Finished.any_base`` insists. `embedded` is made from a pinned package, and is not read for this.
    """
    from ft.files import sampled_hash

    recorded = run.record.get("model", {}).get("sha256")
    if run.any_base or not recorded or run.base in ("embedded", "tiny-vision"):
        return
    folder = sources.fetch(run.base)
    if (found := sampled_hash(folder)) != recorded:
        raise UserError(
            f"{run.folder} is of another base: the weights in {folder} are not those that it was trained "
            f"on ({found[:12]}, not {recorded[:12]}). Put those back, or train again; --any-base takes "
            "these all the same."
        )
