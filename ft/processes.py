"""Several processes of one run: how they were launched, and what one tells the others."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ft.errors import UserError

T = TypeVar("T")

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


def launched() -> dict[str, Any]:
    """How many processes the launcher started, and whether they share out the parameters (FSDP)."""
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return {"processes": int(os.environ.get("WORLD_SIZE", "1")), "sharded": sharded}


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


def state() -> Any:
    """Accelerate's view of this process among the others."""
    from accelerate import PartialState

    return PartialState()


def apart() -> bool:
    """Whether there are several, each with a model of its own: one that FSDP shares out needs them all."""
    from accelerate.utils import DistributedType

    return state().num_processes > 1 and state().distributed_type != DistributedType.FSDP


def agreed(wish: bool) -> bool:
    """Whether any process has the wish, asked in all of them at the same point of the run.

    A clock, or a signal, is not seen by all at once: one that ended alone would leave the others waiting.
    """
    import torch

    if state().num_processes == 1:
        return wish
    found = torch.tensor(int(wish), device=state().device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return bool(found)


def from_main(find: Callable[[], T]) -> T:
    """What ``find`` gives in the main process, where alone it is called, in all of them."""
    from accelerate.utils import broadcast_object_list

    found: list[Any] = [find() if state().is_main_process else None]
    return broadcast_object_list(found)[0]


def wait() -> None:
    """Go on once all processes are here."""
    state().wait_for_everyone()
