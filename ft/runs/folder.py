"""The run folder: the files that it has, metrics, checkpoints and signals; written by the main process only."""

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ft.errors import UserError
from ft.files import json_lines, read_json, settle, sync_dir, write_json, write_text
from ft.machine import is_main, say
from ft.models.lora import settle_config
from ft.runs import checkpoints, lock
from ft.runs.launch import check_launch

RECORD, CONFIG, METRICS = "run.json", "config.yaml", "metrics.jsonl"
ADAPTER = ("adapter_model.safetensors", "adapter_config.json")
MODEL = ("model.safetensors", "config.json")  # of a run that trained all parameters
TEXTS = ("README.md", RECORD, CONFIG, "samples.txt")
CURVE = "loss.png"  # which the card shows
TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json")
TOKENIZER += ("special_tokens_map.json", "chat_template.jinja", "processor_config.json")
# all that travels: no checkpoint, optimizer state or pickle
FILES = (*ADAPTER, *MODEL, "generation_config.json", *TEXTS, CURVE, *TOKENIZER)


@dataclass(frozen=True)
class Target:
    """Where a run will be written, and what may lie there."""

    folder: Path
    overwrite: bool = False  # an earlier run, which is then deleted
    resume: str | None = None  # the run that goes on from ``last`` or a checkpoint's folder
    checks: tuple[dict[str, str], ...] = ()  # what was seen before: {"status", "name", "text"}

    @property
    def goes_on(self) -> bool:
        """Whether it is the run in this folder that goes on; a checkpoint elsewhere starts another."""
        if self.resume is None or self.resume == "last":
            return self.resume is not None
        return Path(self.resume).resolve().parent == self.folder.resolve()


def check_folder(folder: Path, overwrite: bool = False, resume: str | None = None) -> Target:
    """Where a run could start. Raises ``UserError`` if it could not. Changes nothing.

    A folder that holds anything is refused unless ``overwrite`` is set and what it holds is an earlier
    run, or ``resume`` is and names ``last`` or a checkpoint of that run. What a killed run left hidden
    is nothing.
    """
    check_launch()
    target = Target(folder, overwrite, resume)
    if not is_main():  # the main process may already have made it
        return target
    if os.path.lexists(folder) and not folder.is_dir():
        what = "a file" if folder.exists() else "a link that leads nowhere"
        raise UserError(f"output folder {folder}: that is {what}; choose another --output-dir")
    parent = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(
            f"output folder {folder}: {parent} is not writable; choose another --output-dir"
        )
    lock.check(folder)
    if not holds_any(folder) or target.goes_on:
        return target
    if not overwrite:
        advice = (
            f"--resume {resume} is of another run; go on in that run's folder, choose a new --output-dir"
            if resume
            else "choose another --output-dir, go on with --resume last"
        )
        raise UserError(
            f"output folder {folder} is not empty; {advice}, or replace the run in it with "
            "--overwrite-output-dir"
        )
    if not (folder / CONFIG).exists():
        raise UserError(
            f"output folder {folder} is not empty and holds no earlier run (no {CONFIG}), so "
            "--overwrite-output-dir does not delete it; choose another --output-dir"
        )
    return target


_LEFT = re.compile(
    r"\.(staging|adapter|model|lock|(.+\.(json|jsonl|yaml|txt|md|png|html)|checkpoint-\d+)\..+)"
)


def holds_any(folder: Path) -> bool:
    """Whether there is anything in a folder but what a killed run left hidden."""
    return folder.is_dir() and any(not left_over(path) for path in folder.iterdir())


def left_over(path: Path) -> bool:
    """Whether a file or folder is one that a run hides while it writes, and leaves if it is killed then."""
    return bool(_LEFT.fullmatch(path.name))


def claim(target: Target) -> None:
    """Make the folder and lock it; an earlier run in it is deleted, and what a killed one left hidden.

    Raises ``UserError`` as ``check_folder`` does, and while another process writes there.
    """
    folder = target.folder
    check_folder(folder, target.overwrite, target.resume)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.take(folder)
        for path in folder.iterdir():
            if path.name != lock.NAME and (left_over(path) or not target.goes_on):
                # the folder itself stays: it may be a link, or the root of a disk
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
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
        """Append a line to ``metrics.jsonl``; after a validation the page is made again."""
        if is_main():
            with open(self.folder / METRICS, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(values) + "\n")
            if "eval_loss" in values:
                self.report()

    def report(self) -> None:
        """Make ``report.html``. What keeps it from being made is said, and ends no training."""
        from ft.runs import report

        try:
            if is_main():
                report.write(self.folder)
        except Exception as error:
            say(f"{report.REPORT} was not written: {type(error).__name__}: {error}")

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


def go_on(run: Run, resume: str | None, made_with: dict[str, Any]) -> Path | None:
    """Begin a run that goes on, from the checkpoint that ``checkpoints.resumable`` finds; none: from its start."""
    place = checkpoints.resumable(run.folder, resume, made_with)
    if place:
        checkpoints.rewind(run.folder, place)
        before = place.parent / METRICS
        if is_main() and before.exists() and place.parent.resolve() != run.folder.resolve():
            shutil.copyfile(before, run.folder / METRICS)
        run.begin()
        run.note(resumed_from=place.name)
    return place


@contextlib.contextmanager
def adopted(run: Run, name: str = ".adapter") -> Iterator[Path]:
    """Fill a hidden folder, whose files become the run's, each at once, when the block ends without error.

    After an error nothing of it is left.
    """
    made = run.folder / name
    try:
        yield made
        if is_main():
            settle_config(made)
            settle(made)
            for file in sorted(made.iterdir()):
                os.replace(file, run.folder / file.name)
            made.rmdir()
            sync_dir(run.folder)
    except BaseException:
        if is_main():
            shutil.rmtree(made, ignore_errors=True)
        raise


def read(folder: str | Path) -> dict[str, Any]:
    """The ``run.json`` of a run's folder. Raises ``UserError`` if there is none."""
    try:
        found = read_json(Path(folder) / RECORD)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: not a run's folder, it has no {RECORD}") from None
    if not isinstance(found, dict):
        raise UserError(f"{Path(folder) / RECORD} is no run's record: no object")
    return found


class Settings(dict[str, Any]):
    """A run's settings; one that is asked for and not there, as in a file that was cut, is named: ``UserError``."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        super().__init__(values)
        self.file = file

    def __missing__(self, key: str) -> Any:
        raise UserError(
            f"{self.file} has no {key}: it was cut, or is of another version of ft; add a line `{key}: value`"
        )


def read_settings(folder: Path) -> Settings:
    """The ``config.yaml`` of a run's folder. Raises ``UserError`` for one that is not there or holds no settings."""
    import yaml

    file = folder / CONFIG
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not a run's folder, it has no {CONFIG}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{file} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no settings")
    return Settings(file, found)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file; one that a kill cut short is left out."""
    return json_lines(path.read_text(encoding="utf-8")) if path.exists() else []


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
