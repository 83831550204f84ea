"""Files that are complete or absent: atomic writes, hashes, safe unpacking, the user's cache, the bundled recipes."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ft.errors import UserError, nearest


def cache_dir() -> Path:
    """The user's cache of ``ft``: ``$FT_CACHE``, else ``$XDG_CACHE_HOME/ft``, else ``~/.cache/ft``."""
    if path := os.environ.get("FT_CACHE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ft"


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sampled_hash(folder: Path) -> str:
    """A hash of a model's weights that is quick for any size: of each file its name, its size, its
    header and a mebibyte at three places."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
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
    """``write_bytes`` of indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


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
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield beside
        settle(beside)
        os.chmod(beside, 0o777 & ~_umask())
        if path.exists():
            old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
            os.replace(path, old / "old")
            os.replace(beside, path)
            shutil.rmtree(old)
        else:
            os.replace(beside, path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    sync_dir(path.parent)


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
