"""What a run's page says in figures: the verdict, tiles, scores as bars, memory and time; all from its record."""

import datetime
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ft.runs.card_header import METRICS
from ft.runs.curves import Lines, points
from ft.runs.shown import count, duration, score, size

GIB = 2**30
LOWER = {"loss", "perplexity", "bits_per_byte", "preference_loss", "loops"}  # that are better so
# the score that a verdict is about: the first of these that a run has
FIRST = ("chrf", "exact", "majority_16", "majority_4", "majority_1", "reward", "preference")
FIRST += ("rouge_l", "bits_per_byte", "loss")
OWN = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
}  # say nothing of what is learnt
Record = Mapping[str, Any]


def validations(record: Record, lines: Lines) -> dict[str, Any]:
    """How validation went: ``first``, ``last`` and ``best`` (step, loss), and the ``kept`` step.

    The start counts as best only where nothing else is. Empty without validations.
    """
    found = [point for point in points(lines, "eval_loss") if math.isfinite(point[1])]
    if not found:
        return {}
    training = record.get("training", {})
    kept, by = training.get("kept_step"), training.get("best_by", "loss")
    best = min(found[1:] or found, key=lambda point: point[1])
    if by != "loss":  # the loss of the validation with the best score
        best = next((point for point in found if point[0] == training["best_step"]), best)
    return {"first": found[0], "last": found[-1], "best": best, "kept": kept, "by": by} | {
        "n": len(found)
    }


def progress(settings: Mapping[str, Any], lines: Lines) -> tuple[int, int | None]:
    """The last step that was logged, and about how many there will be, where that can be told."""
    steps = [line for line in lines if line.get("step")]
    if not steps:
        return 0, settings.get("max_steps")
    last, epochs = steps[-1]["step"], settings.get("num_train_epochs")
    passed = [(line["step"], line["epoch"]) for line in steps if line.get("epoch")]
    if settings.get("max_steps") or not (passed and epochs):
        return last, settings.get("max_steps")
    step, epoch = passed[-1]
    return last, max(last, round(step * epochs / epoch))


def verdict(
    record: Record, settings: Mapping[str, Any], lines: Lines, *, live: bool = False
) -> str:
    """The run in one sentence; ``live``: one that has not ended goes on."""
    seen = validations(record, lines)
    losses = ""
    if seen and seen["best"][0]:
        losses = f"validation loss {seen['first'][1]:.3f} → {seen['best'][1]:.3f}"
    if "finished" not in record:
        step, all_of_them = progress(settings, lines)
        where = f"step {step:,}" + (f" of {all_of_them:,}" if all_of_them else "")
        best = f", the best at step {seen['best'][0]:,}" if losses and seen["n"] > 2 else ""
        return f"{'Under way' if live else 'Stopped'}: {where}" + (
            f"; {losses}{best}." if losses else "."
        )
    kept = _kept(seen, record.get("training", {}).get("steps"))
    for split, found in record.get("evaluation", {}).items():
        if judged := _judged(found, split):
            return judged + (f"; {kept}." if kept else ".")
    if not losses:
        return "Finished."
    steps = record.get("training", {}).get("steps", seen["last"][0])
    word = "Learnt" if seen["best"][1] < seen["first"][1] else "Not better than at its start"
    return f"{word}: {losses} in {steps:,} steps" + (f"; {kept}." if kept else ".")


def _judged(found: Record, split: str) -> str:
    """Whether the tuned model is better than its base by the first score that both have."""
    base, tuned = found.get("base", {}), found.get("tuned", {})
    metric = next((m for m in FIRST if m in base and m in tuned), None)
    if metric is None:
        return ""
    before, after = (_middle(model[metric]) for model in (base, tuned))
    p = p_values(found).get(metric)
    better = after < before if metric in LOWER else after > before
    if after == before or (p is not None and p >= 0.05):
        word = "No clear difference to its base"
    else:
        word = f"{'Better' if better else 'Worse'} than its base"
    digits = digits_of(metric)
    on = f" on {found['n']:,} rows of {split}" if "n" in found else f" on {split}"
    chance = f" (p = {p:.2g})" if p is not None else ""
    label = METRICS.get(metric, (metric, None))[0]
    return f"{word}: {label} {before:.{digits}f} → {after:.{digits}f}{on}{chance}"


def _kept(seen: Mapping[str, Any], steps: int | None) -> str:
    if not seen or seen["kept"] is None or not steps:
        return ""
    if seen["kept"] == steps:
        return f"kept are the weights of step {steps:,}, the last"
    if seen["by"] != "loss":
        return f"kept are the weights of step {seen['kept']:,} of {steps:,}, the best on valid by {seen['by']}"
    losses = f"{seen['best'][1]:.3f}, {seen['last'][1]:.3f} at the last"
    return (
        f"kept are the weights of step {seen['kept']:,} of {steps:,}, the best on valid ({losses})"
    )


def p_values(found: Record) -> Mapping[str, float]:
    """The p of each score of tuned against base."""
    values = found.get("p_value", {})
    return values.get("tuned", values)


def digits_of(metric: str) -> int:
    """How many of a score stand behind the point: it may be small, or go to 100."""
    return 3 if metric in LOWER or metric == "reward" else 1


def _middle(value: Any) -> float:
    return value["score"] if isinstance(value, dict) else value


def tiles(record: Record, lines: Lines, saved: int | None) -> list[tuple[str, str, str]]:
    """Label, figure and a note under it, of what can be said; ``saved`` are the bytes of the weights."""
    training, lora, found = record.get("training", {}), record.get("lora", {}), []
    if (seen := validations(record, lines)) and seen["best"][0]:
        note = f"from {seen['first'][1]:.3f}, at step {seen['best'][0]:,}"
        found.append(("best validation loss", f"{seen['best'][1]:.3f}", note))
    if total := seconds_in_all(record):
        steps = f"{training['steps']:,} steps in {duration(training['seconds'])}"
        found.append(("time", duration(total), steps if "seconds" in training else ""))
    elif spent := [line for line in lines if line.get("seconds")]:
        found.append(("time of steps so far", duration(spent[-1]["seconds"]), ""))
    speed = training.get("tokens_per_second") or _speed(lines)
    if speed:
        learnt = training.get("supervised_tokens_per_second")
        note = f"{learnt:,.0f} of them learnt" if learnt else ""
        found.append(("tokens a second", f"{speed:,.0f}", note))
    if measured := measured_memory(record):
        planned = record.get("plan", {}).get("peak")
        notes = [f"{planned / GIB:.1f} GiB were planned"] if planned else []
        if made := record.get("made_room"):
            notes.append(f"no room was found, and made with {', '.join(made)}")
        found.append(("peak memory", f"{measured / GIB:.1f} GiB", "; ".join(notes)))
    if lora.get("trainable"):
        share = f"{lora['share']:.1%} of the model" if "share" in lora else ""
        file = f", {size(saved)}" if saved else ""
        found.append(("weights learnt", count(lora["trainable"]), share + file))
    elif saved:
        found.append(("model", size(saved), "all of its weights were trained"))
    return found


def _speed(lines: Lines) -> float | None:
    done = [line for line in lines if line.get("seconds") and line.get("tokens")]
    return done[-1]["tokens"] / done[-1]["seconds"] if done else None


def measured_memory(record: Record) -> int | None:
    """The peak in bytes of what the plan is of: the GPU's allocator, or this process."""
    gpu = record.get("peak_gpu_memory_bytes")
    return (
        record.get("training", {}).get("peak_memory_bytes")
        or gpu
        or record.get("peak_memory_bytes")
    )


def seconds_in_all(record: Record) -> float | None:
    """From the start of the process to the run's end."""
    if "finished" not in record or "started" not in record:
        return None
    ends = (datetime.datetime.fromisoformat(record[key]) for key in ("started", "finished"))
    start, end = ends
    return (end - start).total_seconds()


def scores(record: Record) -> list[dict[str, Any]]:
    """Each split's scores, each a bar for base and tuned with its interval, in per cent of the largest."""
    splits = []
    for split, found in record.get("evaluation", {}).items():
        models = [name for name in ("base", "tuned") if isinstance(found.get(name), dict)]
        rows = []
        for metric, (label, _) in METRICS.items():
            values = {name: found[name][metric] for name in models if metric in found[name]}
            if not values or any(not isinstance(v, dict | int | float) for v in values.values()):
                continue
            top = max(max(v["high"] if isinstance(v, dict) else v for v in values.values()), 1e-9)
            bars = [_bar(name, value, top, digits_of(metric)) for name, value in values.items()]
            p = p_values(found).get(metric)
            rows.append({"label": label, "lower": metric in LOWER, "bars": bars, "p": p})
        if rows:
            signatures = found.get("signatures", {})
            splits.append(
                {"split": split, "n": found.get("n"), "n_base": found.get("n_base"), "rows": rows}
                | {"signatures": signatures}
                | {"asked": found.get("ask"), "models": {m: found[m].get("answer") for m in models}}
            )
    return splits


def _bar(name: str, value: Any, top: float, digits: int) -> dict[str, Any]:
    """A bar's length and where its interval lies, in per cent."""
    bar = {
        "name": name,
        "text": score(value, digits),
        "length": 100 * max(0.0, _middle(value)) / top,
    }
    if isinstance(value, dict):
        low, high = (100 * max(0.0, value[end]) / top for end in ("low", "high"))
        bar |= {"low": low, "wide": high - low}
    return bar


def memory(record: Record) -> dict[str, Any]:
    """The parts of the planned peak, largest first, and the measured one."""
    plan, measured = record.get("plan", {}), measured_memory(record)
    if not plan.get("parts"):
        return {}
    top = max(plan["peak"], measured or 0)
    parts = sorted(plan["parts"].items(), key=lambda part: -part[1])
    found = [(name, f"{part / GIB:.2f}", 100 * part / top) for name, part in parts if part]
    bars = [("planned", plan["peak"]), *([("measured", measured)] if measured else [])]
    return {"parts": found, "moment": plan.get("moment", ""), "device": plan.get("device", "")} | {
        "bars": [(name, f"{value / GIB:.2f} GiB", 100 * value / top) for name, value in bars]
    }


def time(record: Record) -> list[tuple[str, str, float]]:
    """Where the run's time went: what for, how long, per cent. Empty where it cannot be told."""
    training, total = record.get("training", {}), seconds_in_all(record)
    if not total or "wall_seconds" not in training:
        return []
    scoring = sum(found.get("seconds", 0.0) for found in record.get("evaluation", {}).values())
    parts = {
        "training steps": training["seconds"],
        "validations and checkpoints": training["wall_seconds"] - training["seconds"],
        "scores and answers, base and tuned": scoring,
    }
    rest = total - sum(parts.values())
    if rest < -1:  # a run that went on: its parts began before this process
        return []
    parts["loading, checks and the rest"] = max(0.0, rest)
    return [(name, duration(part), 100 * part / total) for name, part in parts.items() if part > 0]


def bars(counts: Mapping[str, int]) -> list[tuple[str, int, float]]:
    """A histogram's labels, counts and lengths in per cent."""
    most = max([*counts.values(), 1])
    return [(label, number, 100 * number / most) for label, number in counts.items()]


def different(settings: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same in all runs, and each run's value; none is as good as absent."""
    keys = dict.fromkeys(key for each in settings for key in each if key not in OWN)
    values = [(key, [each.get(key) for each in settings]) for key in keys]
    found = [(key, ["—" if v is None else str(v) for v in each]) for key, each in values]
    return [(key, values) for key, values in found if len(set(values)) > 1]
