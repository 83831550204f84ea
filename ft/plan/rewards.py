"""What learning on from a run, by rewards or preferences, has that fine-tuning lacks: answers to a row, frozen adapters."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ft.data.preferences import answers
from ft.data.rows import Row, Rows
from ft.plan.peak import Plan
from ft.runs import opened
from ft.runs.folder import ADAPTER
from ft.text.examples import IGNORE, lengths_of

# By a setting that no other recipe has: answers to a row that one batch learns from. All but rejection sampling hold a
# batch whole until its backward.
KINDS = {"rounds": 1, "pairs": 2, "desirable_weight": 2, "method": 1}


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's settings, with those that a plan depends on and that come from the run which it goes on from.

    That has an adapter, which the recipe has made sure of. What the recipe has no flag for is named as
    ``implied``. Raises ``UserError`` where there is no such run.
    """
    kind = next((name for name in KINDS if name in settings), None)
    if kind is None:
        return dict(settings)
    begun = opened.finished(settings["run"], any_base=settings["any_base"])
    adapter = json.loads((begun.folder / ADAPTER[1]).read_text(encoding="utf-8"))
    targets = adapter["target_modules"]
    ends = () if isinstance(targets, str) else {name.rpartition(".")[2] for name in targets}
    n, batch = settings.get("n", 1), settings["per_device_train_batch_size"]
    step = settings["prompts"] * n if kind == "method" else 0
    implied: dict[str, Any] = {
        "lora_r": adapter["r"],
        "lora_dropout": adapter.get("lora_dropout", 0.0),
        "lora_target_modules": tuple(sorted(ends)) or ("auto",),
        "optim": "adamw",
        "gradient_accumulation_steps": max(1, step // batch),
        # of the adapter as it began: ours, and that which TRL asks where answers are drawn
        "copies": 1 + (kind == "method" and settings["beta"] > 0),
        "answers_each": KINDS[kind],
        "together": kind != "rounds",
        "step_answers": step,
        "chains": n,
    }
    # of drawn answers there are more than there is room for; others are looked at in two places
    asked = {"eval_limit": None if n > 1 else max(settings["answer_rows"], settings["watch_rows"])}
    new = {name: value for name, value in implied.items() if name not in settings}
    return {**new, **settings, **asked, "implied": frozenset(new)}


def groups(settings: Mapping[str, Any], encoded: Any) -> list[list[int]]:
    """The tokens of what each row brings into a batch: its example, or its answers with their prompt.

    Answers that are still to be drawn have all tokens that they may have.
    """
    lengths = lengths_of(encoded.examples)
    if hasattr(encoded, "pairs"):
        each = 2 if encoded.paired else 1
        return [list(lengths[at : at + each]) for at in range(0, len(lengths), each)]
    if "answers_each" not in settings:
        return [[n] for n in lengths]
    prompts = (example["labels"].count(IGNORE) for example in encoded.examples)
    return [[n + settings["max_new_tokens"]] * settings["answers_each"] for n in prompts]


def supervised(settings: Mapping[str, Any], encoded: Any, lengths: Sequence[int]) -> float:
    """The share of the tokens of ``groups`` that a loss is taken of."""
    if "answers_each" in settings and not hasattr(encoded, "pairs"):
        return settings["max_new_tokens"] * len(lengths) / sum(lengths)
    return encoded.supervised / sum(lengths)


def with_copies(plan: Plan, settings: Mapping[str, Any]) -> Plan:
    """The plan of ``completed`` settings with the frozen adapters.

    Its answers are looked at between steps, beside the optimizer's states.
    """
    if "copies" not in settings:
        return plan
    now, states = dict(plan.parts), f"optimizer states, {settings['optim']}"
    each = 4 + 2 * ("LoRA weights, cast" in now)
    held = {"adapter as it began": settings["copies"] * plan.trained * each}
    between = {states: dict(plan.most)[states]} if states not in now else {}
    return dataclasses.replace(
        plan,
        parts=(*plan.parts, *held.items(), *between.items()),
        most=(*plan.most, *held.items()),
        staying=plan.staying + sum(held.values()),
    )


def forwards(settings: Mapping[str, Any]) -> int:
    """How often each answer of ``completed`` settings goes through the model without gradients, beside learning from it."""
    if "method" in settings:  # by TRL's copy of the start; RLOO's KL and ratio ask the model itself
        return (settings["beta"] > 0) + (settings["method"] == "rloo")
    if not settings.get("together"):
        return 0
    return 1 if settings["answers_each"] == 2 else 3  # KTO estimates a KL by both on another answer


def draws(settings: Mapping[str, Any]) -> str:
    """Why nobody knows how long a run takes that learns from what it answers; empty if it learns from rows."""
    if "implied" not in settings or "n" not in settings:
        return ""
    minutes = settings.get("max_minutes")
    end = f"ends after --max-minutes ({minutes:g}), with" if minutes else "takes as long as"
    return f"time: it {end} the answers that it draws, which have no length yet"


def answers_of(rows: Sequence[Row]) -> Sequence[Row]:
    """What rows of preferences bring into a batch: each answer, with what it answers; other rows as they are."""
    if not rows or {"chosen", "label"}.isdisjoint(rows[0]):
        return rows
    return [answer for _, answer in answers(Rows(list(rows), "", ""))]


def named(settings: Mapping[str, Any]) -> str:
    """What a batch is a number of."""
    return "pairs" if settings.get("answers_each") == 2 else "examples"


def flat(groups: Sequence[Sequence[int]]) -> list[int]:
    """All tokens of some rows' answers."""
    return [n for group in groups for n in group]
