"""The token ids of a corpus in a fixed order: shards in turns, tokenised by processes that end with this one."""

import hashlib
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from ft.data.documents import BadRows, Piece, Place, read
from ft.data.shards import Shard
from ft.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

OPEN = 32  # shards that take turns, as in the book
JOB = 2**17  # characters that a worker tokenises at a time


class Job(NamedTuple):
    """Pieces of text for one worker, and where the reader was before them."""

    before: dict[str, Any]
    texts: list[str]
    ends: list[bool]  # which of them end a document


@dataclass
class Turn:
    """An open shard."""

    shard: int
    place: Place
    pieces: Iterator[Piece]


class Reader:
    """The pieces of all shards, which take turns by document; a document is never interrupted.

    With a ``seed`` the shards of each epoch come in an order of their own. ``epochs`` of None is
    without end. ``state`` is what ``state()`` gave.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        text_field: str = "text",
        on_bad_row: str = "error",
        seed: int | None = None,
        epochs: int | None = 1,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.shards, self.text_field, self.seed, self.epochs = shards, text_field, seed, epochs
        self.bad = BadRows(on_bad_row)
        state = state or {"epoch": 0, "next": 0, "open": [], "skipped": 0}
        self.epoch, self.next, self.bad.skipped = state["epoch"], state["next"], state["skipped"]
        self.turns = deque(self._open(shard, Place(*place)) for shard, *place in state["open"])

    def state(self) -> dict[str, Any]:
        """Where the next piece comes from."""
        turns = [[turn.shard, *turn.place] for turn in self.turns]
        return {
            "epoch": self.epoch,
            "next": self.next,
            "open": turns,
            "skipped": self.bad.skipped,
        }

    def jobs(self) -> Iterator[Job]:
        """All pieces, some 128 thousand characters at a time; no job goes over an epoch's end."""
        while self.epochs is None or self.epoch < self.epochs:
            before, texts, ends, size = self.state(), [], [], 0
            fresh = not (self.turns or self.next)
            for piece in self._epoch():
                texts.append(piece.text)
                ends.append(piece.ends)
                size += len(piece.text)
                if size >= JOB:
                    yield Job(before, texts, ends)
                    before, texts, ends, size, fresh = self.state(), [], [], 0, False
            if texts:
                yield Job(before, texts, ends)
            elif fresh:
                names = ", ".join(shard.name for shard in self.shards[:3])
                names += ", …" if len(self.shards) > 3 else ""
                why = f"; the last of {self.bad.skipped} bad rows is {self.bad.last}"
                raise UserError(f"no text in {names}{why if self.bad.skipped else ''}")
            self.epoch, self.next = self.epoch + 1, 0

    def _epoch(self) -> Iterator[Piece]:
        order = list(range(len(self.shards)))
        if self.seed is not None:
            random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        while True:
            while len(self.turns) < OPEN and self.next < len(order):
                self.turns.append(self._open(order[self.next], Place()))
                self.next += 1
            if not self.turns:
                return
            turn = self.turns[0]
            piece = next(turn.pieces, None)
            if piece is None:
                self.turns.popleft()
                continue
            turn.place = piece.after
            if piece.ends:
                self.turns.rotate(-1)
            yield piece

    def _open(self, shard: int, place: Place) -> Turn:
        pieces = read(self.shards[shard], place, self.bad, self.text_field)
        return Turn(shard, place, pieces)


def identity(tokenizer: Any) -> str:
    """A hash of all that decides a fast tokenizer's ids."""
    return hashlib.sha256(backend(tokenizer).encode()).hexdigest()


def backend(tokenizer: Any) -> str:
    """The JSON of a fast tokenizer: all that a worker needs. Raises UserError for a slow one."""
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise UserError(
            f"{type(tokenizer).__name__} is not a fast tokenizer: corpora need one with a tokenizer.json"
        )
    return tokenizer.backend_tokenizer.to_str()


def separator(tokenizer: Any) -> int:
    """The id that ends a document: the tokenizer's EOS. Raises UserError where it has none."""
    if tokenizer.eos_token_id is None:
        raise UserError("the tokenizer has no EOS token, which is to separate the documents")
    return tokenizer.eos_token_id


def dtype(tokenizer: Any) -> "np.dtype":
    """The smallest of uint16 and uint32 that holds every id."""
    import numpy as np

    return np.dtype(np.uint16 if len(tokenizer) <= 2**16 else np.uint32)


def encoded(
    jobs: Iterable[Job], tokenizer: Any, workers: int
) -> "Iterator[tuple[dict[str, Any], NDArray[Any]]]":
    """Each job's ``before`` and token ids, in the order of the jobs for any number of ``workers``.

    With 0 workers this process does it. Otherwise as many processes, which end with this one; each
    has some two jobs waiting. Raises UserError when one of them dies.
    """
    settings = backend(tokenizer), separator(tokenizer), dtype(tokenizer).name
    if not workers:
        encode = Encode(*settings)
        for job in jobs:
            yield job.before, encode(job.texts, job.ends)
        return
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=settings
    )
    waiting: deque[tuple[dict[str, Any], Future]] = deque()
    jobs = iter(jobs)
    try:
        while True:
            while len(waiting) <= 2 * workers and (job := next(jobs, None)):
                waiting.append((job.before, pool.submit(_work, job.texts, job.ends)))
            if not waiting:
                return
            before, future = waiting.popleft()
            yield before, future.result()
    except BrokenProcessPool:
        raise UserError(
            "a process that tokenises has died: out of memory, or a script that does not begin its "
            'work under `if __name__ == "__main__":`. With 0 workers no such process is needed.'
        ) from None
    finally:
        # waited for: at its end Python 3.11 would wake a pool that is just closing, and print a traceback
        pool.shutdown(cancel_futures=True)


class Encode:
    """From texts to one row of ids, with the separator after each text that ends a document."""

    def __init__(self, tokenizer: str, end: int, dtype: str) -> None:
        from tokenizers import Tokenizer

        self.tokenizer, self.end, self.dtype = Tokenizer.from_str(tokenizer), end, dtype

    def __call__(self, texts: list[str], ends: list[bool]) -> "NDArray[Any]":
        import numpy as np

        found = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [row.ids + [self.end] * last for row, last in zip(found, ends, strict=True)]
        return np.concatenate([np.asarray(part, self.dtype) for part in parts])


_encode: Encode | None = None  # of a worker process


def _start(*settings: Any) -> None:
    """Prepare a worker process."""
    global _encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the threads
    _encode = Encode(*settings)


def _work(texts: list[str], ends: list[bool]) -> "NDArray[Any]":
    assert _encode is not None
    return _encode(texts, ends)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
