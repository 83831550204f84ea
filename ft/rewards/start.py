"""What learning from rewards starts from: a finished run, and rows of its kind to answer and to be judged by."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.data import gsm8k
from ft.data.encodings import suffix_of
from ft.data.instructions import splits as instruction_splits
from ft.data.preferences import answered, prompts
from ft.data.rows import Row, Rows, changed
from ft.data.tables import FORMATS
from ft.data.translation import translation_splits
from ft.errors import UserError
from ft.files import sha256
from ft.models.load import Base
from ft.rewards.judges import Judge, judge_of
from ft.rewards.policy import check_adapter
from ft.runs import opened
from ft.runs.folder import ADAPTER, Run
from ft.runs.opened import Finished
from ft.score import own
from ft.score.rewards import Reward
from ft.text.template import Template
from ft.text.tokens import Encoded, encode_rows


def run_of(name: str, *, any_base: bool = False) -> Finished:
    """The run to start from, on weights of another base with ``any_base``.

    Raises ``UserError`` for none, and for one that trained all parameters, answers about images or answers nothing.
    """
    found = opened.finished(name, any_base=any_base)
    found.check_own("to learn on from")
    check_adapter(found)
    if found.task == "images":
        raise UserError(f"{name} answers about images; what learns here has text alone")
    if found.task in ("pretraining", "text"):
        raise UserError(f"{name} goes on with texts and answers nothing; give a run that answers")
    return found


def asks(run: Finished) -> str:
    """The field of a row that it is asked by."""
    return "source" if run.task == "translation" else "instruction"


def rows(
    begun: Finished,
    source: str | None,
    *,
    on_bad_row: str = "error",
    normalize: bool = True,
    eval_limit: int,
    seed: int,
) -> dict[str, Rows]:
    """Rows to draw answers to, and held-out ones: those of ``source``, or of the data that the run learnt.

    Of a run that translates ``source`` is MTNT, or as for any other run a table of prompts
    (``ft.data.preferences.prompts``), of which a third drawn by ``seed``, ``eval_limit`` at most, is held out.
    """
    settings = begun.asked
    if not source and not settings.get("data"):
        raise UserError(f"the settings of {begun.name} name no data: give --data")
    given = source not in (None, settings.get("data"))  # else it is what the run learnt from
    if source and given and (begun.task != "translation" or _is_table(source)):
        rows = prompts(source, asked=asks(begun), on_bad_row=on_bad_row)
        held = min(eval_limit, max(1, len(rows) // 3))
        train, valid = rows.split(held, seed, "--eval-limit")
        return {"train": train, "valid": valid}
    if begun.task == "translation":
        kept = ("language_pair", "quoting", "max_rows") + ("valid_data", "test_data") * (not given)
        options = {name: settings[name] for name in kept if settings.get(name)}
        options |= {"seed": settings.get("seed", 42), "normalize_punctuation": normalize}
        data = source or settings["data"]
        options |= {"data": data, "on_bad_row": on_bad_row}
        found = translation_splits(("train", "valid"), **options)
        return {"train": found["train"], "valid": found["valid"].head(eval_limit)}
    read = gsm8k.splits if begun.task == "reasoning" else instruction_splits
    names = ("categories", "no_context", "drop_duplicates", "valid_rows", "test_rows", "seed")
    options = {name: settings[name] for name in names if name in settings}
    if begun.task == "reasoning":
        options = {name: options[name] for name in ("valid_rows", "seed")}
    found = read(settings["data"], **options, on_bad_row=settings["on_bad_row"])
    return {"train": _asking(found["train"]), "valid": _asking(found["valid"].head(eval_limit))}


def encode(
    rows: Sequence[Row], template: Template, tokenizer: Any, *, max_length: int, **options: Any
) -> Encoded:
    """Rows as examples with their references; one without is as long as its prompt and a full stop."""
    given = changed(rows, lambda r: answered(r, r.get("target") or r.get("response") or "."))
    return encode_rows(given, template, tokenizer, max_length=max_length, **options)


def judge(
    run: Finished,
    reward: Reward,
    valid_rows: int,
    max_new_tokens: int,
    *,
    base: Base,
    template: Template,
    splits: Mapping[str, Rows],
    encoded: Mapping[str, Encoded],
) -> Judge:
    """What judges learning from a reward: the valid rows; the loss is of the first ``valid_rows`` that fit."""
    examples = encoded["valid"].examples[:valid_rows]
    options: dict[str, Any] = {"task": run.task, "max_new_tokens": max_new_tokens}
    options["pair"] = run.asked.get("language_pair", "en-fr")
    return judge_of(base, template, splits["valid"], examples, reward, **options)


def note(
    run: Run, start: Finished, source: str | None = None, reward: Reward | None = None
) -> None:
    """Keep in a run's record what it started from, with the settings that say which data judges it.

    ``source`` is the data of a run that translates; a ``reward`` is part of what is learnt.
    """
    adapter = start.folder / ADAPTER[0]
    kept: dict[str, Any] = {"run": start.name, "recipe": start.record.get("recipe")}
    kept["sha256"] = sha256(adapter) if adapter.is_file() else None
    other = source if source and start.task == "translation" and not _is_table(source) else None
    changed = {"data": other} if other else {}
    run.note(start=kept | {"settings": dict(start.asked) | changed})
    run.made_with |= {"start.sha256": kept["sha256"]}
    if reward:
        made_of = own.described(reward)
        run.note(reward=made_of)
        run.made_with |= {f"reward.{key}": value for key, value in made_of.items()}


def _is_table(source: str) -> bool:
    return suffix_of(Path(source)) in FORMATS


def _asking(rows: Rows) -> Rows:
    """Conversations without their last answer, which is the reference."""

    def row_of(row: Mapping[str, Any]) -> Row:
        if "messages" not in row:
            return dict(row)
        *before, last = row["messages"]
        return {**row, "messages": before, "response": last["content"]}

    return changed(rows, row_of)
