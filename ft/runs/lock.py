"""One writer to a run's folder: a lock that ends with its process, however that ends."""

import atexit
import contextlib
import os
from pathlib import Path
from typing import Any

from ft.errors import UserError

NAME = ".lock"  # holds the number of the process that writes
_held: dict[Path, Any] = {}  # by this process, which may open its own run again


def take(folder: Path) -> None:
    """Lock a folder until ``release`` or the end of this process. Raises ``UserError`` if another holds it."""
    from filelock import FileLock, Timeout

    place = folder.resolve()
    if place in _held:
        return
    if not _held:
        atexit.register(release)
    held = FileLock(place / NAME, timeout=0, thread_local=False)
    try:
        held.acquire()
    except Timeout:
        raise _in_use(folder) from None
    _held[place] = held
    with contextlib.suppress(PermissionError):  # Windows locks the file's bytes as well
        (place / NAME).write_text(f"{os.getpid()}\n")


def check(folder: Path) -> None:
    """Raise ``UserError`` if another process writes in a folder. Changes nothing."""
    from filelock import FileLock, Timeout

    place = folder.resolve()
    if place in _held or not (place / NAME).exists():
        return
    try:
        with FileLock(place / NAME, timeout=0):
            pass
    except Timeout:
        raise _in_use(folder) from None


def held(folder: Path) -> bool:
    """Whether this process or another writes in a folder."""
    try:
        check(folder)
    except UserError:
        return True
    return folder.resolve() in _held


def release(folder: Path | None = None) -> None:
    """Let go of a folder, or of all that this process holds."""
    for place in [folder.resolve()] if folder else list(_held):
        if held := _held.pop(place, None):
            with contextlib.suppress(OSError):
                (place / NAME).unlink()
            held.release()


def _in_use(folder: Path) -> UserError:
    with contextlib.suppress(OSError):
        if number := (folder / NAME).read_text().strip():
            return UserError(
                f"output folder {folder}: process {number} is writing a run there; wait for it, or "
                "choose another --output-dir"
            )
    return UserError(f"output folder {folder}: another process is writing a run there")
