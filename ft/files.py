"""Files that are complete or absent: atomic writes, hashes, safe unpacking, the user's cache, the bundled recipes."""

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ft.errors import UserError, nearest

OLD = "old"  # in a hidden folder: what a new one takes the place of


def cache_dir() -> Path:
    """The user's cache of ``ft``: ``$FT_CACHE``, else ``$XDG_CACHE_HOME/ft``, else ``~/.cache/ft``.

    Raises ``UserError`` for a user without a home, as a container's may be.
    """
    if path := os.environ.get("FT_CACHE"):
        return Path(path)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ft"
    except RuntimeError:
        raise UserError("this user has no home folder: name a cache with FT_CACHE") from None


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_regular(path: Path) -> None:
    """Raise ``UserError`` for a device or a pipe where a file is wanted: it may never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # who opens it says why
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UserError(f"{path} is a device or a pipe; give a file")


def read_bytes(path: Path) -> bytes:
    """A file's bytes. Raises ``UserError`` with the system's reason where it cannot be read."""
    check_regular(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def check_new_file(path: Path) -> None:
    """Raise ``UserError`` where no file could be written at ``path``. Changes nothing."""
    _check_name(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder; name a file")
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: the folder {path.parent} cannot be written to")


def check_new_dir(path: Path) -> None:
    """Raise ``UserError`` where ``new_dir`` could not make the folder ``path``. Changes nothing."""
    _check_name(path)
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise UserError(f"{path} exists and is not an empty folder: name a new one")
    if os.path.ismount(path):
        raise UserError(f"{path} is where a disk is mounted: name a folder in it")
    parent = next(p for p in path.resolve().parents if p.exists())
    if not os.access(parent, os.W_OK):
        raise UserError(f"{path}: {parent} cannot be written to; name another place")


def _check_name(path: Path) -> None:
    """Raise ``UserError`` for a name that is too long, or leads in a circle or through a file."""
    try:
        path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """The JSON in a file. Raises ``UserError`` that names it where it is none, and ``OSError`` as ``open``."""
    check_regular(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # of a number of thousands of digits, too
        raise UserError(f"{path} is not valid JSON: {error}") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model's folder is read from, as transformers does.

    ``model.safetensors``, or those that its index names, or all where there is neither. Raises ``UserError``
    for an index that cannot be read, and for a file that it names and is not there.
    """
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    try:
        found = [folder / name for name in sorted(set(read_json(index)["weight_map"].values()))]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"{index} does not say which file each weight lies in") from None
    if missing := [file.name for file in found if not file.is_file()]:
        raise UserError(f"{folder} lacks {missing[0]}, which {index.name} names")
    return found


def sampled_hash(folder: Path) -> str:
    """A hash of a model's weights that is quick for any size: of each file its name, its size, its
    header and a mebibyte at three places."""
    digest = hashlib.sha256()
    for file in weight_files(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}".encode())
        with open(file, "rb") as stream:
            for place in (0, size // 2, max(0, size - 2**20)):
                stream.seek(place)
                digest.update(stream.read(2**20))
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part."""
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(beside, 0o666 & ~_umask())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    sync_dir(path.parent)


def write_text(path: Path, text: str) -> None:
    """``write_bytes`` of UTF-8 text."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """``write_bytes`` of indented JSON; what is no number, ``NaN`` or infinite, is null there."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(path, text + "\n")


def finite(value: Any) -> Any:
    """A value of JSON with None for each float that JSON has no word for."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def json_lines(text: str) -> list[dict[str, Any]]:
    """The records of JSON lines; one that a kill cut short is left out."""
    found = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


@contextlib.contextmanager
def new_dir(path: Path) -> Iterator[Path]:
    """Fill a folder beside ``path`` and rename it into place when the block ends without error.

    An existing ``path`` is replaced. After an error nothing of the new folder is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with beside(path) as hidden:
        (hidden / "new").mkdir()
        yield hidden / "new"
        settle(hidden / "new")
        if path.exists():
            os.replace(path, hidden / OLD)
        os.replace(hidden / "new", path)
    sync_dir(path.parent)


@contextlib.contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A hidden folder beside ``path`` while the block lasts, for what becomes ``path``.

    What a killed process left of such a folder is deleted first; what it had moved out of the way comes back.
    """
    start = f".{path.name}.ft-"
    for left in [file for file in path.parent.iterdir() if file.name.startswith(start)]:
        with _only(left) as abandoned:
            if abandoned:
                if (left / OLD).exists() and not path.exists():
                    os.replace(left / OLD, path)
                shutil.rmtree(left, ignore_errors=True)
    hidden = Path(tempfile.mkdtemp(dir=path.parent, prefix=start))
    with _only(hidden):
        try:
            yield hidden
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def _only(folder: Path) -> Iterator[bool]:
    """Whether no other process uses a folder so; while this lasts none does, and a killed one no more."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):  # Windows; deleted by another process
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)


def settle(folder: Path) -> None:
    """Make every file below a folder survive a power cut, and readable to whom any new file is."""
    mode = 0o666 & ~_umask()
    for file in folder.rglob("*"):
        if file.is_file():
            os.chmod(file, mode)  # safetensors writes for its owner alone
            with open(file, "rb+") as stream:  # Windows syncs only what may be written
                os.fsync(stream.fileno())


def sync_dir(path: Path) -> None:
    """Make a rename inside ``path`` survive a power cut; Windows opens no folder, and does so by itself."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def bundled() -> Path:
    """What a clone has beside ``ft/``: the recipes, Accelerate's settings, the constraints."""
    package = Path(__file__).parent
    inside = package / "bundled"  # of a wheel, where pyproject.toml puts them
    return inside if inside.is_dir() else package.parent


def recipes() -> dict[str, str]:
    """The name of each recipe that comes with ``ft``, and the first line of its header."""
    found = {}
    for file in sorted((bundled() / "recipes").glob("*.py")):
        with open(file, encoding="utf-8") as stream:
            found[file.stem] = stream.readline().strip('"\n')
    return found


def recipe(given: str) -> Path:
    """The file that is given by its path, or a bundled recipe by its name; else the path as it is."""
    own = bundled() / "recipes" / f"{given}.py"
    return (
        own if given.isidentifier() and own.is_file() and not Path(given).is_file() else Path(given)
    )


def no_recipe(path: Path) -> UserError:
    """What to say of a path that is no file."""
    names = recipes()
    return UserError(
        f"{path}: there is no such recipe; by name there are {', '.join(names)}."
        + nearest(path.stem, names)
    )
