"""The model card of a run, written from the files of its folder alone."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.files import json_lines
from ft.models.sources import license_of
from ft.runs.card_example import example, typical
from ft.runs.card_header import METRICS, header, hub_name, title, trained_whole
from ft.runs.proof import moment
from ft.runs.published import without_paths
from ft.runs.report_facts import digits_of, p_values, verdict
from ft.runs.shown import score, size

MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~$&:@!]|(?<=www)\.")  # also what would turn into a link
LONGEST = 500  # characters of a table's cell
SHOWN = 10  # samples


def card(run_folder: Path) -> str:
    """The model card (``README.md``) of a run, from its run.json, config.yaml and metrics.jsonl.

    What these files do not say is left out. Raises ``UserError`` for one that does not parse.
    """
    # the example works here: its base may be a folder of this machine, which a push takes out
    here = read(run_folder / "run.json", json.loads) or {}
    run = json.loads(without_paths(json.dumps(here), "run.json"))
    config = read(run_folder / "config.yaml", lambda t: without_paths(t.strip(), "config.yaml"))
    config, metrics = config or "", read(run_folder / "metrics.jsonl", json_lines) or []
    model, data = run.get("model", {}), run.get("data", {})
    base, evaluations = hub_name(model), run.get("evaluation", {})
    samples = [row for found in evaluations.values() for row in found.get("samples", [])]
    lora = {f"LoRA {name}": value for name, value in run.get("lora", {}).items()}
    if "LoRA share" in lora:
        lora["LoRA share"] = f"{lora['LoRA share']:.1%} of the model"
    ran = run | run.get("hardware", {}) | run.get("timings", {}) | run.get("versions", {})
    ran |= run.get("training", {})
    left = ("command", "checks")  # which have places of their own
    sections = {
        "What it is": _what(run_folder, run, base, config, metrics),
        **{f"Scores on the {name} split": _scores(found) for name, found in evaluations.items()},
        "Use": _usage(run, base or here.get("model", {}).get("name"), samples),
        "Samples": "".join(map(_asked, evaluations.values()))
        + _table([*dict.fromkeys(k for row in samples for k in row)], samples[:SHOWN]),
        "Validation loss": _validation(run_folder, run.get("training", {}), metrics),
        "Data": _data(data),
        "Template": _template(run.get("template", {})),
        "Settings": _facts(model | lora) + _fence(config, "yaml"),
        "Checks before the first step": _checks(run.get("checks", [])),
        "Hardware, time and versions": _facts({k: v for k, v in ran.items() if k not in left})
        + _fence(run.get("command", ""), "bash"),
        "License of the base model": license_of(base)[1].format(base),
    }
    name = title(run, run_folder)
    head = f"---\n{header(run, config, name)}\n---\n\n# {_text(name)}\n"
    return head + "".join(f"\n## {k}\n\n{v.strip()}\n" for k, v in sections.items() if v)


def _what(
    folder: Path, run: dict[str, Any], base: str, config: str, metrics: Sequence[dict[str, Any]]
) -> str:
    """What lies here, how large it is, and what came of it."""
    import yaml

    whole = trained_whole(run)
    origin = f" of [{base}](https://huggingface.co/{base})" if base else ""
    file = folder / ("model.safetensors" if whole else "adapter_model.safetensors")
    large = f" ({size(file.stat().st_size)})" if file.is_file() else ""
    recipe = f" by the recipe `{run['recipe']}`" if "recipe" in run else ""
    said = (
        f"{'All weights' if whole else 'A LoRA adapter'}{origin}{large}, trained with ft{recipe}."
    )
    if "finished" not in run:
        return said
    return f"{said}\n\n{_text(verdict(run, yaml.safe_load(config) or {}, metrics))}"


def _data(data: dict[str, Any]) -> str:
    """A line for each split: where its rows are from, how many, and a hash of them."""
    splits = [{"split": k, **v} for k, v in data.items() if isinstance(v, dict)]
    for values in splits:
        values["sha256"] = values.get("sha256", "")[:12]
        if "sources" in values:
            counts = (f"{name}: {count:,}" for name, count in values["sources"].items())
            values["sources"] = "; ".join(counts)
    columns = dict.fromkeys(k for v in splits for k in v)
    return _table(
        [k for k in columns if any(v.get(k) not in (0, []) for v in splits)], splits
    ) + _facts(data)


def _validation(folder: Path, training: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> str:
    """The curve, where it was drawn, its figures, and which step's weights these are."""
    figures = [line for line in metrics if "eval_loss" in line]
    drawn = "![loss by optimizer step](loss.png)\n\n" * (folder / "loss.png").is_file()
    scores = dict.fromkeys(key for line in figures for key in line if key.startswith("eval_"))
    return drawn + _table(["step", *scores], figures) + _kept(training)


def _kept(training: dict[str, Any]) -> str:
    """Which step's weights these are, where that was a choice."""
    if (step := training.get("kept_step")) is None:
        return ""
    last = "the last" if step == training.get("steps") else f"the best of {training.get('steps')}"
    if (by := training.get("best_by", "loss")) != "loss":
        last += f" by {by}"
    return f"The weights are those of step {step}, {last}.\n"


def read(path: Path, parse: Callable[[str], Any]) -> Any:
    """``parse`` of a file's text, or None without the file. Raises ``UserError``."""
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _checks(seen: Sequence[Mapping[str, str]]) -> str:
    """What was looked at before the first step, a line each; of a proof when."""
    lines = []
    for check in seen:
        when = f" (ft check --weights, {moment(check)})" if "measured" in check else ""
        status, name, text = (_text(check[key]) for key in ("status", "name", "text"))
        lines.append(f"- {status} {name}: {text}{_text(when)}\n")
    return "".join(lines)


def _usage(run: dict[str, Any], base: str | None, samples: Sequence[dict[str, str]]) -> str:
    template = run.get("template", {})
    if not base or "prompt" not in template:
        return ""
    sample = typical(samples) if samples else {}
    shown = example(
        template, base, sample, whole=trained_whole(run), decoding=run.get("decoding", {})
    )
    return _fence(shown, "python")


def _template(template: dict[str, Any]) -> str:
    """What the model was trained on, in the keys of a template's YAML file; JSON is YAML."""
    filled = {key: value for key, value in template.items() if value}
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in filled.items()]
    return _fence("\n".join(lines), "yaml")


def _scores(test: dict[str, Any]) -> str:
    """Base against tuned, with intervals, the paired test's p and what makes a score comparable."""
    columns = ["metric", "base", "tuned", "p"]
    rows = []
    for metric, (label, _) in METRICS.items():
        values = {name: test.get(name, {}).get(metric) for name in ("base", "tuned")}
        row = {name: score(v, digits_of(metric)) for name, v in values.items() if v is not None}
        if row:
            p = p_values(test).get(metric)
            rows.append({"metric": label, **row, "p": None if p is None else f"{p:.2g}"})
    signatures = {f"{k} signature": v for k, v in test.get("signatures", {}).items()}
    note = "In brackets: 95% intervals.\n\n" if any("[" in str(row) for row in rows) else ""
    counts = {
        "lines": test.get("n"),
        "lines of the base, and of p": test.get("n_base"),
        "examples of the loss": test.get("n_likelihood"),
        "longest answer in tokens": test.get("max_new_tokens"),
        "chains for each question": test.get("chains"),
        "temperature": test.get("temperature"),
        "best of several": test.get("reward"),
    }
    return _table(columns, rows) + note + _facts(counts | signatures)


def _asked(test: dict[str, Any]) -> str:
    """The question that every run is asked, with both answers."""
    answers = {f"{name} answers": test.get(name, {}).get("answer") for name in ("base", "tuned")}
    return _facts({"asked": test["ask"].strip(), **answers}) if "ask" in test else ""


def _table(columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of the columns that some row fills."""
    rows = list(rows)
    columns = [name for name in columns if any(row.get(name) is not None for row in rows)]
    lines = [[_text(_short(row.get(name))) for name in columns] for row in rows]
    body = [columns, ["---"] * len(columns), *lines] if columns else []
    return "".join(f"| {' | '.join(line)} |\n" for line in body) + "\n" * bool(body)


def _short(value: Any) -> Any:
    too_long = isinstance(value, str) and len(value) > LONGEST
    return value[:LONGEST] + "…" if too_long else value


def _facts(values: dict[str, Any]) -> str:
    lines = [_fact(name, value) for name, value in values.items() if not isinstance(value, dict)]
    filled = [f"- {_text(k.replace('_', ' '))}: {_text(v)}\n" for k, v in lines if v is not None]
    return "".join(filled) + "\n" * bool(filled)


def _fact(name: str, value: Any) -> tuple[str, Any]:
    """A name and its value as people read them: bytes in GiB."""
    if value is not None and name.endswith("_bytes"):
        return name.removesuffix("_bytes"), f"{value / 2**30:.1f} GiB"
    if value is not None and name.endswith("_gib"):
        return name.removesuffix("_gib"), f"{value:g} GiB"
    return name, value


def _fence(text: str, language: str) -> str:
    ticks = max([2, *map(len, re.findall("`+", text))]) + 1
    return f"{'`' * ticks}{language}\n{text.strip()}\n{'`' * ticks}\n\n" if text else ""


def _text(value: Any) -> str:
    """A value as plain text in Markdown: nothing in it formats, links or ends a table's cell."""
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
    return MARKUP.sub(r"\\\g<0>", "\n".join(str(value).splitlines())).replace("\n", "<br>")
