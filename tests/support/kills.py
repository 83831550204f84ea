"""What a process leaves that ends at a chosen file operation: a copy of its folder, taken just before."""

import contextlib
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from ft.files import sha256
from ft.runs import lock

CHANGES = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Layer:
    """Counts what changes files below a folder, and copies it as it is before the operations ``at``."""

    def __init__(self, folder: Path, at: Collection[int], place: Path) -> None:
        self.folder, self.at, self.place, self.count = folder, at, place, 0

    def see(self, event: str, args: tuple) -> None:
        if event == "open" and not (isinstance(args[2], int) and args[2] & WRITES):
            return
        names = [str(a) for a in args[:2] if isinstance(a, str | os.PathLike)]
        if not any(name.startswith(str(self.folder)) for name in names):
            return
        self.count += 1
        if self.count in self.at and self.folder.exists():
            shutil.copytree(self.folder, self.place / str(self.count), symlinks=True)


_layers: list[Layer] = []


def _audit(event: str, args: tuple) -> None:
    if event in CHANGES and _layers:
        layer = _layers.pop()  # copying is no operation of the run
        try:
            layer.see(event, args)
        finally:
            _layers.append(layer)


@contextlib.contextmanager
def layer(folder: Path, at: Collection[int] = (), place: Path = Path()) -> Iterator[Layer]:
    """Watch a folder while this lasts; at its end the "process" is over, and its locks are free."""
    if not hasattr(sys, "_kills"):
        sys.addaudithook(_audit)
        sys._kills = True  # type: ignore[attr-defined]  # a hook stays until the interpreter ends
    _layers.append(Layer(folder, at, place))
    try:
        yield _layers[-1]
    finally:
        _layers.pop()
        for held in lock._held.values():
            held.release()
        lock._held.clear()


def operations(folder: Path, act: Callable[[], object]) -> int:
    """How many there are."""
    with layer(folder) as seen:
        act()
    return seen.count


def left(
    folder: Path, act: Callable[[], object], at: Collection[int], place: Path
) -> Iterator[int]:
    """What a process leaves that is killed at its operations ``at``: ``folder`` holds it, one after the other.

    The process runs once and to its end; what it had not yet written to the disk is lost, as by SIGKILL.
    """
    with layer(folder, at, place) as seen:
        act()
    assert seen.count >= max(at)
    for number in at:
        shutil.rmtree(folder)
        if (place / str(number)).exists():
            shutil.move(place / str(number), folder)
        yield number


def content(folder: Path, but: Callable[[str], bool] = lambda name: False) -> dict[str, str]:
    """Every file below a folder, hidden ones too, with the hash of what it holds."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    found = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: "" if but(name) else sha256(file) for name, file in found.items()}
