"""The model card of a run, written from the files of its folder alone, and the Python in it that asks the run."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError
from ft.files import json_lines
from ft.models.sources import license_of
from ft.runs.card_header import METRICS, header, hub_name, title, trained_whole
from ft.text.template import OPTIONAL, Template, from_record

MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~$&:@!]|(?<=www)\.")  # also what would turn into a link
LONGEST = 500  # characters of a table's cell
HERE = 'tuned = "."  # the folder of this file'  # a push writes the repository's name here

LOAD_ADAPTER = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

{here}
tokenizer = AutoTokenizer.from_pretrained(tuned)
base = AutoModelForCausalLM.from_pretrained({base!r})
model = PeftModel.from_pretrained(base, tuned)
"""
LOAD_MODEL = """
from transformers import AutoModelForCausalLM, AutoTokenizer

{here}
tokenizer = AutoTokenizer.from_pretrained(tuned)
model = AutoModelForCausalLM.from_pretrained(tuned)
"""
ASK = """
inputs = tokenizer(prompt, return_tensors="pt")  # puts <bos> in front
output = model.generate(
    **inputs,
    max_new_tokens=256,
    do_sample=False,{stopping}
)
new_ids = output[0, inputs["input_ids"].shape[1] :]
answer = tokenizer.decode(new_ids, skip_special_tokens=True)
"""
END = """
    eos_token_id=tokenizer.convert_tokens_to_ids([tokenizer.eos_token, {end!r}]),"""
STOP = """
    stop_strings={stop!r},
    tokenizer=tokenizer,"""
CUT = """for text in {stop!r}:
    answer = answer.partition(text)[0]
"""
ASKED = {"instruction": "How can I make brownies?", "source": "Hello, my name is Morgane."}


def card(run_folder: Path) -> str:
    """The model card (``README.md``) of a run, from its run.json, config.yaml and metrics.jsonl.

    What these files do not say is left out. Raises ``UserError`` for one that does not parse.
    """
    run = read(run_folder / "run.json", json.loads) or {}
    config = read(run_folder / "config.yaml", str.strip) or ""
    metrics = read(run_folder / "metrics.jsonl", json_lines) or []
    model, data = run.get("model", {}), run.get("data", {})
    base, evaluations = hub_name(model), run.get("evaluation", {})
    samples = [row for found in evaluations.values() for row in found.get("samples", [])[:10]]
    origin = f" of [{base}](https://huggingface.co/{base})" if base else ""
    splits = [{"split": k, **v} for k, v in data.items() if isinstance(v, dict)]
    for values in splits:
        if "sources" in values:
            counts = (f"{name}: {count:,}" for name, count in values["sources"].items())
            values["sources"] = "; ".join(counts)
    lora = {f"LoRA {name}": value for name, value in run.get("lora", {}).items()}
    ran = run | run.get("hardware", {}) | run.get("timings", {}) | run.get("versions", {})
    ran |= run.get("training", {})
    sections = {
        "What it is": f"{'All weights' if trained_whole(run) else 'A LoRA adapter'}{origin}, trained with ft"
        + (f" by the recipe `{run['recipe']}`." if "recipe" in run else "."),
        "Use": _usage(run, base or model.get("name"), samples),
        "Template": _template(run.get("template", {})),
        "Data": _table([*dict.fromkeys(k for v in splits for k in v)], splits) + _facts(data),
        "Settings": _facts(model | lora) + _fence(config, "yaml"),
        "Validation loss": _table(["step", "eval_loss"], [m for m in metrics if "eval_loss" in m])
        + _kept(run.get("training", {})),
        **{f"Scores on the {name} split": _scores(found) for name, found in evaluations.items()},
        "Samples": "".join(map(_asked, evaluations.values()))
        + _table([*dict.fromkeys(k for row in samples for k in row)], samples),
        "Checks before the first step": _checks(run.get("checks", [])),
        "Hardware, time and versions": _facts({k: v for k, v in ran.items() if k != "command"})
        + _fence(run.get("command", ""), "bash"),
        "License of the base model": license_of(base)[1].format(base),
    }
    name = title(run, run_folder)
    head = f"---\n{header(run, config, name)}\n---\n\n# {_text(name)}\n"
    return head + "".join(f"\n## {k}\n\n{v.strip()}\n" for k, v in sections.items() if v)


def _kept(training: dict[str, Any]) -> str:
    """Which step's weights these are, where that was a choice."""
    if (step := training.get("kept_step")) is None:
        return ""
    last = "the last" if step == training.get("steps") else f"the best of {training.get('steps')}"
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
    """What was looked at before a weight was read, a line each."""
    return "".join(f"- {_text(c['status'])} {_text(c['name'])}: {_text(c['text'])}\n" for c in seen)


def _usage(run: dict[str, Any], base: str | None, samples: Sequence[dict[str, str]]) -> str:
    template = run.get("template", {})
    if not base or "prompt" not in template:
        return ""
    sample = samples[0] if samples else {}
    return _fence(example(template, base, sample, whole=trained_whole(run)), "python")


def _template(template: dict[str, Any]) -> str:
    """What the model was trained on, in the keys of a template's YAML file; JSON is YAML."""
    filled = {key: value for key, value in template.items() if value}
    lines = [f"{k}: {json.dumps(v, ensure_ascii=False)}" for k, v in filled.items()]
    return _fence("\n".join(lines), "yaml")


def _scores(test: dict[str, Any]) -> str:
    """Base against tuned, with intervals, the paired test's p and what makes a score comparable."""
    p_values = test.get("p_value", {})
    p_values = p_values.get("tuned", p_values)
    columns = ["metric", "base", "tuned", "p"]
    rows = []
    for metric, (label, _) in METRICS.items():
        row = {
            name: _score(test.get(name, {}).get(metric), 3 if metric == "bits_per_byte" else 1)
            for name in ("base", "tuned")
        }
        if any(row.values()):
            rows.append({"metric": label, **row, "p": p_values.get(metric)})
    signatures = {f"{k} signature": v for k, v in test.get("signatures", {}).items()}
    note = "In brackets: 95% intervals.\n\n" if any("[" in str(row) for row in rows) else ""
    counts = {
        "lines": test.get("n"),
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


def _score(value: Any, digits: int) -> str:
    if isinstance(value, dict):
        score, low, high = (f"{value[key]:.{digits}f}" for key in ("score", "low", "high"))
        return f"{score} [{low}, {high}]"
    return "" if value is None else f"{value:.3f}"


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
    lines = [(name, value) for name, value in values.items() if not isinstance(value, dict)]
    filled = [f"- {_text(k.replace('_', ' '))}: {_text(v)}\n" for k, v in lines if v is not None]
    return "".join(filled) + "\n" * bool(filled)


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


def example(kept: Mapping[str, Any], base: str, sample: Mapping[str, Any], *, whole: bool) -> str:
    """The example for a run with the template of its record, which asks for ``sample``'s fields.

    ``whole``: the folder is a model, and not an adapter of ``base``.
    """
    template = from_record(kept)
    pieces = list(template._pieces("prompt"))
    fields = dict.fromkeys(name for _, *names, _ in pieces for name in names if name)
    row = {name: str(sample.get(name, ASKED.get(name, OPTIONAL.get(name, "…")))) for name in fields}
    stop = list(template.stop)
    stopping = END.format(end=template.end) if template.end else ""  # else as its base names it
    stopping += STOP.format(stop=stop) if stop else ""
    lines = [
        (LOAD_MODEL if whole else LOAD_ADAPTER).format(here=HERE, base=base),
        *("row = {", *(f"    {name!r}: {text!r}," for name, text in row.items()), "}"),
        *('prompt = "".join(', "    [", *_parts(template), "    ]", ")"),
        ASK.format(stopping=stopping).strip(),
        (CUT.format(stop=stop) if stop else "") + "print(answer.strip())",
    ]
    return "\n".join(lines)


def _parts(template: Template) -> list[str]:
    """The prompt's pieces as Python, a section's with the condition that it stands under."""
    parts = []
    for (section, present), group in itertools.groupby(
        template._pieces("prompt"), key=lambda piece: piece[2:]
    ):
        value = " + ".join(
            f"row[{field!r}]" + ".strip()" * (field in template.strip) if field else repr(literal)
            for literal, field, *_ in group
            if literal or field
        )
        condition = f"{'' if present else 'not '}row[{section!r}].strip()"
        if value:
            parts.append(f"        {value}" + f' if {condition} else ""' * bool(section) + ",")
    return parts
