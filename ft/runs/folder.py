"""The run folder: resolved config, versions, hashes, metrics, samples; written by the main process only."""

import dataclasses
import datetime
import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from ft import __version__
from ft.errors import UserError
from ft.files import json_lines, sampled_hash, sha256, sync_dir, write_json, write_text
from ft.machine import git_commit, hardware, is_main, peak_gpu_memory, peak_ram, versions

RECORD, CONFIG, METRICS = "run.json", "config.yaml", "metrics.jsonl"
# settings that do not decide what is learnt, so that a resumed run may change them
MAY_CHANGE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "push_to_hub"),
    *("save_steps", "eval_steps"),
}


class Run:
    """One folder and the record that grows in it; every write is complete or absent."""

    def __init__(self, folder: Path, record: dict[str, Any], config_yaml: str) -> None:
        self.folder, self.record = folder, record
        self.begun = False
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


def start(
    output_dir: str | Path,
    *,
    recipe: str | Path,
    config_yaml: str,
    seed: int,
    overwrite: bool = False,
    resume: str | None = None,
) -> Run:
    """Open a run's folder. Raises ``UserError`` if it is in use or cannot be written.

    A folder that holds anything is refused unless ``resume`` is set, or ``overwrite`` is and what it
    holds is an earlier run, which is then deleted.
    """
    folder = Path(output_dir)
    if is_main():
        _claim(folder, overwrite=overwrite, resume=resume)
    record = {
        "ft_version": __version__,
        "recipe": Path(recipe).stem,
        "recipe_sha256": sha256(Path(recipe)),
        "command": shlex.join(["python", *sys.argv]),
        "started": _now(),
        "git_commit": git_commit(Path(recipe)),
        "versions": versions(),
        "hardware": hardware(),
        "seed": seed,
    }
    run = Run(folder, record, config_yaml)
    if resume is None:
        run.begin()
    return run


def describe(
    run: Run, *, base: Any, adapter: dict[str, Any], template: Any, splits: Any, encoded: Any
) -> None:
    """Note what the run is made of: base model, adapter, template, and each split with its hash."""
    data = {
        split: {
            "origin": rows.origin,
            "rows": len(rows),
            "sha256": rows.sha256,
            "skipped": rows.skipped,
            "dropped": encoded[split].dropped,
            "truncated": encoded[split].truncated,
        }
        for split, rows in splits.items()
    }
    model = {
        "name": base.name,
        "base_model": base.model.name_or_path,
        "sha256": sampled_hash(base.path),
        "precision": base.precision,
        "backend": base.backend,
        "attention": base.attention,
    }
    run.note(model=model, lora=adapter, template=dataclasses.asdict(template), data=data)


def fingerprint(run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    """What must be unchanged for a resumed run to be the same run, flat: ``{"data.train": hash}``."""
    record = run.record
    same = {f"data.{split}": value["sha256"] for split, value in record["data"].items()}
    same |= {
        f"model.{key}": record["model"][key] for key in ("name", "sha256", "precision", "backend")
    }
    same |= {f"template.{key}": value for key, value in record["template"].items()}
    same |= {key: value for key, value in settings.items() if key not in MAY_CHANGE}
    return same | {"recipe": record["recipe_sha256"]}


def adopt(run: Run, made: Path) -> None:
    """Move the files of a finished folder into the run's, each at once."""
    if is_main():
        for file in sorted(made.iterdir()):
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            os.replace(file, run.folder / file.name)
        made.rmdir()
        sync_dir(run.folder)


def finish(run: Run) -> None:
    """Note the time and the peak memory of this process and its GPU."""
    values: dict[str, Any] = {"finished": _now(), "peak_memory_bytes": peak_ram()}
    if (gpu := peak_gpu_memory()) is not None:
        values["peak_gpu_memory_bytes"] = gpu
    run.note(**values)


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


def check_folder(folder: Path, *, overwrite: bool = False, resume: str | None = None) -> None:
    """Raise ``UserError`` if a run could not start in ``folder``. Changes nothing."""
    if not is_main():  # the main process may already have made it
        return
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


def _claim(folder: Path, *, overwrite: bool, resume: str | None) -> None:
    check_folder(folder, overwrite=overwrite, resume=resume)
    if resume is None and folder.exists() and any(folder.iterdir()):
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output folder {folder}: {error.strerror}; choose another --output-dir"
        ) from None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
