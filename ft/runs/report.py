"""A run's page, ``report.html``: all that its folder says of it in one file, and a page that compares several runs."""

import base64
import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.files import json_lines, write_text
from ft.runs import curves, lock, proof, report_facts, report_rows
from ft.runs.card_header import hub_name
from ft.runs.published import without_paths
from ft.runs.shown import duration, score

REPORT = "report.html"
WEIGHTS = ("adapter_model.safetensors", "model.safetensors")
LIVE = 15  # seconds between two looks of a browser at a run that goes on
BULKY = (
    "evaluation",
    "checks",
    "plan",
    "lengths",
    "data",
    "template",
)  # shown elsewhere or too long


def write(folder: Path) -> Path:
    """Make ``report.html`` of a run's folder from its other files, the whole of it or nothing."""
    write_text(folder / REPORT, page(folder))
    return folder / REPORT


def page(folder: Path, name: str | None = None) -> str:
    """The page of a run that goes on or has ended: what its files do not say is left out.

    ``name`` is what it is called, by default its folder. It has no path of this machine, needs nothing but itself, and no script to be read. Raises
    ``UserError`` for files that do not parse.
    """
    run, name = _read(folder), name or folder.resolve().name
    record, lines, settings = run["record"], run["lines"], run["settings"]
    seen = report_facts.validations(record, lines)
    best = (seen.get("kept") or seen["best"][0] or None) if seen else None
    found = next(iter(record.get("evaluation", {}).values()), {})
    saved = next((p.stat().st_size for w in WEIGHTS if (p := folder / w).is_file()), None)
    live = "finished" not in record and lock.held(folder)
    rows = report_rows.rows(found.get("samples", []))
    return _render(
        "run.html",
        title=name,
        live=LIVE if live else None,
        record=record,
        base=hub_name(record.get("model", {})) or record.get("model", {}).get("name", ""),
        verdict=report_facts.verdict(record, settings, lines, live=live),
        tiles=report_facts.tiles(record, lines, saved),
        curve=curves.svg({name: lines}, {name: best}),
        scores=report_facts.scores(record),
        memory=report_facts.memory(record),
        time=report_facts.time(record),
        lengths={k: report_facts.bars(v) for k, v in record.get("lengths", {}).items()},
        slices=report_rows.slices(found.get("samples", [])),
        rows=rows,
        count=len(found.get("samples", [])),
        losses=report_rows.shaded(found.get("losses", [])),
        shades=report_rows.SHADES,
        config=run["config"],
        rest=_json({key: value for key, value in record.items() if key not in BULKY}),
        when=record.get("finished") or record.get("started", ""),
    )


def compared(folders: Mapping[str, Path], tests: Sequence[Mapping[str, Any]]) -> str:
    """One page of several runs by name: their curves, figures, the settings that differ, and paired tests.

    ``tests`` are dictionaries of ``split``, ``metric``, ``first`` and ``second`` (names of runs), the scores
    ``a`` and ``b``, and ``p``.
    """
    names, runs = list(folders), [_read(folder) for folder in folders.values()]
    seen = [report_facts.validations(run["record"], run["lines"]) for run in runs]
    steps = [(s.get("kept") or s["best"][0]) if s else None for s in seen]
    table = [_column(run["record"], s) for run, s in zip(runs, seen, strict=True)]
    labels = dict.fromkeys(label for column in table for label in column)
    settings = [run["settings"] | _of_record(run["record"]) for run in runs]
    return _render(
        "compare.html",
        title=" · ".join(names),
        live=None,
        runs=[
            (name, report_facts.verdict(run["record"], run["settings"], run["lines"]))
            for name, run in zip(names, runs, strict=True)
        ],
        curve=curves.svg(
            dict(zip(names, (run["lines"] for run in runs), strict=True)),
            dict(zip(names, steps, strict=True)),
        ),
        figures=[(label, [column.get(label, "—") for column in table]) for label in labels],
        different=report_facts.different(settings),
        tests=tests,
    )


def _column(record: Mapping[str, Any], seen: Mapping[str, Any]) -> dict[str, str]:
    """A run's figures beside those of others."""
    training, column = record.get("training", {}), {}
    if seen:
        column["best validation loss"] = f"{seen['best'][1]:.3f} (step {seen['best'][0]:,})"
    for split in report_facts.scores(record):
        values = record["evaluation"][split["split"]]["tuned"]
        for metric, (label, _) in report_facts.METRICS.items():
            if isinstance(values.get(metric), dict | int | float):
                digits = report_facts.digits_of(metric)
                column[f"{label}, {split['split']}"] = score(values[metric], digits)
    if total := report_facts.seconds_in_all(record):
        column["time"] = duration(total)
    if "tokens_per_second" in training:
        column["tokens a second"] = f"{training['tokens_per_second']:,.0f}"
    if measured := report_facts.measured_memory(record):
        column["peak memory"] = f"{measured / report_facts.GIB:.1f} GiB"
    return column


def _of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record decides a run beside its settings."""
    data, model = record.get("data", {}), record.get("model", {})
    found = {
        f"{split} rows": f"{part.get('rows', '')} ({part['sha256'][:12]})"
        for split, part in data.items()
        if isinstance(part, dict)
    }
    found |= {"recipe": record.get("recipe"), "loaded in": model.get("precision")}
    found |= {"processor": record.get("hardware", {}).get("cpu")}
    found |= {"GPU": record.get("hardware", {}).get("gpu")}
    return found | {f"version of {k}": v for k, v in record.get("versions", {}).items()}


def _read(folder: Path) -> dict[str, Any]:
    """A run's files, without the paths of this machine."""
    import yaml

    text = {name: _text(folder / name) for name in ("run.json", "config.yaml", "metrics.jsonl")}
    if not text["run.json"]:
        raise UserError(f"{folder}: not a run's folder, it has no run.json")
    try:
        record = json.loads(without_paths(text["run.json"], "run.json"))
        config = without_paths(text["config.yaml"], "config.yaml")
        settings = yaml.safe_load(config) or {}
        for name, value in (("run.json", record), ("config.yaml", settings)):
            if not isinstance(value, dict):
                raise ValueError(f"{name} holds nothing of a run")
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder}: {error}") from None
    lines = json_lines(text["metrics.jsonl"])
    return {"record": record, "config": config, "settings": settings, "lines": lines}


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


@functools.cache
def _templates() -> Any:
    from jinja2 import ChainableUndefined, Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "page"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = environment.get_template("sort.js").render()
    # no other script runs, whatever a row says, and nothing is fetched
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.filters["moment"] = proof.moment
    environment.globals |= {"script": script, "digest": digest}
    return environment


def _render(template: str, **values: Any) -> str:
    return _templates().get_template(template).render(**values)
