"""How a run was launched: by whom, what that asks Accelerate for, and what ends with it."""

import os
import signal
import threading
import time

from ft.errors import UserError
from ft.machine import launched, say

_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # what launchers set
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "-1"}  # of one process without a launcher
_PARENT = os.getppid()


def check_launch() -> None:
    """Raise ``UserError`` for a part of what launchers set: Accelerate fails by it, or one trains in silence and saves nothing."""
    said = {name: os.environ.get(name) for name in (*_ALONE, "MASTER_ADDR", "MASTER_PORT")}
    if all(said[name] in (None, value) for name, value in _ALONE.items()):
        return
    numbers = [int(text) if (text := said[name]) and text.isdigit() else -1 for name in _ALONE]
    rank, world, local = numbers
    if min(numbers) < 0 or max(rank, local) >= world or not all(said.values()):
        words = " ".join(f"{name}={value}" for name, value in said.items() if value is not None)
        raise UserError(
            f"the environment says {words} and nothing else, which no launcher does; something left them over. "
            f"Start with `env {' '.join(f'-u {name}' for name in _ALONE)}`, or by `accelerate launch`"
        )


def follow_launcher() -> None:
    """Send this process SIGTERM when its launcher is gone, so that it saves and stops, and is no orphan."""
    if os.name == "nt" or not any(name in os.environ for name in _LAUNCHED):
        return

    def watch() -> None:
        while os.getppid() == _PARENT:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def own_precision() -> None:
    """Have the recipe's precision count, whatever a launcher or its configuration asks Accelerate for.

    To be called before Accelerate's first look at the environment.
    """
    name = "ACCELERATE_MIXED_PRECISION"
    if (asked := os.environ.get(name, "no")) != "no":
        say(f"mixed precision {asked} of accelerate launch is not used: --precision decides")
        os.environ[name] = "no"


def prepare_sharding() -> None:
    """Where FSDP is asked for, have what is saved gathered whole; its version 1 is refused.

    To be called before Accelerate's first look at the environment. Raises ``UserError``.
    """
    if not launched()["sharded"]:
        return
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "FSDP version 1 keeps no parameter as a matrix, which the loss needs: launch with "
            "--fsdp_version 2 (FSDP_VERSION=2)"
        )
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    # else Accelerate would throw away what all processes have read, and send the first one's to the others
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
