"""Windows of tokens to train on, streamed or from a cache on disk, shuffled, and resumed at the exact window."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ft import files
from ft.data.shards import Shard, sampled
from ft.data.token_stream import Job, Reader, dtype, encoded
from ft.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

IDS, MANIFEST = "tokens.bin", "manifest.json"


class Origin(NamedTuple):
    """A place in a process's stream of tokens."""

    reader: dict[str, Any] | None = None  # where the job begins; None is the very beginning
    job: int = 0  # its number
    skip: int = 0  # tokens of it that lie before the place


class Windows(ABC):
    """Windows [length + 1] of ids, which this process alone is given; iterating goes on after the last.

    ``state_dict()`` is the place after the last window, in JSON; ``load_state_dict()`` goes to it.
    ``settings`` are what both must have in common. Each process has a state of its own.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self._state: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        """The place after the last window, with the settings that decide what follows."""
        return {"place": self._state, "settings": self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place. Raises UserError, naming what differs, for one of other text or settings."""
        require_same(state["settings"], self.settings)
        self._state = state["place"]

    @abstractmethod
    def __iter__(self) -> "Iterator[NDArray[np.int64]]": ...


class Streamed(Windows):
    """Windows cut from the documents as they are read, ``buffer`` of them shuffled at a time.

    The stream is cut where it comes, without regard to documents' ends. Jobs of some 128 thousand
    characters go round the processes. The order depends on the settings, never on ``workers``.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        tokenizer: Any,
        settings: dict[str, Any],
        *,
        workers: int,
        epochs: int | None,
    ) -> None:
        super().__init__(settings)
        self.shards, self.tokenizer, self.workers = shards, tokenizer, workers
        self.size, self.buffer = settings["length"] + 1, settings["shuffle_buffer"]
        self.reading = {key: settings[key] for key in ("text_field", "on_bad_row")}
        self.reading |= {"epochs": epochs, "seed": settings["seed"] if self.buffer else None}
        self._state = {"origin": Origin(), "chunk": 0, "given": 0}

    def __iter__(self) -> "Iterator[NDArray[np.int64]]":
        import numpy as np

        origin = Origin(*self._state["origin"])
        chunk, given_before = self._state["chunk"], self._state["given"]
        cut = self._cut(origin)
        following: list[tuple[NDArray[Any], Origin]] = []

        def fill(count: int) -> None:
            while len(following) < count and (more := next(cut, None)):
                following.append(more)

        fill(max(1, self.buffer))
        while following:
            current, following = following, []
            order = np.arange(len(current))
            if self.buffer:
                generator = np.random.default_rng([self.settings["seed"], chunk])
                order = generator.permutation(order)
            for given, index in enumerate(order, 1):
                if given > given_before:
                    self._state = {"origin": origin, "chunk": chunk, "given": given}
                    yield current[index][0].astype(np.int64)
                fill(given)  # one by one, so that no step waits for a whole buffer
            origin, chunk, given_before = current[-1][1], chunk + 1, 0
            fill(max(1, self.buffer))

    def _cut(self, origin: Origin) -> "Iterator[tuple[NDArray[Any], Origin]]":
        """Windows in the order of the text, each with the place after it."""
        import numpy as np

        parts: deque[tuple[Origin, NDArray[Any]]] = deque()
        at, have, fresh = origin.skip, -origin.skip, origin.reader is None
        for place, ids in self._own(origin):
            if fresh and place.reader and place.reader["epoch"]:
                self._too_short(have)
            parts.append((place, ids))
            have += len(ids)
            while have >= self.size:
                window, filled, fresh = np.empty(self.size, ids.dtype), 0, False
                while filled < self.size:
                    if at == len(parts[0][1]):
                        parts.popleft()
                        at = 0
                    taken = parts[0][1][at : at + self.size - filled]
                    window[filled : filled + len(taken)] = taken
                    filled, at = filled + len(taken), at + len(taken)
                have -= self.size
                yield window, parts[0][0]._replace(skip=at)
        if fresh:
            self._too_short(have)

    def _too_short(self, have: int) -> None:
        share = ""
        if (count := self.settings["num_processes"]) > 1:
            share = f" for process {self.settings['process_index'] + 1} of {count}"
        raise UserError(
            f"the corpus has {have} tokens{share}, fewer than one window of {self.size}: give more "
            "text, or a shorter window"
        )

    def _own(self, origin: Origin) -> "Iterator[tuple[Origin, NDArray[Any]]]":
        """The ids of this process's jobs, each with the place of its first token."""
        index, count = self.settings["process_index"], self.settings["num_processes"]
        reader = Reader(self.shards, state=origin.reader, **self.reading)
        numbers: deque[int] = deque()

        def own() -> Iterator[Job]:
            for number, job in enumerate(reader.jobs(), origin.job):
                if number % count == index:
                    numbers.append(number)
                    yield job

        for before, ids in encoded(own(), self.tokenizer, self.workers):
            yield Origin(before, numbers.popleft()), ids


class Cached(Windows):
    """Windows of a flat array of ids, every epoch a permutation of all of them.

    Processes take turns, so that together they see what one alone would see, in the same order.
    Without ``shuffle_buffer`` the windows come in the order of the text.
    """

    def __init__(
        self, ids: "NDArray[Any]", settings: dict[str, Any], *, epochs: int | None
    ) -> None:
        super().__init__(settings)
        size = settings["length"] + 1
        self.rows = ids[: len(ids) // size * size].reshape(-1, size)
        self.epochs = epochs
        self._state = {"epoch": 0, "given": 0}
        if len(self.rows) < settings["num_processes"]:
            raise UserError(
                f"the corpus has {len(ids)} tokens, fewer than one window of {size} for each of "
                f"{settings['num_processes']} processes: give more text, or a shorter window"
            )

    def __iter__(self) -> "Iterator[NDArray[np.int64]]":
        import numpy as np

        settings = self.settings
        index, count = settings["process_index"], settings["num_processes"]
        epoch, given_before = self._state["epoch"], self._state["given"]
        while self.epochs is None or epoch < self.epochs:
            order = np.arange(len(self.rows))
            if settings["shuffle_buffer"]:
                order = np.random.default_rng([settings["seed"], epoch]).permutation(order)
            own = order[: len(order) // count * count][index::count]
            for given, row in enumerate(own[given_before:], given_before + 1):
                self._state = {"epoch": epoch, "given": given}
                yield self.rows[row].astype(np.int64)
            epoch, given_before = epoch + 1, 0


def require_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    """UserError that names what differs between the settings of two streams of windows."""
    differs = []
    for key in now:
        if before.get(key) == now[key]:
            continue
        if key != "shards":
            differs.append(f"{key} was {before.get(key)!r}, is {now[key]!r}")
            continue
        old, new = ({name: rest for name, *rest in shards} for shards in (before[key], now[key]))
        differs += [f"{name} is missing" for name in old if name not in new]
        differs += [f"{name} is new" for name in new if name not in old]
        differs += [
            f"{name} has other content" for name in new if old.get(name, new[name]) != new[name]
        ]
        if not differs:
            differs.append("the shards are in another order")
    if differs:
        raise UserError(f"cannot go on at the same window: {'; '.join(differs[:10])}")


def cached_ids(
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
