"""How a run begins and ends: its record, what must stay the same, examples, samples, curve, card and push."""

import dataclasses
import datetime
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from ft import __version__
from ft.config import to_dict, to_repeat
from ft.files import sampled_hash, sha256
from ft.machine import (
    git_commit,
    hardware,
    is_main,
    peak_gpu_memory,
    peak_ram,
    say,
    versions,
)
from ft.models import lora, sources
from ft.runs import lock, proof
from ft.runs.folder import Run, Target, claim
from ft.runs.launch import follow_launcher
from ft.text import chat_template, tokens
from ft.text.template import Template

COMMAND = "FT_COMMAND"  # in the environment: what `ft run` was given
Task = Literal["translation", "instructions", "reasoning", "images", "pretraining", "text"]
# settings that do not decide what is learnt, so that a resumed run may change them
MAY_CHANGE = {
    *("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "report_to", "push_to_hub"),
    *("save_steps", "eval_steps", "keep", "early_stopping_patience", "accept_loss"),
    "gradient_checkpointing",
    # names of what is known by its hash, however it is written and wherever it lies now
    *("model_name_or_path", "data", "valid_data", "test_data", "run", "any_base"),
}


def trackers(report_to: str) -> list[str]:
    """The names in a setting ``report_to``, which are parted by commas; empty for ``none``."""
    names = dict.fromkeys(name.strip() for name in report_to.split(","))
    return [name for name in names if name not in ("", "none")]


class Compared(Protocol):
    """What comes of base and tuned on the same rows, as ``ft.score`` has it."""

    @property
    def values(self) -> dict[str, Any]: ...  # of run.json
    @property
    def table(self) -> str: ...  # for the terminal
    @property
    def samples(self) -> str: ...  # of samples.txt


def start(
    target: Target,
    *,
    recipe: str | Path,
    config: Any,
    task: Task,
    base: Any,
    model: Any = None,
    template: Template,
    splits: Mapping[str, Any],
    encoded: Mapping[str, tokens.Encoded],
    plan: Any = None,
    examples: bool = True,
) -> Run:
    """Begin a run with all that it is made of, once that is known to be good.

    ``config`` are the recipe's settings, all of which are kept; ``base`` what ``models.load`` gave and
    ``model`` that with its adapter, if it has one (none: the base's own). Shows the first example and
    the plan; writes the examples of the first batch, but without ``examples``, of what learns from its
    own answers. The tokenizer gets the template as its chat template, but where text is learnt as it is. Raises ``UserError`` if the folder is in use or cannot be written.
    """
    model = base.model if model is None else model
    first = encoded["train"].examples[: config.per_device_train_batch_size] if examples else []
    if first:
        say("first example, supervised tokens marked:")
        say(tokens.show(first[0], base.tokenizer, colour=sys.stdout.isatty()))
    if plan is not None:
        say(f"memory that this needs:\n{plan}")
    if task != "text":
        chat_template.install(base.tokenizer, template)
    settings = {"config_yaml": to_repeat(config), "seed": config.seed}
    run = begin(target, recipe=recipe, task=task, **settings)
    adapter = lora.describe(model) if hasattr(model, "peft_config") else {}
    describe(run, base=base, adapter=adapter, template=template, splits=splits, encoded=encoded)
    lengths = {k: tokens.length_counts(e.lengths, config.max_length) for k, e in encoded.items()}
    run.note(lengths=lengths)
    if plan is not None:
        run.note(plan=plan.to_dict())
    if first:
        shown = (tokens.show(example, base.tokenizer, colour=False) for example in first)
        run.write("examples.txt", "\n\n".join(shown) + "\n")
    run.made_with = fingerprint(run, to_dict(config))
    if proof.NONE in run.record.get("checks", ()):
        holds_for = proof.of(run.made_with, to_dict(config), base.attention)
        checks, said = proof.taken(run.record["checks"], holds_for)
        run.note(checks=checks)
        say(said)
    return run


def finish(run: Run, *, push_to_hub: str | None = None, **compared: Compared) -> None:
    """End a run: scores of each split, samples, curve, time and peak memory, card, and the push.

    ``compared`` are results by split: ``test=score.translation.before_after(…)``.
    """
    from ft.runs import curves, hub, report

    for result in compared.values():
        say(result.table)
        run.write("samples.txt", result.samples)
    if compared:
        run.note(evaluation={split: result.values for split, result in compared.items()})
    validated = any("eval_loss" in line for line in run.metrics())
    if validated:
        curves.curve(run.folder)
    close(run)
    run.write("README.md", hub.card(run.folder))
    kind = "adapter" if run.record.get("lora") else "model"
    say(f"\n{kind}{', card and curves' if validated else ' and card'}: {run.folder}")
    say(f"page: {run.folder / report.REPORT}")
    if push_to_hub and is_main():
        say(hub.push(run.folder, push_to_hub))


def begin(
    target: Target,
    *,
    recipe: str | Path,
    config_yaml: str,
    seed: int,
    task: Task | None = None,
) -> Run:
    """Open a run's folder. Raises ``UserError`` if it is in use or cannot be written.

    A run that goes on writes nothing until its ``begin``.
    """
    follow_launcher()
    if is_main():
        claim(target)
    record = {
        "ft_version": __version__,
        "recipe": Path(recipe).stem,
        "recipe_sha256": sha256(Path(recipe)),
        "command": os.environ.get(COMMAND) or shlex.join(["python", *sys.argv]),
        "started": _now(),
        "git_commit": git_commit(Path(recipe)),
        "versions": versions(),
        "hardware": hardware(),
        "seed": seed,
    }
    if task:
        record["task"] = task
    if target.checks:
        record["checks"] = list(target.checks)
    run = Run(target.folder, record, config_yaml)
    if target.resume is None:
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
            "skipped": rows.skipped + encoded[split].skipped,
            "ignored": list(getattr(rows, "ignored", ())),
            "dropped": encoded[split].dropped,
            "truncated": encoded[split].truncated,
        }
        | ({"sources": rows.by_source()} if rows.sources else {})
        for split, rows in splits.items()
    }
    known = {"lora": adapter, "template": dataclasses.asdict(template), "data": data}
    run.note(model=model_of(base), **known)


def model_of(base: Any) -> dict[str, Any]:
    """What a record says of a loaded base model."""
    return {
        "name": base.name,
        "base_model": base.model.name_or_path,
        "sha256": sampled_hash(base.path),
        "revision": sources.commit_of(base.path),
        "precision": base.precision,
        "backend": base.backend,
        "attention": base.attention,
    }


def fingerprint(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must be unchanged for a resumed run to be the same run, flat: ``{"data.train": hash}``."""
    record = run.record
    data = {split: value["sha256"] for split, value in record["data"].items()}
    return made_with(settings, record["recipe_sha256"], data, record["template"], record["model"])


def made_with(
    settings: Mapping[str, Any],
    recipe: str,
    data: Mapping[str, str],
    template: Mapping[str, Any],
    model: Mapping[str, Any],
) -> dict[str, Any]:
    """A run's fingerprint of its parts, recipe and data by their hashes; one that is not known yet is empty."""
    same = {f"data.{split}": sha256 for split, sha256 in data.items()}
    same |= {f"model.{key}": model[key] for key in ("sha256", "precision", "backend") if model}
    same |= {f"template.{key}": value for key, value in template.items()}
    same |= {key: value for key, value in settings.items() if key not in MAY_CHANGE}
    return same | {"recipe": recipe}


def close(run: Run) -> None:
    """Note the time and the peak memory of this process and its GPU, and let go of the folder."""
    values: dict[str, Any] = {"finished": _now(), "peak_memory_bytes": peak_ram()}
    if (gpu := peak_gpu_memory()) is not None:
        values["peak_gpu_memory_bytes"] = gpu
    run.note(**values)
    run.report()
    lock.release(run.folder)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
