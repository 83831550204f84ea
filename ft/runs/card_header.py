"""The YAML at the head of a model card, which the Hub reads: base model, data sets, licence, scores."""

import re
from pathlib import Path
from typing import Any

from ft.models.sources import license_of
from ft.text.languages import base_of

# what a run may have been scored by: its name in a table, and in the Hub's list of metrics
METRICS = {
    "loss": ("loss", "loss"),
    "perplexity": ("perplexity", "perplexity"),
    "accuracy": ("accuracy of the next token", "accuracy"),
    "bits_per_byte": ("bits per byte", "bits_per_byte"),
    "bleu": ("BLEU", "bleu"),
    "chrf": ("chrF", "chrf"),
    "loops": ("answers that loop", None),
    "rouge_l": ("ROUGE-L", "rouge"),
    "reward": ("reward", None),
    "preference": ("held-out preferences that the implicit reward has right (%)", "accuracy"),
    "likelier": ("chosen answers that are the likelier ones (%)", "accuracy"),
    "preference_loss": ("preference loss", None),
    "stopped": ("share of answers that stopped by themselves", None),
    "answer_tokens": ("tokens of an answer", None),
    "answered": ("share of chains that came to a number", None),
    "majority_1": ("right (%), one sampled chain", "accuracy"),
    **{
        f"{choice}_{n}": (f"right (%), {choice} of {n} chains", kind)
        for n in (4, 16)
        for choice, kind in (("majority", "accuracy"), ("best", "accuracy"), ("any", None))
    },
}
# on the Hub under that name, whatever place they were read from
KNOWN_DATA = {"databricks-dolly-15k": "databricks/databricks-dolly-15k"}


def trained_whole(run: dict[str, Any]) -> bool:
    """Whether the run trained all parameters, so that its folder is a model and not an adapter."""
    return run.get("lora") == {}


def title(run: dict[str, Any], run_folder: Path) -> str:
    """What a run is called: its base model and its recipe, or else its folder."""
    base = hub_name(run.get("model", {}))
    named = base and run.get("recipe")
    return f"{base.split('/')[1]}-{run['recipe']}" if named else run_folder.resolve().name


def hub_name(model: dict[str, Any]) -> str:
    """The Hub's name of a run's base model, or an empty string: a local folder means nothing there."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    name = str(model.get("base_model") or model.get("name") or "")
    try:
        validate_repo_id(name)
    except HFValidationError:
        return ""
    return name if "/" in name and not Path(name).exists() else ""


def header(run: dict[str, Any], config: str, name: str) -> str:
    """The YAML that the Hub reads: https://huggingface.co/docs/hub/model-cards."""
    from huggingface_hub import ModelCardData

    pair = re.search(
        r"^language_pair: *['\"]?([a-z]{2,3})(?:_\w+)*-([a-z]{2,3})(?:_\w+)*(?:=|\b)",
        config,
        re.MULTILINE | re.IGNORECASE,
    )
    base, whole, data = hub_name(run.get("model", {})), trained_whole(run), run.get("data", {})
    origins = {
        split: str(part["origin"]) for split, part in data.items() if "origin" in _dict(part)
    }
    results = [
        result
        for split, found in run.get("evaluation", {}).items()
        for result in _results(found, split, origins.get(split) or split, translation=bool(pair))
    ]
    known = [name for origin in origins.values() for name in _hub_data(origin)]
    found = ModelCardData(
        base_model=base or None,
        base_model_relation=("finetune" if whole else "adapter") if base else None,
        library_name="transformers" if whole else "peft",
        pipeline_tag="text-generation",
        datasets=[*dict.fromkeys(known)] or None,
        language=[base_of(code) for code in pair.groups()] if pair else None,
        tags=["lora"] * (not whole) + ["transformers", "ft"] + ["translation"] * bool(pair),
        license=license_of(base)[0],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return found.to_yaml()


def _results(found: dict[str, Any], split: str, origin: str, *, translation: bool) -> list[Any]:
    """The tuned model's scores on a split as the Hub's ``model-index`` has them."""
    from huggingface_hub import EvalResult

    # a path means nothing there: "MTNT en-fr test, data/test.tsv" is "MTNT en-fr test"
    shown = Path(origin.split(", ")[0]).name
    known = _hub_data(origin) or [re.sub(r"\W+", "-", shown).strip("-").lower()]
    results = []
    for metric, value in found.get("tuned", {}).items():
        label, kind = METRICS.get(metric, (metric, None))
        if kind is None:
            continue
        args = {key: round(_dict(value)[key], 4) for key in ("low", "high") if key in _dict(value)}
        if signature := found.get("signatures", {}).get(metric):
            args["signature"] = signature
        results.append(
            EvalResult(
                task_type="translation" if translation else "text-generation",
                dataset_type=known[0],
                dataset_name=shown,
                dataset_split=split,
                metric_type=kind,
                metric_name=label,
                metric_value=round(_dict(value).get("score", value), 4),
                metric_args=args or None,
            )
        )
    return results


def _hub_data(origin: str) -> list[str]:
    """Ids of the Hub's data sets that a split's origin names."""
    found = re.findall(r"([\w.-]+/[\w.-]+) \([\w.-]+\) on the Hub", origin)
    return found + [name for part, name in KNOWN_DATA.items() if part in origin]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
