"""Who answers in a conversation: the tuned model of a run and its base, or a model as it is."""

import contextlib
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from ft.chat.conversation import Conversation
from ft.errors import UserError, hub_errors
from ft.text.template import Template

if TYPE_CHECKING:
    from ft.generate.draft import Answer
    from ft.generate.samplers import Filter
    from ft.models.vision import Reader
    from ft.runs.opened import Finished

Pieces: TypeAlias = Generator[str, None, "Answer"]
"""An answer's text as it is written; in the end, the answer."""

NOTE = "{} is a base model: it completes text rather than answers (--template asks in another way)"
# Google's names of base models; some of them have a chat template nevertheless
BASE = re.compile(r"google/(?!.*-it(-|$)).*gemma.*")


@dataclass
class Partner:
    """A model that answers, and the template that it is asked with."""

    name: str
    model: Any
    tokenizer: Any
    template: Template
    note: str = ""  # what a user should know before the first question
    run: "Finished | None" = None
    precision: str = "auto"
    see: "Reader | None" = None  # of a model that was loaded with its image tower
    _base: Any = field(default=None, repr=False)  # of a run that trained all parameters, once asked

    @property
    def context(self) -> int | None:
        """Tokens that prompt and answer may have together; none where the model sets no limit."""
        from ft.models.load import context_of

        return context_of(self.model.config)

    def answer(
        self,
        prompt: Sequence[int],
        sampler: "Filter",
        *,
        max_new_tokens: int,
        seed: int,
        stop: Sequence[str] = (),
        tuned: bool = True,
    ) -> Pieces:
        """The pieces of the answer to a prompt's ids; returns the whole of it.

        Without ``tuned`` it is the base model's. What cannot be answered raises ``UserError`` here
        and not at the first piece.
        """
        from ft.generate import answers

        model, adapter = self.model, contextlib.nullcontext()
        if not tuned and self.run is None:
            raise UserError(
                f"{self.name} is a model and not a run: there is no other one beside it"
            )
        if not tuned and self.run and self.run.whole:
            from ft.runs import opened

            self._base = self._base or opened.load(self.run, self.precision, tuned=False)[0]
            model = self._base
        elif not tuned:
            adapter = self.model.disable_adapter()
        pieces = answers.stream(
            model,
            self.tokenizer,
            prompt,
            sampler,
            max_new_tokens=max_new_tokens,
            template=self.template,
            stop=stop,
            seed=seed,
        )
        return _inside(adapter, pieces)

    def ids(self, text: str) -> list[int]:
        """The ids of a text as it is, with one BOS in front."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if ids[:1] == [bos] else [bos, *ids]


def load(
    name: str, *, precision: str = "auto", template: str | None = None, images: bool = False
) -> Partner:
    """The partner that ``name`` means: a run's folder or Hub repository, else a model.

    A run brings its template; a model is asked with ``template``, a name or a file that
    ``prompts.by_name`` takes, else as its chat template says, or a base model plainly. With ``images``
    it can be shown some. Raises ``UserError`` for what cannot be loaded, and what takes no images then.
    """
    from ft import machine
    from ft.models import sources, vision
    from ft.models.load import load as load_base
    from ft.models.load import load_tokenizer
    from ft.runs import opened
    from ft.text import prompts

    folder = Path(name).expanduser()
    if is_run(name):
        if template:
            raise UserError(f"--template {template}: {name} is a run and brings its own template")
        run = opened.finished(folder if folder.is_dir() else name)
        Conversation(run.template)  # its faults, before any weight is read
        _check_base(run)
        see = vision.reader(run.weights) if images or run.sees else None
        model, tokenizer = opened.load(run, precision, images=images)
        short = folder.resolve().name if folder.is_dir() else name
        return Partner(short, model, tokenizer, run.template, run=run, precision=precision, see=see)
    see = vision.reader(name) if images else None
    tokenizer = load_tokenizer(name)
    answers = tokenizer.chat_template and not BASE.fullmatch(sources.published_name(name))
    chosen = prompts.by_name(template or ("chat" if answers else "plain"), tokenizer)
    Conversation(chosen)
    machine.use_all_cores()
    model = load_base(name, precision=precision, inference=True, text_only=not images).model
    note = "" if answers or template else NOTE.format(name)
    return Partner(name, model, tokenizer, chosen, note, see=see)


def is_run(name: str) -> bool:
    """Whether a name is that of a run, and not of a model: an adapter, or a folder with a record."""
    from ft.models import sources
    from ft.runs.folder import RECORD

    if name == "embedded":
        return False
    folder = Path(name).expanduser()
    if folder.is_dir():
        return any((folder / file).is_file() for file in (RECORD, "adapter_config.json"))
    repo = str(sources.resolve(name))
    from huggingface_hub import snapshot_download

    with hub_errors(repo, otherwise=f"There is no folder {name} here."):
        return (Path(snapshot_download(repo, allow_patterns=[RECORD])) / RECORD).is_file()


def sampler(temperature: float, top_p: float) -> "Filter":
    """Greedy at temperature 0, else a draw from the nucleus. Raises ``UserError`` out of range."""
    from ft.generate.samplers import Greedy, TopP

    nucleus = TopP(top_p, temperature)
    return nucleus if temperature else Greedy()


def trimmed(pieces: Pieces) -> Pieces:
    """The same text without white space at its ends."""
    held, started = "", False
    with contextlib.closing(pieces):
        while True:
            try:
                held += next(pieces)
            except StopIteration as ended:
                return ended.value
            held = held if started else held.lstrip()
            if text := held.rstrip():
                started, held = True, held[len(text) :]
                yield text


def _check_base(run: "Finished") -> None:
    """Raise ``UserError`` where the folder of a run's base model holds other weights than it was trained on."""
    from ft.files import sampled_hash

    folder = Path(run.settings["model_name_or_path"]).expanduser()
    recorded = run.record.get("model", {}).get("sha256")
    if recorded and not run.whole and folder.is_dir() and sampled_hash(folder) != recorded:
        raise UserError(
            f"{run.folder} is an adapter of another base: the weights in {folder} are not those "
            "that it was trained on. Put those back, or train again."
        )


def _inside(context: contextlib.AbstractContextManager[Any], pieces: Pieces) -> Pieces:
    """The same pieces, with ``context`` open while they are written."""
    with context, contextlib.closing(pieces):
        return (yield from pieces)
