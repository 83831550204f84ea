"""The nearest settings that fit into so many bytes, and how much of a batch or a row does."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from ft.errors import UserError
from ft.plan import layers, rewards, shapes
from ft.plan.moments import GIB
from ft.plan.settings import of

SHORTEST = 64  # tokens; shorter examples are not suggested
SIZES = ("per_device_train_batch_size", "max_length")


def fitting(
    settings: Mapping[str, Any], room: int, options: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Settings like the given ones that fit into ``room`` bytes, and the flags for them.

    The length is kept if it can be, then the batch; gradients are accumulated up to the examples that
    an optimizer step had. Raises ``UserError`` when nothing fits, with what would.
    """
    asked = settings["per_device_train_batch_size"]
    examples = asked * settings["gradient_accumulation_steps"]
    length, chosen = settings["max_length"], settings["gradient_checkpointing"]

    def fewer(batch: int) -> dict[str, Any]:
        while settings.get("step_answers", 0) % max(batch, 1):
            batch -= 1  # answers that are drawn together are learnt in batches of one size
        steps = {"gradient_accumulation_steps": math.ceil(examples / batch)}
        return {**tried, "per_device_train_batch_size": batch} | steps

    while length >= SHORTEST:
        for again in (False, True) if chosen is False else (chosen,):
            tried = {**settings, "max_length": length, "gradient_checkpointing": again}
            batch = _most(asked, fewer, room, options)
            if batch == asked or batch and again is not False:
                return fewer(batch), _flags(settings, fewer(batch))
        length //= 2
    least = {**settings, "max_length": SHORTEST, "gradient_checkpointing": True}
    need = of(least | {"per_device_train_batch_size": 1}, **options)
    raise UserError(
        f"nothing fits {room / GIB:.1f} GiB: one example of {SHORTEST} tokens with gradient checkpointing "
        f"needs {need.peak / GIB:.1f} GiB. What would: {ways(settings, room, options)}"
    )


def _flags(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    implied = before.get("implied", ())  # of which the recipe has no flag
    changed = [key for key in after if after[key] != before[key] and key not in implied]
    words = []
    for key in changed:
        flag = f"--{key.replace('_', '-')}"
        words.append(f"{flag}" if after[key] is True else f"{flag} {after[key]}")
    return " ".join(words) or "the settings as they are"


def ways(settings: Mapping[str, Any], room: int, options: Mapping[str, Any]) -> str:
    """What makes the run fit: shorter or fewer rows first, then precision, adapter, model, memory."""
    # where it is left to the plan, it is on by now
    again = {} if settings["gradient_checkpointing"] is None else {"gradient_checkpointing": True}
    small = again | {
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"],
    }
    changes: list[dict[str, Any]] = [
        again,
        small,
        *(small | {"max_length": n} for n in (512, 256) if n < settings["max_length"]),
    ]
    if not settings["lora_r"]:
        changes += [{"optim": "sgd"}, small | {"optim": "sgd"}, small | {"lora_r": 16}]
    changes += [small | {"lora_r": settings["lora_r"] or 16, "precision": "nf4"}]
    models = (
        ()
        if "implied" in settings
        else sorted(shapes.TABLE, key=lambda name: -sum(layers.count(shapes.TABLE[name])))
    )
    changes += [
        small | {"model_name_or_path": f"google/{name}", "lora_r": settings["lora_r"] or 16}
        for name in models
    ]
    known = ("lengths", "largest", "usual_share")  # of the batches as they are
    others = {name: value for name, value in options.items() if name not in known}
    found = []
    for change in changes:
        tried = {**settings, **change}
        smaller = any(tried[name] != settings[name] for name in SIZES)
        peak = of(tried, **(others if smaller else options)).peak
        if tried == settings or peak > room:
            continue
        found.append(f"{_flags(settings, tried)} ({peak / GIB:.1f} GiB)")
        if len(found) == 2 or "model_name_or_path" in change:
            break
    peak = of(settings, **options).peak
    return "; ".join(
        [*found, f"{math.ceil(peak / GIB)} GiB of memory for the settings as they are"]
    )


def _most(
    limit: int, change: Callable[[int], Mapping[str, Any]], room: int, options: Mapping[str, Any]
) -> int:
    """The largest number up to ``limit`` with which the changed settings fit; 0: not even 1 does."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        if of(change(middle), **options).peak <= room:
            low = middle
        else:
            high = middle - 1
    return low


def grid(settings: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Peaks by batch and length, with gradient checkpointing and without."""
    batch, length = settings["per_device_train_batch_size"], settings["max_length"]
    batches = sorted({1, max(1, batch // 2), batch, 2 * batch})
    lengths = sorted({max(1, length // 2), length, 2 * length})
    of_what = rewards.named(settings)
    lines = [f"  peak in GiB with / without gradient checkpointing, by {of_what} and their tokens"]
    lines.append("  " + f"{'':>6}" + "".join(f"{n:>18,}" for n in lengths))
    for number in batches:
        cells = []
        for tokens in lengths:
            tried = {**settings, "per_device_train_batch_size": number, "max_length": tokens}
            both = (
                of(tried | {"gradient_checkpointing": c}, **{**options, "ram": 0}).peak
                for c in (True, False)
            )
            cells.append(f"{' / '.join(f'{peak / GIB:.1f}' for peak in both):>18}")
        lines.append(f"  {number:>6}{''.join(cells)}")
    return "\n".join(lines)


def largest(settings: Mapping[str, Any], room: int, options: Mapping[str, Any]) -> str:
    """The largest batch and the largest length that fit, each with the other as it is."""
    shape = shapes.of(settings["model_name_or_path"])
    batch = _most(1024, lambda n: {**settings, "per_device_train_batch_size": n}, room, options)
    length = _most(
        shape.max_position_embeddings, lambda n: {**settings, "max_length": n}, room, options
    )
    many = f"{'1,024 and more' if batch == 1024 else batch} {rewards.named(settings)}"
    whole = ", all that the model has" if length == shape.max_position_embeddings else ""
    return (
        f"largest: batches of {many} at {settings['max_length']} tokens, or {length:,} tokens{whole} "
        f"in batches of {settings['per_device_train_batch_size']}"
    )
