"""The model card of a run, written from the files of its folder alone."""

import contextlib
import json
import re
import string
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ft.errors import UserError

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
USAGE = """
stop = {stop!r}
prompt = {prompt!r}.format(**{fields!r})
inputs = tokenizer(prompt, return_tensors="pt")
pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
ends = [i for i, piece in enumerate(pieces) if any(text in piece for text in stop)]
stop_ids = [tokenizer.eos_token_id, *ends]
output = model.generate(**inputs, max_new_tokens=256, do_sample=False, eos_token_id=stop_ids)
new_ids = output[0, inputs["input_ids"].shape[1] :]
answer = tokenizer.decode(new_ids, skip_special_tokens=True).lstrip()
for text in stop:
    answer = answer.split(text)[0]
print(answer.strip())
"""

# By the start of the base model's name; the terms of Gemma 1 to 3 ask for the first sentence.
LICENSES = {
    "gemma-4": ("apache-2.0", "{} is under the Apache License 2.0 (ai.google.dev/gemma/apache_2)."),
    "gemma": (
        "gemma",
        "Gemma is provided under and subject to the Gemma Terms of Use found at "
        "ai.google.dev/gemma/terms. They cover what lies here too, which modifies {}.",
    ),
}
LICENSES["recurrentgemma"] = LICENSES["gemma"]

MARKUP = re.compile(r"[\\`*_{}\[\]<>#|~$&:@!]|(?<=www)\.")  # also what would turn into a link
LONGEST = 500  # characters of a table's cell


def card(run_folder: Path) -> str:
    """The model card (``README.md``) of a run, from its run.json, config.yaml and metrics.jsonl.

    What these files do not say is left out. Raises ``UserError`` for one that does not parse.
    """
    run = read(run_folder / "run.json", json.loads) or {}
    config = read(run_folder / "config.yaml", str.strip) or ""
    metrics = read(run_folder / "metrics.jsonl", _json_lines) or []
    model, data, recipe = run.get("model", {}), run.get("data", {}), run.get("recipe")
    test = run.get("evaluation", {}).get("test", {})
    base, samples = _base_model(model), test.get("samples", [])
    title = f"{base.split('/')[1]}-{recipe}" if base and recipe else run_folder.resolve().name
    origin = f" of [{base}](https://huggingface.co/{base})" if base else ""
    splits = [{"split": k, **v} for k, v in data.items() if isinstance(v, dict)]
    lora = {f"LoRA {name}": value for name, value in run.get("lora", {}).items()}
    ran = run | run.get("hardware", {}) | run.get("timings", {}) | run.get("versions", {})
    sections = {
        "What it is": f"{'All weights' if _whole(run) else 'A LoRA adapter'}{origin}, trained with ft"
        + (f" by the recipe `{recipe}`." if recipe else "."),
        "Use": _usage(run, base or model.get("name"), samples),
        "Data": _table([*dict.fromkeys(k for v in splits for k in v)], splits) + _facts(data),
        "Settings": _facts(model | lora) + _fence(config, "yaml"),
        "Validation loss": _table(["step", "eval_loss"], [m for m in metrics if "eval_loss" in m]),
        "Scores on the test split": _scores(test),
        "Samples": _table(["source", "reference", "base", "tuned"], samples[:10]),
        "Hardware, time and versions": _facts({k: v for k, v in ran.items() if k != "command"})
        + _fence(run.get("command", ""), "bash"),
        "License of the base model": _license(base)[1].format(base),
    }
    header = f"---\n{_metadata(run, config, title)}\n---\n\n# {_text(title)}\n"
    return header + "".join(f"\n## {k}\n\n{v.strip()}\n" for k, v in sections.items() if v)


def read(path: Path, parse: Callable[[str], Any]) -> Any:
    """``parse`` of a file's text, or None without the file. Raises ``UserError``."""
    try:
        return parse(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _json_lines(text: str) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # a kill cut this line short
            found.append(json.loads(line))
    return found


def _whole(run: dict[str, Any]) -> bool:
    """Whether the run trained all parameters, so that its folder is a model and not an adapter."""
    return run.get("lora") == {}


def _base_model(model: dict[str, Any]) -> str:
    """The Hub's name of the base model, or an empty string: a local folder means nothing there."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = str(model.get("base_model") or model.get("name") or "")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return ""
    return name if "/" in name and not Path(name).exists() else ""


def _license(base: str) -> tuple[str | None, str]:
    name = base.partition("/")[2].lower()
    return next((found for start, found in LICENSES.items() if name.startswith(start)), (None, ""))


def _metadata(run: dict[str, Any], config: str, title: str) -> str:
    """The YAML that the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    from huggingface_hub import EvalResult, ModelCardData

    test, part = run.get("evaluation", {}).get("test", {}), run.get("data", {}).get("test", {})
    pair = re.search(r"^pair: *['\"]?([a-z]{2})-([a-z]{2})\b", config, re.MULTILINE)
    origin, signatures = str(part.get("origin", "test")), test.get("signatures", {})
    base = _base_model(run.get("model", {}))
    results = [
        EvalResult(
            task_type="translation" if pair else "text-generation",
            dataset_type=re.sub(r"\W+", "-", Path(origin).name).strip("-").lower(),
            dataset_name=origin,
            dataset_split="test",
            metric_type=metric,
            metric_value=round(found["score"], 2),
            metric_args={"signature": signatures[metric]} if metric in signatures else None,
        )
        for metric, found in test.get("tuned", {}).items()
        if isinstance(found, dict)
    ]
    data = ModelCardData(
        base_model=base or None,
        base_model_relation=("finetune" if _whole(run) else "adapter") if base else None,
        library_name="transformers" if _whole(run) else "peft",
        pipeline_tag="text-generation",
        language=list(pair.groups()) if pair else None,
        tags=["lora"] * (not _whole(run)) + ["transformers", "ft"] + ["translation"] * bool(pair),
        license=_license(base)[0],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return data.to_yaml()


def _usage(run: dict[str, Any], base: str | None, samples: Sequence[dict[str, str]]) -> str:
    template = run.get("template", {})
    if not base or "prompt" not in template:
        return ""
    names = [name for _, name, _, _ in string.Formatter().parse(template["prompt"]) if name]
    row = samples[0] if samples else {}
    load = LOAD_MODEL if _whole(run) else LOAD_ADAPTER
    code = load.format(here=HERE, base=base) + USAGE.format(
        stop=list(template.get("stop", [])),
        prompt=template["prompt"],
        fields={name: row.get(name, "…") for name in names},
    )
    return _fence(code, "python")


def _scores(test: dict[str, Any]) -> str:
    """Base against tuned, with intervals, the paired test's p and what makes a score comparable."""
    p_values = test.get("p_value", {})
    p_values = p_values.get("tuned", p_values)
    columns = ["metric", "base", "tuned", "p"]
    rows = []
    for metric in ("loss", "bleu", "chrf"):
        row = {name: _score(test.get(name, {}).get(metric)) for name in ("base", "tuned")}
        if any(row.values()):
            rows.append({"metric": metric, **row, "p": p_values.get(metric)})
    signatures = {f"{k} signature": v for k, v in test.get("signatures", {}).items()}
    note = "In brackets: 95% intervals.\n\n" if any("[" in str(row) for row in rows) else ""
    return _table(columns, rows) + note + _facts({"lines": test.get("n"), **signatures})


def _score(value: Any) -> str:
    if isinstance(value, dict):
        return "{score:.1f} [{low:.1f}, {high:.1f}]".format(**value)
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
