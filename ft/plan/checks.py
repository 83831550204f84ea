"""All that can be known of a run before any weight is read: the list of checks, run for `ft check` and by every recipe."""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft import config
from ft.data.rows import Rows, summary
from ft.errors import UserError
from ft.machine import collecting_later, is_main, say
from ft.plan import check_environment as around
from ft.plan import check_ids, check_model, check_rewards, check_text
from ft.plan.case import Case, Seen, no_network
from ft.runs import proof
from ft.runs.folder import Target, check_folder
from ft.text import tokens
from ft.text.template import Template
from ft.text.tokens import Encoded

# in the order in which they need each other: name, check, and what of the case has to be known
CHECKS: tuple[tuple[str, Callable[[Case], Seen | None], tuple[str, ...]], ...] = (
    ("versions", around.versions, ()),
    ("output", around.output, ()),
    ("hub", around.hub_access, ()),
    ("data", check_text.data, ()),
    ("model", check_model.model, ("model",)),
    ("numbers", check_model.numbers, ("raw",)),
    ("template", check_text.template, ("folder",)),
    ("tokens", check_ids.encoded, ("template", "splits")),
    ("length", check_ids.lengths, ("encoded",)),
    ("supervised", check_text.supervised, ("encoded",)),
    ("stop", check_text.stop, ("template",)),
    ("lora", check_model.lora, ("shape",)),
    ("batches", check_model.batches, ("template",)),
    ("rewards", check_rewards.rewards, ()),
    ("memory", check_model.memory, ("shape",)),
    ("disk", around.disk, ()),
    ("resume", around.resume, ("splits",)),
    ("export", check_model.exported, ("raw",)),
)
SHOWN = (
    "versions",
    "hub",
    "model",
    "numbers",
    "template",
    "tokens",
    "length",
    "data",
)  # then as above
WHY = {
    "raw": "the model's configuration is not known",
    "folder": "the model's files are not here",
    "template": "the template is not known",
    "splits": "there are no rows",
    "encoded": "there are no ids",
    "shape": "the model's sizes are not known",
}
NEEDS_MODEL = {"raw", "folder", "template", "encoded", "shape"}


@dataclass(frozen=True)
class Report:
    """What all checks saw, in the order in which it is shown."""

    seen: tuple[Seen, ...]
    case: Case

    def __str__(self) -> str:
        return "\n".join(map(str, self.seen))

    @property
    def errors(self) -> list[str]:
        """The texts of the checks that found an error, each once."""
        return [*dict.fromkeys(each.text for each in self.seen if each.status == "ERROR")]

    @property
    def warned(self) -> bool:
        """Whether a check warns."""
        return any(each.status == "WARN" for each in self.seen)

    def to_list(self) -> list[dict[str, str]]:
        """Plain values for a run's record."""
        return [dataclasses.asdict(each) for each in self.seen]

    def example(self, *, colour: bool) -> str:
        """The first example of the training split with its mask; empty where none is known."""
        encoded = self.case.encoded
        if not encoded:
            return ""
        first = tokens.show(encoded["train"].examples[0], self.case.tokenizer, colour=colour)
        return f"first example, supervised tokens marked:\n{first}"


def case_of(
    c: Any,
    rows: Callable[[Any], Mapping[str, Rows]],
    template: Callable[..., Template] | None,
    recipe: str | Path | None = None,
    **options: Any,
) -> Case:
    """What is to be looked at, of a recipe's settings, its ``rows`` and its ``template``."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return Case(
        config.to_dict(c),
        lambda: rows(c),
        (lambda tokenizer: template(c, tokenizer)) if template else None,
        Path(c.output_dir),
        recipe=Path(recipe) if recipe else None,
        **{**options, "offline": offline or options.get("offline", False)},
    )


def look(case: Case) -> Report:
    """Run every check that can be run; one that cannot says why. Raises nothing for what is wrong."""
    found: dict[str, Seen] = {}
    for name, check, needs in CHECKS:
        if not case.model and (name == "model" or NEEDS_MODEL & set(needs)):
            continue  # of a model that the run makes itself
        missing = next((need for need in needs if not getattr(case, need)), None)
        if missing:
            if _untaught(case, missing):
                continue
            found[name] = Seen("--", name, f"not looked at: {WHY[missing]}")
            continue
        try:
            with no_network(case.offline):
                seen = check(case)
        except UserError as error:
            seen = Seen("ERROR", name, str(error))
        if seen:
            found[name] = seen
    order = [*SHOWN, *(name for name, *_ in CHECKS if name not in SHOWN)]
    return Report(tuple(found[name] for name in order if name in found), case)


def _untaught(case: Case, need: str) -> bool:
    """Whether what is missing is so because the recipe has no template, as one that pretrains."""
    return case.reads is None and need in ("template", "encoded")


@collecting_later()
def checked(
    c: Any,
    rows: Callable[[Any], Mapping[str, Rows]],
    reads: Callable[..., Template] | None,
    recipe: str | Path,
    *,
    output_dir: Path,
    overwrite_output_dir: bool = False,
    resume_from_checkpoint: str | None = None,
    encode: Callable[..., Encoded] | None = None,
) -> tuple[Target, dict[str, Rows]]:
    """What each recipe does first: look at all that can be wrong without a model, and say it.

    ``rows`` and ``reads`` are the recipe's functions, which read its data and a row (none: it pretrains),
    ``encode`` its own for examples, if it has one.
    Returns where the run will be written, with what was seen for its record, and the rows of each split.
    No torch, no weights. Raises ``UserError`` with every error that was found.
    """
    case = case_of(c, rows, reads, recipe, encode=encode)
    target = check_folder(output_dir, overwrite_output_dir, resume_from_checkpoint)
    if not is_main():  # one process asks and tells for all
        return target, dict(case.rows())
    report = look(case)
    if case.splits and reads:
        say(summary(case.splits, known=case.doubles))
    say(str(report))
    if report.errors:
        raise UserError("\n".join(report.errors))
    assert case.splits
    # whether there is a proof of the weights is known once it is known which they are
    seen = (*report.to_list(), *[proof.NONE] * case.provable)
    return dataclasses.replace(target, checks=seen), dict(case.splits)
