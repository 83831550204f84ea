"""What a recipe's settings need in memory."""

import dataclasses
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ft import machine
from ft.errors import UserError, nearest
from ft.models import precision as hardware
from ft.models import sources
from ft.plan import answers, devices, layers, parts, peak, rewards, shapes
from ft.plan.peak import GIB, Plan
from ft.plan.shapes import Shape
from ft.text import batches
from ft.train.optim import STATE_BYTES, choose

# the settings that a plan depends on, besides some that a recipe may lack
NEEDED = ("model_name_or_path", "precision", "lora_r", "optim", "max_length")
NEEDED += ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing")


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
    largest: Sequence[int] | None = None,
    usual_share: float = 1.0,
) -> Plan:
    """The plan of a recipe's settings, as ``config.to_dict`` gives them, on ``cpu`` or ``cuda``.

    Of what goes on from a run they are ``rewards.completed``, and lengths are of single answers.
    ``bf16``: the device computes in it; ``lengths``: of the encoded examples, where they are known;
    ``supervised``: the share of them that a loss is taken of; ``images``: in one batch, of a recipe that
    shows some (none: one with each example); ``room``: bytes of the device, by which precision ``auto`` is
    what loading would choose on a GPU (none: the least), and activations are computed again, where nobody asked
    for or against it, if they do not fit, or if the CUDA graphs of usual rows do not; ``largest``: lengths of the
    batch of most tokens, where it is known (none: the longest together), of which a usual one is ``usual_share``.
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
    optim, asked = choose(settings["optim"]), settings["gradient_checkpointing"]

    def planned(again: bool) -> Plan:
        plan = peak.plan_of(
            shape,
            precision=precision,
            lora_r=settings["lora_r"],
            optim=optim,
            batch=settings["per_device_train_batch_size"] * settings.get("answers_each", 1),
            max_length=settings["max_length"],
            lengths=largest or lengths,
            supervised=supervised,
            device=device,
            lora_dropout=settings.get("lora_dropout", 0.0),
            targets=settings.get("lora_target_modules", ("auto",)),
            packing=settings.get("packing", not sees),
            together=settings.get("together", False),
            checkpointing=again,
            accumulation=settings["gradient_accumulation_steps"],
            autocast=full and automatic and bf16,
            bf16=bf16,
            processes=processes,
            sharded=sharded,
            evaluation=answers.of(settings, max(lengths or (settings["max_length"],))),
            room=room if device == "cuda" else None,
        )
        if not sees:
            return rewards.with_copies(plan, settings)
        return _with_tower(
            plan,
            shape,
            {**settings, "optim": optim, "gradient_checkpointing": again},
            width=4 if precision == "fp32" or not bf16 else 2,
            images=settings["per_device_train_batch_size"] if images is None else images,
        )

    plan = planned(bool(asked))
    if asked is not None or room is None:
        return plan
    less = planned(True)
    slow = less.graphed(room) >= usual_share * plan.tokens > plan.graphed(room)
    return less if plan.peak > room or slow else plan


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


def _packs(settings: Mapping[str, Any]) -> bool:
    """Whether batches are packed, and so drawn whatever their lengths; padded ones are grouped by length."""
    padded = "train_vision" in settings or settings.get("backend") == "unsloth"
    return not padded and shapes.of(settings["model_name_or_path"]).family != "recurrent_gemma"


def usual_of(lengths: Sequence[int], largest: Sequence[int] | None) -> float:
    """Of the batch of most tokens, how much a usual one has; of the longest examples where that is not known."""
    return statistics.fmean(lengths) / statistics.fmean(largest or [max(lengths)])


def likely_largest(
    settings: Mapping[str, Any], groups: Sequence[Sequence[int]], rows: int
) -> list[int] | None:
    """Lengths of the batch of most tokens if so many rows are like those of a sample; none where batches are padded."""
    if not _packs(settings):
        return None
    size = settings["per_device_train_batch_size"]
    drawn = random.Random(0).choices(groups, k=max(rows, size))
    found = (rewards.flat(drawn[at : at + size]) for at in range(0, len(drawn), size))
    return max(found, key=sum)


def _largest(
    settings: Mapping[str, Any], groups: Sequence[Sequence[int]], processes: int
) -> list[int] | None:
    """Lengths of the batch of most tokens that the run's seed leads to; none where batches are padded.

    TRL draws batches of preferences by itself: of these it is one as large as the likes of them have.
    """
    if not _packs(settings):
        return None
    size = settings["per_device_train_batch_size"]
    step = size * processes
    epochs = settings.get("num_train_epochs", 1.0)
    if steps := settings.get("max_steps"):
        epochs = steps * step * settings["gradient_accumulation_steps"] / len(groups)
    order = batches.Order(
        [*map(sum, groups)], settings["seed"], shuffle=settings.get("shuffle", True), multiple=step
    )
    chosen = batches.largest(order, size, max(1, math.ceil(epochs)))
    return rewards.flat([groups[i] for i in chosen])


def of_run(settings: Mapping[str, Any], base: Any, encoded: Any) -> Plan:
    """The plan of a run whose ``models.Base`` is loaded and whose ``tokens.Encoded`` examples are known.

    Of what goes on from a run ``encoded`` are preferences, or the rows to draw answers to. Says so where
    it is a plan with gradient checkpointing that nobody asked for.
    """
    settings = rewards.completed(settings)
    groups = rewards.groups(settings, encoded)
    lengths = rewards.flat(groups)
    sees = "train_vision" in settings
    shown = sorted(len(e.get("image_files", ())) for e in encoded.examples) if sees else [0]
    name, on = settings["model_name_or_path"], devices.here()
    known = {**settings, "model_name_or_path": name if name == "embedded" else str(base.path)}
    if settings["lora_r"]:
        known["precision"] = base.precision
    if "answers_each" in known:
        known["answers_each"] = len(groups[0])
    largest = _largest(known, groups, on.options["processes"])
    options: dict[str, Any] = on.options | {
        "lengths": lengths,
        "largest": largest,
        "usual_share": usual_of(lengths, largest),
        "supervised": rewards.supervised(settings, encoded, lengths),
        "images": sum(shown[-settings["per_device_train_batch_size"] :]),
    }
    plan = of(known, **options)
    if settings["gradient_checkpointing"] is not None or not machine.agreed(plan.checkpointing):
        return plan
    plain, again = (
        of({**known, "gradient_checkpointing": asked}, **options) for asked in (False, True)
    )
    graphs = ", the rows' CUDA graphs left out" * (plain.peak <= on.room)
    machine.say(
        f"gradient checkpointing: on, as the run takes {plain.peak / GIB:.1f} GiB without it{graphs}, and "
        f"{again.peak / GIB:.1f} with it, of {on}"
    )
    return again
