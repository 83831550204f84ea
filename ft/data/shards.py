"""The shards of a text corpus: files, folders, globs, datasets on the Hub, and the text that Python brings along."""

import ast
import glob
import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ft.data.encodings import suffix_of
from ft.errors import UserError, hub_errors, nearest
from ft.files import cache_dir, write_text

FORMATS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".lines": "lines"}
PLACES, SAMPLE = 8, 2**16  # where a file is hashed, and how many bytes at each place
EDITION = 1  # raise it when the choice of paragraphs changes
NOT_MEANT = {"test", "tests", "site-packages", "dist-packages", "idlelib", "lib2to3"}
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
        said, name = format_said(source)
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
        return [Shard(str(builtin()), "jsonl", part)]
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"), part)
    said, name = format_said(source)
    return [
        Shard(str(file), said.removesuffix(":") or _format(file), part)
        for file in _files(name, bool(said))
    ]


def format_said(source: str) -> tuple[str, str]:
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
    return FORMATS.get(suffix_of(file), "")


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


def builtin() -> Path:
    """What the Python standard library says of itself, as jsonl in the user's cache, written on first use: 1.2 MB, in a few seconds."""
    file = cache_dir() / f"builtin-{EDITION}-python-{platform.python_version()}.jsonl"
    if not file.exists():
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in builtin_documents()]
        if not rows:
            raise UserError(
                "this Python comes without the source of its library, so there is no built-in text: "
                "name a corpus of your own with --data"
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(f"{row}\n" for row in rows))
    return file


def builtin_documents() -> Iterator[str]:
    """The prose of docstrings and of the language reference that `help()` shows, a paragraph a line."""
    library = Path(sysconfig.get_path("stdlib"))
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        if NOT_MEANT & set(file.relative_to(library).parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates, and tests of the parser
            continue
        for text in _reference(tree) if file.parent.name == "pydoc_data" else _docstrings(tree):
            paragraphs = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
            new = [part for part in paragraphs if _is_prose(part) and part not in seen]
            seen.update(new)
            if new:
                yield "\n".join(new)


def _docstrings(node: Any) -> Iterator[str]:
    """Those of a module, its classes and their methods, and its functions."""
    yield ast.get_docstring(node) or ""
    for part in node.body:
        if isinstance(part, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(part)


def _reference(tree: ast.Module) -> Iterator[str]:
    """The values of the dictionary in ``pydoc_data/topics.py``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for value in node.values:
                if isinstance(value, ast.Constant) and isinstance(value.value, str):
                    yield value.value


def _is_prose(text: str) -> bool:
    """Whole sentences, and neither code nor a table."""
    plain = sum(c.isalpha() or c in " ,.'" for c in text)
    return len(text) >= 60 and text[-1] in ".!?:)" and plain > 0.93 * len(text)
