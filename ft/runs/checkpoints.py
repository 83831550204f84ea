"""Checkpoints of a run: sealed with the hash of each file, found whole again, and which of them stay."""

import json
import math
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ft.config import differences
from ft.errors import UserError
from ft.files import settle, sha256, sync_dir, write_json
from ft.machine import is_main, say
from ft.models.lora import settle_config

STATE = "ft_state.json"  # what a checkpoint was made with and holds; its presence says that it is complete
KEPT = 2  # the newest, and one to go back to where that was harmed
_NAME = re.compile(r"checkpoint-(\d+)")
LOOKS, APART = 10, 30  # validations of a run, optimizer steps between them at least


def interval(steps: int) -> int:
    """Optimizer steps from one validation, with its checkpoint, to the next in a run of ``steps``, where none are asked for.

    Both take as long as many of a GPU's steps, so the more steps there are, the further apart.
    """
    return max(APART, math.ceil(steps / LOOKS))


def seal(made: Path, made_with: dict[str, Any]) -> None:
    """End a checkpoint: its files reach the disk, and ``ft_state.json`` says what each of them holds.

    ``made_with`` is what must be the same where a run goes on from it.
    """
    settle(made)
    found = {
        file.relative_to(made).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256(file)}
        for file in sorted(made.rglob("*"))
        if file.is_file()
    }
    write_json(made / STATE, {"made_with": made_with, "files": found})


def keep(made: Path, place: Path, made_with: dict[str, Any], also: Iterable[int] = ()) -> None:
    """Seal a checkpoint and move it to its place, complete or not at all; ``prune`` those before it."""
    settle_config(made)
    seal(made, made_with)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(made, place)
    sync_dir(place.parent)
    prune(place.parent, also)


def complete(folder: Path) -> list[Path]:
    """Checkpoints of a run that were written to their end, oldest first; a copy under another name is the user's own."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{STATE}")]
    return sorted((place for place in found if _NAME.fullmatch(place.name)), key=step_of)


def step_of(place: Path) -> int:
    """The optimizer step after which a checkpoint was written, by its name. Raises ``UserError`` for another name."""
    if not (found := _NAME.fullmatch(place.name)):
        raise UserError(
            f"{place}: a checkpoint is named after its step, checkpoint-N, and goes on under that name alone; "
            "name it so again"
        )
    return int(found[1])


def fault(place: Path) -> str:
    """What has become of a checkpoint since it was written, in words; nothing where it is whole."""
    try:
        files = json.loads((place / STATE).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"{STATE} is missing, cut or changed"
    for name, held in files.items():
        file = place / name
        if not file.is_file():
            return f"{name} is missing"
        if (size := file.stat().st_size) != held["bytes"]:
            return f"{name} has {size:,} bytes in place of {held['bytes']:,}"
        if sha256(file) != held["sha256"]:
            return f"{name} has changed"
    return ""


def prune(folder: Path, also: Iterable[int] = ()) -> None:
    """Delete all but the newest checkpoints and those of the steps ``also``."""
    kept = set(also)
    for old in complete(folder)[:-KEPT]:
        if step_of(old) not in kept:
            shutil.rmtree(old)


def rewind(folder: Path, place: Path) -> None:
    """Make ``place`` the newest checkpoint of a run that goes on from it.

    Newer ones in the folder are deleted, as the run will write them again; of another run's folder the
    checkpoints up to it are copied.
    """
    if not is_main():
        return
    step = step_of(place)
    if place.parent.resolve() != folder.resolve():
        for old in complete(place.parent):
            if step_of(old) <= step:
                shutil.copytree(old, folder / old.name)
    for newer in complete(folder):
        if step_of(newer) > step:
            say(f"{newer.name} is deleted: the run goes on from step {step}")
            shutil.rmtree(newer)


def resumable(
    folder: Path, resume: str | None, made_with: dict[str, Any], *, part: bool = False
) -> Path | None:
    """The checkpoint to go on from: ``last``, or a folder. Raises ``UserError`` where there is none.

    ``last`` is the newest that is whole, and where that is not the newest of all, a line says why. Raises
    also for one that was made with something else than ``made_with``, naming what differs; ``part``: that is
    what is known before the model is loaded, and no more is compared.
    """
    if resume is None:
        return None
    if resume == "last":
        place = _newest(folder)
    else:
        place = Path(resume).resolve()  # a link, or `.`
        if not (place / STATE).exists():
            raise UserError(f"--resume {resume}: not a complete checkpoint (no {STATE} in it)")
        step_of(place)
        if found := fault(place):
            raise UserError(
                f"--resume {resume}: {found}, so going on would not continue that run; name an older "
                "checkpoint, or `last` for the newest that is whole"
            )
    then = json.loads((place / STATE).read_text(encoding="utf-8"))["made_with"]
    if part:
        then = {key: value for key, value in then.items() if key in made_with}
    if changed := differences(then, json.loads(json.dumps(made_with))):
        raise UserError(
            f"--resume {resume}: {place} was made with something else, so going on would not continue "
            "that run:\n  "
            + "\n  ".join(changed)
            + "\nrestore it, or start anew in another --output-dir"
        )
    return place


def _newest(folder: Path) -> Path:
    found = complete(folder)
    if not found:
        begun = (folder / "run.json").exists()  # else a start without --resume would send back here
        raise UserError(
            f"--resume last: {folder} holds no complete checkpoint; start without --resume"
            + ", and with --overwrite-output-dir for the run that ended there before its first"
            * begun
        )
    harmed = []
    for place in reversed(found):
        if not (why := fault(place)):
            if harmed:
                say(f"{'; '.join(harmed)}: going on from {place.name}, the newest that is whole")
            return place
        harmed.append(f"{place.name}: {why}")
    raise UserError(
        f"--resume last: no checkpoint in {folder} is whole ({'; '.join(harmed)}); start anew in another "
        "--output-dir, or replace this run with --overwrite-output-dir"
    )
