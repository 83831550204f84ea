"""What of a run anyone may read: its texts without the paths of the machine that made it."""

import functools
import json
import os
import re
from pathlib import Path, PureWindowsPath
from typing import Any

# where people's folders lie, on this machine or on the one that trained
_ROOTS = {"home", "root", "Users", "tmp", "mnt", "media", "data", "work", "workspace", "scratch"}
_ROOTS |= {"content", "kaggle", "opt", "var", "srv", "usr", "private", "Volumes"}


def without_paths(text: str, name: str) -> str:
    """The text of the file ``name`` with every absolute path as its last part alone."""
    if name.endswith(".json"):
        value = json.loads(text)
        cleared = _cleared(value)
        changed = json.dumps(cleared, indent=2, ensure_ascii=False) + "\n"
        return text if cleared == value else changed
    return _in_text(text)


def _cleared(value: Any) -> Any:
    """A JSON value with its strings cleared; one that is a path as a whole may have spaces in it."""
    if isinstance(value, dict):
        return {key: _cleared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_cleared(inner) for inner in value]
    if not isinstance(value, str):
        return value
    whole = _pattern().match(value) and os.path.exists(value)
    return Path(value).name if whole else _in_text(value)


def _in_text(text: str) -> str:
    return _pattern().sub(lambda found: _last(found.group()), text)


def _last(path: str) -> str:
    return PureWindowsPath(path).name or path  # which knows both kinds of slashes


@functools.cache
def _pattern() -> re.Pattern[str]:
    here = {entry.name for entry in os.scandir("/") if entry.is_dir()} if os.name != "nt" else set()
    roots = "|".join(sorted(map(re.escape, _ROOTS | here)))
    rest = r"[^\s\"'`,;:|()\[\]<>\\]+"
    return re.compile(
        rf"(?<![\w./:~-])(?:/(?:{roots})/{rest}|~/{rest}|[A-Za-z]:\\(?:[^\s\"'`,;:|()<>\\]+\\*)+)"
    )
