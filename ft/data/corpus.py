"""Text to pretrain on: windows of tokens to train with, and fixed ones to validate with."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.data import shards
from ft.data.shards import Shard
from ft.data.token_stream import Reader, backend, identity, separator
from ft.data.windows import Cached, Streamed, Windows, cached_ids
from ft.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def windows(
    sources: Sequence[str],
    tokenizer: Any,
    *,
    length: int,
    shuffle_buffer: int,
    seed: int,
    workers: int,
    process_index: int = 0,
    num_processes: int = 1,
    state: dict[str, Any] | None = None,
    text_field: str = "text",
    on_bad_row: str = "error",
    epochs: int | None = None,
    cache: Path | None = None,
) -> Windows:
    """Windows [length + 1] of ids for this process, over and over, or ``epochs`` times.

    Documents are joined by the tokenizer's EOS and cut without regard to their ends; a window has
    no token in common with the next. Of the sources (see ``shards.find``) 32 shards are read in
    turns, in an order of their own each epoch, and ``shuffle_buffer`` windows are shuffled at a
    time; 0 keeps the order of the text. ``workers`` processes tokenise; their number changes no
    window. With ``cache``, a folder, all is tokenised before the first window and shuffled whole;
    the windows of n processes are then those of one.
    """
    found = shards.find(sources)
    content = _content(found, tokenizer, text_field, on_bad_row)
    settings = {
        **content,
        "length": length,
        "shuffle_buffer": shuffle_buffer,
        "seed": seed,
        "process_index": process_index,
        "num_processes": num_processes,
        "cached": cache is not None,
    }
    if cache is None:
        made: Windows = Streamed(found, tokenizer, settings, workers=workers, epochs=epochs)
    else:
        ids = cached_ids(cache, found, tokenizer, content, workers)
        made = Cached(ids, settings, epochs=epochs)
    if state is not None:
        made.load_state_dict(state)
    return made


def validation(
    sources: Sequence[str],
    tokenizer: Any,
    length: int,
    tokens: int,
    *,
    text_field: str = "text",
    on_bad_row: str = "error",
) -> "tuple[NDArray[np.int64], int]":
    """Windows [N, length + 1] of the first ``tokens`` tokens, and the UTF-8 bytes that they predict.

    Each window begins with the last token of the one before: every token but the very first is
    predicted once, and bits per byte are the loss in nats, summed over all, / ln 2 / bytes.
    Separators are predicted and count no bytes.
    """
    import numpy as np
    from tokenizers import Tokenizer

    model, end = Tokenizer.from_str(backend(tokenizer)), separator(tokenizer)
    wanted = max(1, tokens // length)
    ids: list[int] = []
    sizes: list[int] = []  # UTF-8 bytes of each token
    reader = Reader(shards.find(sources), text_field=text_field, on_bad_row=on_bad_row)
    for job in reader.jobs():
        for text, ends in zip(job.texts, job.ends, strict=True):
            encoding = model.encode(text, add_special_tokens=False)
            ids += encoding.ids + [end] * ends
            sizes += _bytes(text, encoding.offsets) + [0] * ends
        if len(ids) > wanted * length:
            break
    count = min(wanted, (len(ids) - 1) // length)
    if count < 1:
        raise UserError(
            f"the text to validate on ({', '.join(sources)}) has {len(ids)} tokens, fewer than one "
            f"window of {length + 1}: give more text, or a shorter window"
        )
    places = np.arange(count)[:, None] * length + np.arange(length + 1)
    return np.asarray(ids)[places], sum(sizes[1 : count * length + 1])


def _bytes(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """UTF-8 bytes that each token adds; those of a character in several tokens count with the first."""
    sizes, at = [], 0
    for _, stop in offsets:
        sizes.append(len(text[at:stop].encode()))
        at = max(at, stop)
    return sizes


def _content(
    found: list[Shard], tokenizer: Any, text_field: str, on_bad_row: str
) -> dict[str, Any]:
    """What decides the ids of a corpus."""
    return {
        "shards": [list(shard) for shard in shards.hashes(found)],
        "tokenizer": identity(tokenizer),
        "text_field": text_field,
        "on_bad_row": on_bad_row,
    }
