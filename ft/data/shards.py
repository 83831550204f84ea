"""The shards of a text corpus: files, folders, globs, datasets on the Hub, and the text that Python brings along."""

import glob
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.data import builtin_text
from ft.errors import UserError, hub_errors, nearest

FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".lines": "lines"}
PLACES, SAMPLE = 8, 2**16  # where a file is hashed, and how many bytes at each place
SPLITS = {"train": ("train",), "valid": ("valid", "validation", "dev")}


@dataclass(frozen=True)
class Shard:
    """One file, or one part of a dataset on the Hub, and which of its documents are meant."""

    name: str  # the file's path, or "hub:owner/name 3/8"
    format: str  # text, lines, jsonl or hub
    part: str = ""  # "train" leaves the held-out documents out, "valid" takes them alone
    rows: Any = None  # of the Hub: a datasets.IterableDataset
    revision: str = ""  # of the Hub: the commit


def find(sources: Sequence[str]) -> list[Shard]:
    """All shards that ``sources`` name, in order; each source is one of

    - a file: .txt (one document), .jsonl, .lines (one document a line, line breaks written ``\\n``),
      each also with .gz or .zst; ``lines:FILE``, ``text:`` and ``jsonl:`` say the format themselves;
    - a folder or a glob of such files;
    - ``hub:owner/name@revision/configuration:split``, streamed; all but the name may be left out;
    - ``builtin``: what the Python standard library says of itself.

    ``#train`` after it leaves out every 20th document (or 16 KiB of plain text), ``#valid`` takes
    only these. Raises UserError for a source that names nothing, and for a shard named twice.
    """
    found = [shard for source in sources for shard in _named(source)]
    seen: set[tuple[str, str]] = set()
    for shard in found:
        if (shard.name, shard.part) in seen:
            raise UserError(f"{shard.name} is named twice among {', '.join(sources)}")
        seen.add((shard.name, shard.part))
    if not found:
        raise UserError(
            "no corpus is named: give a file, a folder, a glob, hub:owner/name or builtin"
        )
    return found


def split(sources: Sequence[str]) -> tuple[list[str], list[str]]:
    """Sources to train on and sources to validate on.

    Of a folder with files named ``train…`` and ``valid…``, those files; of anything else, the
    documents that are not held out and those that are.
    """
    train, valid = [], []
    for source in sources:
        said, name = _format_said(source)
        folder = Path(name).expanduser().is_dir()
        files = [shard.name for shard in _named(source)] if folder else []
        parts: dict[str, list[str]] = {
            part: [said + file for file in files if re.split("[^a-z]", Path(file).name)[0] in words]
            for part, words in SPLITS.items()
        }
        whole = parts["train"] and parts["valid"]
        train += parts["train"] if whole else [f"{source}#train"]
        valid += parts["valid"] if whole else [f"{source}#valid"]
    return train, valid


def hashes(found: Sequence[Shard]) -> list[tuple[str, int, str]]:
    """What identifies each shard: name without folder, size, sampled hash."""
    result = []
    for shard in found:
        part = f"#{shard.part}" if shard.part else ""
        if shard.format == "hub":
            result.append((shard.name + part, 0, shard.revision))
            continue
        file = Path(shard.name)
        try:
            result.append((file.name + part, *sampled(file)))
        except OSError as error:
            raise UserError(f"cannot read {file}: {error.strerror}") from None
    return result


def sampled(file: Path) -> tuple[int, str]:
    """A file's size, and a hash of it that is quick for any size: of 64 KiB at eight places."""
    size, digest = file.stat().st_size, hashlib.sha256()
    with open(file, "rb") as stream:
        for i in range(PLACES):
            stream.seek(max(0, size - SAMPLE) * i // (PLACES - 1))
            digest.update(stream.read(SAMPLE))
    return size, digest.hexdigest()[:16]


def _named(source: str) -> list[Shard]:
    part = ""
    if source.endswith(("#train", "#valid")):
        source, _, part = source.rpartition("#")
    if source == "builtin":
        return [Shard(str(builtin_text.path()), "jsonl", part)]
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"), part)
    said, name = _format_said(source)
    return [
        Shard(str(file), said.removesuffix(":") or _format(file), part)
        for file in _files(name, bool(said))
    ]


def _format_said(source: str) -> tuple[str, str]:
    """``lines:`` or its like, or nothing, and the rest of a source."""
    said = next((f"{name}:" for name in FORMATS.values() if source.startswith(f"{name}:")), "")
    return said, source.removeprefix(said)


def _files(name: str, any_suffix: bool) -> list[Path]:
    path = Path(name).expanduser()
    if path.is_dir():
        files = [f for f in sorted(path.rglob("*")) if f.is_file() and (any_suffix or _format(f))]
        if not files:
            raise UserError(f"{path} holds no text: no {', '.join(FORMATS)} (or .gz, .zst of one)")
        return files
    if path.exists():
        files = [path]
    elif glob.has_magic(name):
        files = sorted(Path(f) for f in glob.glob(str(path), recursive=True) if Path(f).is_file())
        if not files:
            raise UserError(f"no file matches {name}")
    else:
        wanted = "a file, a folder, a glob, hub:owner/name or builtin"
        raise UserError(f"{name} does not exist; wanted is {wanted}.{nearest(name, ['builtin'])}")
    for file in files:
        if not any_suffix and not _format(file):
            raise UserError(
                f"{file} has suffix {file.suffix!r}; allowed are {', '.join(FORMATS)}, each also "
                "with .gz or .zst; or say the format: text:FILE, lines:FILE or jsonl:FILE"
            )
    return files


def _format(file: Path) -> str:
    plain = file.with_suffix("") if file.suffix in (".gz", ".zst") else file
    return FORMATS.get(plain.suffix, "")


def _hub(name: str, part: str) -> list[Shard]:
    """The parts of a dataset on the Hub, at the commit that the branch has now."""
    match = re.fullmatch(r"(\w[\w.-]*/[\w.-]+)(@[\w.-]+)?(/[\w.-]+)?(:[\w.-]+)?", name)
    if not match:
        raise UserError(f"hub:{name}: write hub:owner/name@revision/configuration:split")
    repo = match[1]
    revision, configuration, wanted = (part[1:] if part else None for part in match.groups()[1:])
    import datasets
    from huggingface_hub import HfApi

    with hub_errors(repo):
        revision = HfApi().dataset_info(repo, revision=revision).sha or ""
        rows: Any = datasets.load_dataset(
            repo, configuration, split=wanted or "train", streaming=True, revision=revision
        )
    count = rows.num_shards
    return [
        Shard(f"hub:{name} {i + 1}/{count}", "hub", part, rows.shard(count, i), revision)
        for i in range(count)
    ]
