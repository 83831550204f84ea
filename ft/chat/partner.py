"""Who answers in a conversation: the tuned model of a run and its base, or a model as it is."""

import contextlib
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ft.chat.conversation import Conversation
from ft.runs import opened
from ft.runs.opened import Opened
from ft.text.template import Template

if TYPE_CHECKING:
    from ft.generate.draft import Answer, Draft
    from ft.generate.samplers import Beam, Filter, Greedy

Pieces: TypeAlias = Generator[str, None, "Answer"]
"""An answer's text as it is written; in the end, the answer."""

NOTE = "{} is a base model: it completes text rather than answers (--template asks in another way)"
# Google's names of base models; some of them have a chat template nevertheless
BASE = re.compile(r"google/(?!.*-it(-|$)).*gemma.*")


@dataclass
class Partner(Opened):
    """A model that answers, and the template that it is asked with."""

    template: Template  # pyright: ignore[reportIncompatibleVariableOverride]  # a partner has one
    note: str = ""  # what a user should know before the first question

    def answer(
        self,
        prompt: Sequence[int],
        sampler: "Filter | Beam",
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
        from ft.generate import growing

        pieces = growing.stream(
            self.model if tuned else self.base,
            self.tokenizer,
            prompt,
            sampler,
            max_new_tokens=max_new_tokens,
            template=self.template,
            stop=stop,
            seed=seed,
        )
        return _inside(self.of(tuned=tuned), pieces)

    @property
    def likeliest(self) -> "Greedy | Beam":
        """What looks for its likeliest answer: in a run, as its scores were made."""
        from ft.generate.samplers import Greedy

        return self.run.sampler if self.run else Greedy()

    def steps(
        self,
        prompts: Sequence[Sequence[int]],
        sampler: "Filter | Beam",
        *,
        tuned: bool,
        **options: Any,
    ) -> Generator[dict[int, "Draft"], None, list[list["Answer"]]]:
        """``growing.steps`` of the tuned model, or of its base."""
        from ft.generate import growing

        model = self.model if tuned else self.base
        grown = growing.steps(model, self.tokenizer, prompts, sampler, **options)
        return _inside(self.of(tuned=tuned), grown)

    def of(self, *, tuned: bool) -> contextlib.AbstractContextManager[Any]:
        """The tuned model, or its base, while this lasts."""
        return contextlib.nullcontext(self.model) if tuned else self.as_base()

    def ids(self, text: str) -> list[int]:
        """The ids of a text as it is, with one BOS in front."""
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids if ids[:1] == [bos] else [bos, *ids]


def load(
    name: str,
    *,
    precision: str = "auto",
    template: str | None = None,
    images: bool = False,
    any_base: bool = False,
    model: str | None = None,
) -> Partner:
    """The partner that ``name`` means: a run's folder or Hub repository, else a model.

    A run brings its template; a model is asked with ``template``, a name or a file that
    ``prompts.by_name`` takes, else as its chat template says, or a base model plainly. With ``images``
    it can be shown some; ``any_base`` and ``model`` are of ``opened.find``. Raises ``UserError`` for what cannot be loaded, and what takes no images then.
    """
    from ft.generate import static
    from ft.models import sources
    from ft.models.load import load_tokenizer
    from ft.text import prompts

    run = opened.find(name, any_base=any_base, template=template, model=model)
    note, tokenizer = "", None
    if run:
        asked = run.template
    else:
        tokenizer = load_tokenizer(name)
        answers = tokenizer.chat_template and not BASE.fullmatch(sources.published_name(name))
        asked = prompts.by_name(template or ("chat" if answers else "plain"), tokenizer)
        note = "" if answers or template else NOTE.format(name)
    Conversation(asked)  # the template's faults, before any weight is read
    given: Any = None if run else asked
    found = opened.load(run or name, precision, template=given, images=images, tokenizer=tokenizer)
    static.keep(found.model)
    return Partner(**vars(found), note=note)


def sampler(temperature: float, top_p: float) -> "Filter":
    """Greedy at temperature 0, else a draw from the nucleus. Raises ``UserError`` out of range."""
    from ft.generate.samplers import Greedy, TopP

    nucleus = TopP(top_p, temperature)
    return nucleus if temperature else Greedy()


class Trim:
    """Text that comes in pieces, without white space at its ends: each piece as far as it is certain."""

    def __init__(self) -> None:
        self._held, self._started = "", False

    def __call__(self, piece: str) -> str:
        held = self._held + piece
        held = held if self._started else held.lstrip()
        text = held.rstrip()
        self._started, self._held = self._started or bool(text), held[len(text) :]
        return text


def trimmed(pieces: Pieces) -> Pieces:
    """The same text without white space at its ends."""
    trim = Trim()
    with contextlib.closing(pieces):
        while True:
            try:
                text = trim(next(pieces))
            except StopIteration as ended:
                return ended.value
            if text:
                yield text


def _inside(context: contextlib.AbstractContextManager[Any], steps: Any) -> Any:
    """The same steps, with ``context`` open while they are taken."""
    with context, contextlib.closing(steps):
        return (yield from steps)
