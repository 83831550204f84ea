"""How a run was launched: by whom, what that asks Accelerate for, and what ends with it."""

import os
import signal
import threading
import time

from ft.errors import UserError
from ft.machine import launched, say

_LAUNCHED = ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION")  # what launchers set
_PARENT = os.getppid()


def check_launch() -> None:
    """Raise ``UserError`` for a rank that no launcher gave: it would be silent, and save nothing."""
    rank, world = (os.environ.get(name) for name in ("RANK", "WORLD_SIZE"))
    if rank in (None, "0"):
        return
    numbers = [int(text) if text and text.isdigit() else None for text in (rank, world)]
    if numbers[0] is None or numbers[1] is None or numbers[0] >= numbers[1]:
        raise UserError(
            f"the environment says RANK={rank or 'nothing'} and WORLD_SIZE={world or 'nothing'}, which no "
            "launcher does; something left them over. Start with `env -u RANK -u WORLD_SIZE`, or by "
            "`accelerate launch`"
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
