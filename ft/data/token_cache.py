"""The ids of a corpus on disk, read as a memory map: written once for each corpus and tokenizer, whole or not at all."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft import files
from ft.data.shards import Shard, sampled
from ft.data.token_stream import Reader, dtype, encoded
from ft.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray

IDS, MANIFEST = "tokens.bin", "manifest.json"


def open_or_write(
    folder: Path, shards: list[Shard], tokenizer: Any, content: dict[str, Any], workers: int
) -> "NDArray[Any]":
    """The ids [N] of all documents in the order of the shards, uint16 or uint32.

    They lie in a folder of ``folder`` that is named after ``content``, which is all that decides
    them: shards, tokenizer, fields, what happens to bad rows. Of several processes one writes, the
    others wait. Raises UserError for a damaged cache, and for what reading the corpus raises.
    """
    from filelock import FileLock

    name = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f".{name}.lock"):
        if not (folder / name).exists():
            _write(folder / name, shards, tokenizer, content, workers)
    return _open(folder / name)


def _write(
    target: Path, shards: list[Shard], tokenizer: Any, content: dict[str, Any], workers: int
) -> None:
    from tqdm import tqdm

    reader = Reader(
        shards, text_field=content["text_field"], on_bad_row=content["on_bad_row"], epochs=1
    )
    with files.new_dir(target) as folder:
        with (
            open(folder / IDS, "wb") as stream,
            tqdm(desc="tokenising", unit=" tokens", unit_scale=True, delay=2) as bar,
        ):
            for _, ids in encoded(reader.jobs(), tokenizer, workers):
                stream.write(ids.tobytes())
                bar.update(len(ids))
            count = stream.tell() // dtype(tokenizer).itemsize
        manifest = {
            "tokens": count,
            "dtype": dtype(tokenizer).name,
            "sampled": list(sampled(folder / IDS)),  # the whole hash of a large one takes minutes
            "skipped_rows": reader.bad.skipped,
            **content,
        }
        files.write_json(folder / MANIFEST, manifest)


def _open(folder: Path) -> "NDArray[Any]":
    """The ids, after a look at whether they are those of the manifest."""
    import numpy as np

    advice = f"delete {folder}, and it is written anew"
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        there = list(sampled(folder / IDS))
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is not a whole cache of tokens ({error}): {advice}") from None
    if there != manifest["sampled"]:
        raise UserError(f"{folder / IDS} is not as it was written: {advice}")
    return np.memmap(folder / IDS, np.dtype(manifest["dtype"]), "r")
