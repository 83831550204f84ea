"""A process that ends at a chosen file operation, in this process: nothing after it reaches the disk."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from ft.files import sha256
from ft.runs import lock

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Killed(BaseException):
    """No handler of errors expects it, and none of them can write any more."""


class Layer:
    """Counts what changes files below a folder; from operation ``at`` on none takes place."""

    def __init__(self, folder: Path, at: int | None) -> None:
        self.folder, self.at, self.count = str(folder), at, 0

    def see(self, event: str, args: tuple) -> None:
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        if not any(
            isinstance(a, str | os.PathLike) and str(a).startswith(self.folder) for a in args[:2]
        ):
            return
        self.count += 1
        if self.at is not None and self.count >= self.at:
            raise Killed(f"{event} {args[:2]}")


_layers: list[Layer] = []


def _audit(event: str, args: tuple) -> None:
    if event in CHANGES and _layers:
        _layers[-1].see(event, args)


@contextlib.contextmanager
def layer(folder: Path, at: int | None = None) -> Iterator[Layer]:
    """Watch a folder while this lasts; the process "dies" at operation ``at``, and its locks with it."""
    if not hasattr(sys, "_kills"):
        sys.addaudithook(_audit)
        sys._kills = True  # type: ignore[attr-defined]  # a hook stays until the interpreter ends
    _layers.append(Layer(folder, at))
    try:
        yield _layers[-1]
    finally:
        _layers.pop()
        for held in lock._held.values():
            held.release()
        lock._held.clear()


def operations(folder: Path, act: Callable[[], object]) -> int:
    """How many there are without a kill."""
    with layer(folder) as seen:
        act()
    return seen.count


def killed(folder: Path, at: int, act: Callable[[], object]) -> bool:
    """Whether ``act`` was ended at its operation ``at``; it has fewer of them otherwise."""
    with layer(folder, at):
        try:
            act()
        except Killed:
            return True
    return False


def content(folder: Path, but: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of what it holds."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    found = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: "" if but(name) else sha256(file) for name, file in found.items()}
