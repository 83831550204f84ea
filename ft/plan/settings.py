"""What a recipe's settings need in memory, and the nearest settings that fit."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ft import machine
from ft.errors import UserError, nearest
from ft.models import precision as hardware
from ft.models import sources
from ft.plan import answers, layers, parts, peak, shapes
from ft.plan.peak import GIB, Plan
from ft.plan.shapes import Shape
from ft.text.examples import lengths_of
from ft.train.optim import STATE_BYTES, choose

# the settings that a plan depends on, besides some that a recipe may lack
NEEDED = ("model_name_or_path", "precision", "lora_r", "optim", "max_length")
NEEDED += ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")
SHORTEST = 64  # tokens; shorter examples are not suggested


def check(settings: Mapping[str, Any]) -> None:
    """Raise ``UserError`` for settings that training would refuse once the model is loaded."""
    shape, rank = shapes.of(settings["model_name_or_path"]), settings["lora_r"]
    if rank < 0:
        raise UserError(f"--lora-r {rank}: must be 1 or more, or 0 to train all parameters")
    length, context = settings["max_length"], shape.max_position_embeddings
    if length > context and shape.family != "recurrent_gemma":
        raise UserError(f"--max-length {length}: the model has {context:,} positions")
    targets = settings.get("lora_target_modules", ("auto",))
    leaves = sorted({m.name.rpartition(".")[2] for m in layers.matrices(shape) if m.adaptable})
    for target in targets if tuple(targets) not in (("auto",), ("all-linear",)) else ():
        if target.rpartition(".")[2] not in leaves:
            refuse_target(target, leaves)


def refuse_target(target: str, leaves: Sequence[str]) -> NoReturn:
    """Raise ``UserError`` for an end of a name that no linear layer has."""
    raise UserError(
        f"--lora-target-modules {target}: no linear layer has that name; there are "
        f"{', '.join(leaves)}.{nearest(target, leaves)}"
    )


def of(
    settings: Mapping[str, Any],
    *,
    device: str = "cpu",
    bf16: bool = True,
    lengths: Sequence[int] | None = None,
    supervised: float = 1.0,
    processes: int = 1,
    sharded: bool = False,
    images: int | None = None,
    room: int | None = None,
) -> Plan:
    """The plan of a recipe's settings, as ``config.to_dict`` gives them, on ``cpu`` or ``cuda``.

    ``bf16``: the device computes in it; ``lengths``: of the encoded examples, where they are known;
    ``supervised``: the share of them that a loss is taken of; ``images``: in one batch, of a recipe that
    shows some (none: one with each example); ``room``: bytes of the GPU, by which precision ``auto`` is
    what loading would choose there (none: the least).
    """
    full = not settings["lora_r"]
    precision = settings["precision"]
    automatic = precision == "auto"
    shape, sees = shapes.of(settings["model_name_or_path"]), "train_vision" in settings
    if automatic:
        numbers, share = sum(layers.count(shape)) + shape.towers, processes if sharded else 1
        wide = bf16 and room and hardware.roomy(numbers, room - peak.CONTEXT, share)
        on_gpu = "bf16" if wide else "nf4"
        precision = "fp32" if full else on_gpu if device == "cuda" else "bf16" if bf16 else "fp32"
    if full and precision == "nf4":
        raise UserError(
            "precision nf4 cannot train all parameters: give --lora-r 16, or fp32 or bf16"
        )
    optim = choose(settings["optim"])
    plan = peak.plan_of(
        shape,
        precision=precision,
        lora_r=settings["lora_r"],
        optim=optim,
        batch=settings["per_device_train_batch_size"],
        max_length=settings["max_length"],
        lengths=lengths,
        supervised=supervised,
        device=device,
        lora_dropout=settings.get("lora_dropout", 0.0),
        targets=settings.get("lora_target_modules", ("auto",)),
        packing=settings.get("packing", not sees),
        checkpointing=settings["gradient_checkpointing"],
        accumulation=settings["gradient_accumulation_steps"],
        autocast=full and automatic and bf16,
        bf16=bf16,
        processes=processes,
        sharded=sharded,
        evaluation=answers.of(settings, max(lengths or (settings["max_length"],))),
        room=room,
    )
    if not sees:
        return plan
    return _with_tower(
        plan,
        shape,
        {**settings, "optim": optim},
        width=4 if precision == "fp32" or not bf16 else 2,
        images=settings["per_device_train_batch_size"] if images is None else images,
    )


def _with_tower(
    plan: Plan, shape: Shape, settings: Mapping[str, Any], *, width: int, images: int
) -> Plan:
    """The plan of a recipe's settings for the language model, and the tower that sees ``images`` at once.

    ``width`` is the bytes of a weight of the tower, which is never in 4 bits. What passes through a
    frozen tower is gone before the language model's peak.
    """
    tower = parts.tower_of(settings["model_name_or_path"], shape)
    rank, optim = settings["lora_r"], settings["optim"]
    counted = (
        not rank and shape.towers
    )  # a table's towers are in the plan of a model that trains whole
    size = 0 if counted else tower.parameters if tower else shape.towers
    always = {"image tower and projector": size * width} if size else {}
    most: dict[str, int] = {}
    trained = 0
    if tower and settings["train_vision"]:
        trained = tower.adapter(rank) + tower.projector if rank else tower.parameters
        each = 4 if rank else width
        states = STATE_BYTES[optim] * (each / 4 if optim == "adamw" else 1)
        always["training of the tower"] = int(trained * (each + states + (4 if rank else 0)))
        always["activations of the tower"] = tower.kept(
            images, width, checkpointing=settings["gradient_checkpointing"]
        )
    elif tower:
        most["images, passing the tower"] = tower.passing(images, width)
    return dataclasses.replace(
        plan,
        parts=(*plan.parts, *always.items()),
        most=(*plan.most, *always.items(), *most.items()),
        parameters=plan.parameters + size,
        trained=plan.trained + trained,
    )


def check_memory(settings: Mapping[str, Any]) -> str:
    """What training all parameters takes here, as a line, before any weight is read.

    Raises ``UserError`` where not even weights, gradients and optimizer states fit; activations come on
    top. Where parameters are sharded (FSDP), the processes share gradients and states.
    """
    name, optim = settings["model_name_or_path"], settings["optim"]
    place = name if name == "embedded" else str(sources.fetch(name, weights=False))
    room, where = machine.free_memory()
    # one example: its gradients alone
    one = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    plan = of({**settings, **one, "model_name_or_path": place}, device="cuda")
    held = dict(plan.most)
    weights = sum(held.get(part, 0) for part in parts.BASE)
    gradients = held["gradients"] + held["gradient of the embedding"]
    states = held.get(f"optimizer states, {optim}", 0)
    total, *each = (
        f"{n / GIB:.1f}" for n in (weights + gradients + states, weights, gradients, states)
    )
    need = (
        f"{plan.parameters:,} parameters need {total} GiB (weights {each[0]}, gradients {each[1]}, "
        f"optimizer states {each[2]}), and the activations on top"
    )
    found = machine.launched()
    processes = found["processes"] if found["sharded"] else 1
    # a GPU gets its share of the weights, a CPU reads all of them first
    whole = weights // (processes if machine.here().device.startswith("cuda") else 1)
    if whole + (gradients + states) // processes > room:
        others = ["--optim sgd, which keeps no states"] * bool(states)
        others += ["--precision bf16, which halves all"] * (plan.precision != "bf16")
        others += ["--lora-r 16, which trains an adapter alone"]
        raise UserError(
            f"full-parameter training with optim={optim} will not fit: {need}; {where} has "
            f"{room / GIB:.1f} GiB free. Use {', or '.join(others)}."
        )
    return f"memory: {need}; {room / GIB:.1f} GiB are free"


def of_run(settings: Mapping[str, Any], base: Any, encoded: Any) -> Plan:
    """The plan of a run whose ``models.Base`` is loaded and whose ``tokens.Encoded`` examples are known."""
    lengths = lengths_of(encoded.examples)
    sees = "train_vision" in settings
    shown = sorted(len(e.get("image_files", ())) for e in encoded.examples) if sees else [0]
    name, on = settings["model_name_or_path"], machine.here()
    known = {"model_name_or_path": name if name == "embedded" else str(base.path)}
    known |= {"precision": base.precision} if settings["lora_r"] else {}
    return of(
        {**settings, **known},
        device="cuda" if on.device.startswith("cuda") else "cpu",
        bf16=on.bf16,
        lengths=lengths,
        supervised=encoded.supervised / sum(lengths),
        **machine.launched(),
        images=sum(shown[-settings["per_device_train_batch_size"] :]),
    )


def fitting(
    settings: Mapping[str, Any], room: int, options: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Settings like the given ones that fit into ``room`` bytes, and the flags for them.

    The length is kept if it can be, then the batch; gradients are accumulated up to the examples that
    an optimizer step had. Raises ``UserError`` when nothing fits, with what would.
    """
    asked = settings["per_device_train_batch_size"]
    examples = asked * settings["gradient_accumulation_steps"]
    length = settings["max_length"]

    def fewer(batch: int) -> dict[str, Any]:
        steps = {"gradient_accumulation_steps": math.ceil(examples / batch)}
        return {**tried, "per_device_train_batch_size": batch} | steps

    while length >= SHORTEST:
        for checkpointing in dict.fromkeys((settings["gradient_checkpointing"], True)):
            tried = {**settings, "max_length": length, "gradient_checkpointing": checkpointing}
            batch = _most(asked, fewer, room, options)
            if batch == asked or batch and checkpointing:
                return fewer(batch), _flags(settings, fewer(batch))
        length //= 2
    least = {**settings, "max_length": SHORTEST, "gradient_checkpointing": True}
    need = of(least | {"per_device_train_batch_size": 1}, **options)
    raise UserError(
        f"nothing fits {room / GIB:.1f} GiB: one example of {SHORTEST} tokens with gradient checkpointing "
        f"needs {need.peak / GIB:.1f} GiB. What would: {ways(settings, room, options)}"
    )


def _flags(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    changed = [key for key in after if after[key] != before[key]]
    words = []
    for key in changed:
        flag = f"--{key.replace('_', '-')}"
        words.append(f"{flag}" if after[key] is True else f"{flag} {after[key]}")
    return " ".join(words) or "the settings as they are"


def ways(settings: Mapping[str, Any], room: int, options: Mapping[str, Any]) -> str:
    """What makes the run fit: shorter or fewer rows first, then precision, adapter, model, memory."""
    small = {
        "per_device_train_batch_size": 1,
        "gradient_checkpointing": True,
        "gradient_accumulation_steps": settings["per_device_train_batch_size"]
        * settings["gradient_accumulation_steps"],
    }
    changes: list[dict[str, Any]] = [
        {"gradient_checkpointing": True},
        small,
        *(small | {"max_length": n} for n in (512, 256) if n < settings["max_length"]),
    ]
    if not settings["lora_r"]:
        changes += [{"optim": "sgd"}, small | {"optim": "sgd"}, small | {"lora_r": 16}]
    changes += [small | {"lora_r": settings["lora_r"] or 16, "precision": "nf4"}]
    models = sorted(shapes.TABLE, key=lambda name: -sum(layers.count(shapes.TABLE[name])))
    changes += [
        small | {"model_name_or_path": f"google/{name}", "lora_r": settings["lora_r"] or 16}
        for name in models
    ]
    found = []
    for change in changes:
        tried = {**settings, **change}
        if tried == settings or (peak := of(tried, **options).peak) > room:
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
    lines = ["  peak in GiB with / without gradient checkpointing, by examples and their tokens"]
    lines.append("  " + f"{'':>6}" + "".join(f"{n:>18,}" for n in lengths))
    for number in batches:
        cells = []
        for tokens in lengths:
            tried = {**settings, "per_device_train_batch_size": number, "max_length": tokens}
            both = (
                of(tried | {"gradient_checkpointing": c}, **options).peak for c in (True, False)
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
    many = "1,024 and more examples" if batch == 1024 else f"{batch} examples"
    whole = ", all that the model has" if length == shape.max_position_embeddings else ""
    return (
        f"largest: batches of {many} at {settings['max_length']} tokens, or {length:,} tokens{whole} "
        f"in batches of {settings['per_device_train_batch_size']}"
    )
