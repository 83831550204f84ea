"""Checkpoints of a run: which are complete, which one to go on from, and the signals that ask for one."""

import contextlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ft.config import differences
from ft.errors import UserError

STATE = "ft_state.json"  # what a checkpoint was made with; its presence says that it is complete


def complete(folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    found = [p.parent for p in folder.glob(f"checkpoint-*/{STATE}")]
    return sorted(found, key=lambda p: int(p.name.rpartition("-")[2]))


def resumable(folder: Path, resume: str | None, fingerprint: dict[str, Any]) -> Path | None:
    """The checkpoint to go on from: ``last``, or a folder. Raises ``UserError`` where there is none.

    Also for one that was made with another ``fingerprint``, naming what differs.
    """
    if resume is None:
        return None
    if resume == "last":
        found = complete(folder)
        if not found:
            raise UserError(
                f"--resume last: {folder} holds no complete checkpoint; start without --resume"
            )
        place = found[-1]
    else:
        place = Path(resume)
        if not (place / STATE).exists():
            raise UserError(f"--resume {place}: not a complete checkpoint (no {STATE} in it)")
    made_with = json.loads((place / STATE).read_text(encoding="utf-8"))
    if changed := differences(made_with, json.loads(json.dumps(fingerprint))):
        raise UserError(
            f"--resume {resume}: {place} was made with something else, so going on would not continue "
            "that run:\n  "
            + "\n  ".join(changed)
            + "\nrestore it, or start anew in another --output-dir"
        )
    return place


@contextlib.contextmanager
def signals(asked: Any) -> Iterator[None]:
    """Let the first SIGTERM or Ctrl-C set ``asked.signal``, None so far; a second one ends at once."""

    def ask(number: int, _: FrameType | None) -> None:
        if asked.signal is not None:
            raise SystemExit(128 + number)
        asked.signal = number

    before = {s: signal.signal(s, ask) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
