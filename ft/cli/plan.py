"""Memory and time of a run, before anything is loaded or downloaded."""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError, nearest
from ft.plan import devices, fitting, rewards, time
from ft.plan import settings as fit
from ft.plan.moments import GIB
from ft.plan.peak import Plan


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``ft plan``."""
    parser.epilog = "example: ft plan recipes/dolly_qlora.py --gpu 24GB"
    parser.add_argument(
        "recipe", type=files.recipe, help="a recipe's name or file; its own flags may follow"
    )
    parser.add_argument(
        "--gpu", metavar="SIZE", help="does it fit a GPU of 24GB, or a card such as rtx4090"
    )
    parser.add_argument(
        "--fit", dest="to_fit", metavar="SIZE", help="settings that fit into 16GB, or a card"
    )
    parser.add_argument(
        "--device",
        metavar="NAME",
        help=f"this machine's GPU, or its CPU without one; cpu; or {', '.join(devices.CARDS)}",
    )
    parser.add_argument("--processes", type=int, default=1, help="GPUs that train together")
    parser.add_argument(
        "--sharded", action="store_true", help="they share out the parameters (FSDP)"
    )


def command(
    recipe: Path,
    rest: list[str],
    gpu: str | None,
    to_fit: str | None,
    device: str | None,
    processes: int,
    sharded: bool,
) -> None:
    """Print the plan; exit status 1 if it does not fit."""
    from ft.config import to_dict
    from ft.runs import opened

    if gpu and to_fit:
        raise UserError("give --gpu (does it fit) or --fit (what fits), not both")
    if device and device not in (known := ("cpu", *devices.CARDS)):
        raise UserError(
            f"--device {device}: no such device in the table; known: {', '.join(known)}."
            + nearest(device, known)
        )
    if processes < 1:
        raise UserError(f"--processes {processes}: must be 1 or more")
    module, config = opened.recipe(recipe, rest, pairs=True)
    settings = rewards.completed(to_dict(config))
    if missing := [name for name in fit.NEEDED if name not in settings]:
        raise UserError(
            f"{recipe}: `ft plan` is for recipes that fine-tune a Gemma; this one has no setting "
            f"{missing[0]!r}"
        )
    fit.check(settings)
    if asked := gpu or to_fit:
        on = devices.named(asked, "--gpu" if gpu else "--fit")
        on = dataclasses.replace(on, bf16=on.bf16 and device not in devices.NO_BF16)
    elif device:
        on = devices.cpu() if device == "cpu" else devices.named(device, "--device")
    else:
        on = devices.here()
    room, options = on.room, on.options | {"processes": processes, "sharded": sharded}
    if to_fit:
        settings, flags = fitting.fitting(settings, room, options)
        print(f"to fit {to_fit}: {flags}")
    plan = fit.of(settings, **options)
    print(describe(settings, plan))
    print(f"{plan}\n{fitting.grid(settings, options)}")
    if drawn := rewards.draws(settings):
        print(drawn)
    else:
        rows = lambda: module.rows(config)["train"]  # noqa: E731
        print(time.told(plan, settings, device or on.card, rows, _here(settings), processes))
    if plan.peak > room:
        print(f"does not fit into {on}. What would: {fitting.ways(settings, room, options)}")
        raise SystemExit(1)
    print(f"fits into {on}; {fitting.largest(settings, room, options)}")
    if plan.passing:
        most = plan.graphed(room)
        larger = ", larger ones run without, slower" if most < plan.tokens else ""
        print(
            f"CUDA graphs: there is room for rows of up to {most:,} of {plan.tokens:,} tokens{larger}"
        )


def _here(settings: Mapping[str, Any]) -> bool:
    """Whether the data can be read without a download."""
    from ft.data import mixture

    places = [source.place for source in mixture.sources(str(settings.get("data", "")) or "sample")]
    return all(
        place in ("sample", "builtin")
        or mixture.aligned(place)
        or Path(place).expanduser().exists()
        for place in places
    )


def describe(settings: Mapping[str, Any], plan: Plan) -> str:
    """The settings that the plan depends on, in two lines."""
    kind = f"LoRA r {settings['lora_r']}" if settings["lora_r"] else "all parameters"
    packed = "packed, " * settings.get("packing", "train_vision" not in settings)
    again = "gradient checkpointing" if plan.checkpointing else "no gradient checkpointing"
    again += (
        f", offloaded to {plan.aside / GIB:.1f} GiB of the processor's memory" if plan.aside else ""
    )
    of = rewards.named(settings)
    of += ", each answer" * (of == "pairs")
    return (
        f"{settings['model_name_or_path']}: {plan.parameters:,} parameters, {plan.trained:,} train "
        f"({kind}, {plan.precision})\n"
        f"batches of {settings['per_device_train_batch_size']} {of} of {settings['max_length']} "
        f"tokens, {packed}{plan.tokens:,} tokens at once, {again}"
    )
