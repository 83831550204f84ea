"""What a recipe's settings need in memory."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ft import machine
from ft.errors import UserError, nearest
from ft.models import precision as hardware
from ft.models import sources
from ft.plan import answers, devices, layers, moments, parts, peak, rewards, shapes, tower
from ft.plan.moments import GIB
from ft.plan.peak import Plan
from ft.text import batches
from ft.train.offloading import SPARED
from ft.train.optim import choose

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
    ram: int | None = None,
) -> Plan:
    """The plan of a recipe's settings, as ``config.to_dict`` gives them, on ``cpu`` or ``cuda``.

    Of what goes on from a run they are ``rewards.completed``, and lengths are of single answers.
    ``bf16``: the device computes in it; ``lengths``: of the encoded examples, where they are known;
    ``supervised``: the share of them that a loss is taken of; ``images``: in one batch, of a recipe that
    shows some (none: one with each example); ``room``: bytes of the device, by which precision ``auto`` is
    what loading would choose on a GPU (none: the least), and activations are computed again, where nobody asked
    for or against it, if they do not fit, or if the CUDA graphs of usual rows do not; ``largest``: lengths of the
    batch of most tokens, where it is known (none: the longest together), of which a usual one is ``usual_share``;
    ``ram``: bytes of the processor's memory (none: enough), where inputs of what is computed again may wait. Raises
    ``UserError`` for what cannot be had.
    """
    full = not settings["lora_r"]
    shape, sees = shapes.of(settings["model_name_or_path"]), "train_vision" in settings
    wide = bf16 and bool(room) and _roomy(shape, room - moments.CONTEXT, processes, sharded)
    precision = _precision(settings["precision"], full=full, device=device, bf16=bf16, wide=wide)
    optim, asked = choose(settings["optim"]), settings["gradient_checkpointing"]
    if asked == "offload":
        _refuse_offloading(device, sharded)

    def planned(again: bool, offloading: bool = False) -> Plan:
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
            forwards=rewards.forwards(settings),
            checkpointing=again,
            offloading=offloading,
            accumulation=settings["gradient_accumulation_steps"],
            autocast=full and settings["precision"] == "auto" and bf16,
            bf16=bf16,
            processes=processes,
            sharded=sharded,
            evaluation=answers.of(settings, max(lengths or (settings["max_length"],))),
            room=room if device == "cuda" else None,
        )
        if not sees:
            return rewards.with_copies(plan, settings)
        return tower.with_tower(
            plan,
            shape,
            {**settings, "optim": optim, "gradient_checkpointing": again},
            width=4 if precision == "fp32" or not bf16 else 2,
            images=settings["per_device_train_batch_size"] if images is None else images,
        )

    if asked == "offload":
        return planned(True, True)
    if asked is False or room is None:
        return planned(bool(asked))
    able = device == "cuda" and not sharded
    spare = 0.0 if not able else math.inf if ram is None else SPARED * ram
    return _chosen(planned, room, again=bool(asked), usual_share=usual_share, spare=spare)


def _roomy(shape: shapes.Shape, room: int, processes: int, sharded: bool) -> bool:
    numbers = sum(layers.count(shape)) + shape.towers
    return hardware.roomy(numbers, room, processes if sharded else 1)


def _precision(asked: str, *, full: bool, device: str, bf16: bool, wide: bool) -> str:
    """The precision that loading would choose; ``wide``: a GPU holds the weights in bf16."""
    if full and asked == "nf4":
        raise UserError(
            "precision nf4 cannot train all parameters: give --lora-r 16, or fp32 or bf16"
        )
    if asked != "auto":
        return asked
    if full:
        return "fp32"
    if device == "cuda":
        return "bf16" if wide else "nf4"
    return "bf16" if bf16 else "fp32"


def _chosen(
    planned: Callable[[bool, bool], Plan],
    room: int,
    *,
    again: bool,
    usual_share: float,
    spare: float,
) -> Plan:
    """The plan that computes least twice of those that fit into ``room`` bytes, and ``spare`` ones beside the device's."""
    plan, less = planned(False, False), planned(True, False)
    slow = less.graphed(room) >= usual_share * plan.tokens > plan.graphed(room)
    if not again and plan.peak <= room and not slow:
        return plan
    least = planned(True, True)
    offloads = less.peak > room and least.peak < less.peak and least.aside <= spare
    return least if offloads else less


def _refuse_offloading(device: str, sharded: bool) -> None:
    """Raise ``UserError`` where nothing could be offloaded."""
    why = ""
    if device == "cpu":
        why = "spares a GPU's memory, and this is for a processor: leave it out, or plan with --gpu"
    elif sharded:
        why = "does not go with FSDP, whose gradient checkpointing is its own: leave one out"
    if why:
        raise UserError(f"--gradient-checkpointing offload {why}")


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
    asked, again = settings["gradient_checkpointing"], {**known, "gradient_checkpointing": True}
    alone = of(again, **{**options, "ram": 0})
    if asked is None and machine.agreed(plan.checkpointing):
        plan, plain = (
            of(again, **options),
            of({**known, "gradient_checkpointing": False}, **options),
        )
        graphs = ", the rows' CUDA graphs left out" * (plain.peak <= on.room)
        machine.say(
            f"gradient checkpointing: on, as the run takes {plain.peak / GIB:.1f} GiB without it{graphs}, and "
            f"{alone.peak / GIB:.1f} with it, of {on}"
        )
    if plan.aside and asked != "offload":
        machine.say(
            f"gradient checkpointing: offloads, as it takes {alone.peak / GIB:.1f} GiB without it, and "
            f"{plan.peak / GIB:.1f} with {plan.aside / GIB:.1f} of the processor's memory, of {on}"
        )
    return plan
