"""The run folder: the files that it has, metrics, checkpoints and signals; written by the main process only."""

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ft.config import differences
from ft.errors import UserError
from ft.files import json_lines, sync_dir, write_json, write_text
from ft.machine import is_main

RECORD, CONFIG, METRICS = "run.json", "config.yaml", "metrics.jsonl"
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
MODEL = ("model.safetensors", "config.json")  # of a run that trained all parameters
TEXTS = ("README.md", RECORD, CONFIG, "samples.txt")
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")
TOKENIZER += ("special_tokens_map.json", "chat_template.jinja", "processor_config.json")
# all that travels: no checkpoint, optimizer state or pickle
FILES = (*ADAPTER, *MODEL, "generation_config.json", *TEXTS, *TOKENIZER)
STATE = "ft_state.json"  # what a checkpoint was made with; its presence says that it is complete


@dataclass(frozen=True)
class Target:
    """Where a run will be written, and what may lie there."""

    folder: Path
    overwrite: bool = False  # an earlier run, which is then deleted
    resume: str | None = None  # this run, which goes on from ``last`` or a checkpoint's folder


def check_folder(folder: Path, overwrite: bool = False, resume: str | None = None) -> Target:
    """Where a run could start. Raises ``UserError`` if it could not. Changes nothing.

    A folder that holds anything is refused unless ``resume`` is set, or ``overwrite`` is and what it
    holds is an earlier run.
    """
    target = Target(folder, overwrite, resume)
    if not is_main():  # the main process may already have made it
        return target
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output folder {folder}: that is a file; choose another --output-dir")
    parent = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(
            f"output folder {folder}: {parent} is not writable; choose another --output-dir"
        )
    if resume is None and folder.exists() and any(folder.iterdir()):
        if not overwrite:
            raise UserError(
                f"output folder {folder} is not empty; choose another --output-dir, go on with "
                "--resume last, or replace the run in it with --overwrite-output-dir"
            )
        if not (folder / CONFIG).exists():
            raise UserError(
                f"output folder {folder} is not empty and holds no earlier run (no {CONFIG}), so "
                "--overwrite-output-dir does not delete it; choose another --output-dir"
            )
    return target


def claim(target: Target) -> None:
    """Make the folder; an earlier run in it is deleted. Raises ``UserError`` as ``check_folder`` does."""
    folder = target.folder
    check_folder(folder, target.overwrite, target.resume)
    if target.resume is None and folder.exists() and any(folder.iterdir()):
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output folder {folder}: {error.strerror}; choose another --output-dir"
        ) from None


class Run:
    """One folder and the record that grows in it; every write is complete or absent."""

    def __init__(self, folder: Path, record: dict[str, Any], config_yaml: str) -> None:
        self.folder, self.record = folder, record
        self.begun = False
        self.made_with: dict[str, Any] = {}  # what must be the same where it goes on
        self.held: dict[str, str] = {CONFIG: config_yaml}

    def begin(self) -> None:
        """Write settings and record; a resumed run does so once nothing can refuse it any more."""
        self.begun = True
        for name, text in self.held.items():
            self.write(name, text)
        self.note()

    def note(self, **values: Any) -> None:
        """Add to ``run.json``."""
        self.record.update(values)
        if self.begun and is_main():
            write_json(self.folder / RECORD, self.record)

    def log(self, values: dict[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        if is_main():
            with open(self.folder / METRICS, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_lines(self.folder / METRICS)

    def rewind(self, step: int) -> None:
        """Forget the metrics after ``step``: a resumed run writes them again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        self.write(METRICS, "".join(kept))

    def write(self, name: str, text: str) -> None:
        """Write a text file of the folder, once the run has begun."""
        if not self.begun:
            self.held[name] = text
        elif is_main():
            write_text(self.folder / name, text)


def adopt(run: Run, made: Path) -> None:
    """Move the files of a finished folder into the run's, each at once."""
    if is_main():
        for file in sorted(made.iterdir()):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(file, run.folder / file.name)
        made.rmdir()
        sync_dir(run.folder)


def read(folder: str | Path) -> dict[str, Any]:
    """The ``run.json`` of a run's folder. Raises ``UserError`` if there is none."""
    path = Path(folder) / RECORD
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not a run's folder, it has no {RECORD}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: not valid JSON ({error})") from None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; one that a kill cut short is left out."""
    return json_lines(path.read_text(encoding="utf-8")) if path.exists() else []


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{STATE}")]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def keep_checkpoint(made: Path, place: Path, fingerprint: dict[str, Any]) -> None:
    """Move a finished checkpoint to its place, complete or not at all; older ones but the last are deleted."""
    write_json(made / STATE, fingerprint)
    for file in made.rglob("*"):
        if file.is_file():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
    shutil.rmtree(place, ignore_errors=True)
    os.replace(made, place)
    sync_dir(place.parent)
    for old in checkpoints(place.parent)[:-1]:
        shutil.rmtree(old)


def resumable(folder: Path, resume: str | None, fingerprint: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from: ``last``, or a folder. Raises ``UserError`` where there is none.

    Also for one that was made with another ``fingerprint``, naming what differs.
    """
    if resume is None:
        return None
    if resume == "last":
        found = checkpoints(folder)
        if not found:
            raise UserError(
                f"--resume last: {folder} holds no complete checkpoint; start without --resume"
            )
        place = found[-1]
    else:
        place = Path(resume)
        if not (place / STATE).exists():
            raise UserError(f"--resume {place}: not a complete checkpoint (no {STATE} in it)")
    made_with = json.loads((place / STATE).read_text(encoding="utf-8"))
    if changed := differences(made_with, json.loads(json.dumps(fingerprint))):
        raise UserError(
            f"--resume {resume}: {place} was made with something else, so going on would not continue "
            "that run:\n  "
            + "\n  ".join(changed)
            + "\nrestore it, or start anew in another --output-dir"
        )
    return place


@contextlib.contextmanager
def signals(asked: Any) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C set ``asked.signal``, None so far; a second one ends at once."""

    def ask(number: int, _: FrameType | None) -> None:
        if asked.signal is not None:
            raise SystemExit(128 + number)
        asked.signal = number

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
