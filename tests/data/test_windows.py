"""Windows of tokens: one order for any number of workers, none twice, and resumed at the exact window."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support import tiny

from ft.data import corpus, documents, token_stream
from ft.data import windows as module
from ft.errors import UserError

LENGTH = 8


@pytest.fixture
def small_jobs(monkeypatch):
    """Many jobs and pieces, few open shards: a small corpus has all that a large one has."""
    monkeypatch.setattr(documents, "PIECE", 64)
    monkeypatch.setattr(token_stream, "JOB", 300)
    monkeypatch.setattr(token_stream, "OPEN", 3)


@pytest.fixture
def sources(tmp_path) -> list[str]:
    """Five shards of numbered documents, and a plain text."""
    (tmp_path / "shards").mkdir()
    for shard in range(5):
        rows = (json.dumps({"text": f"document {shard}.{i} " * (i % 7)}) for i in range(20))
        (tmp_path / "shards" / f"{shard}.jsonl").write_text("\n".join(rows))
    (tmp_path / "shards" / "plain.txt").write_text(" ".join(map(str, range(300))))
    return [str(tmp_path / "shards")]


def windows(sources, **change):
    options = {"length": LENGTH, "shuffle_buffer": 10, "seed": 3, "workers": 0, "epochs": 2}
    return corpus.windows(sources, tiny.tokenizer(), **options | change)


def rows(made) -> list[bytes]:
    return [window.tobytes() for window in made]


@pytest.fixture(params=["streamed", "cached"])
def place(request, tmp_path, small_jobs) -> dict:
    """The option that chooses where windows come from."""
    return {"cache": tmp_path / "cache"} if request.param == "cached" else {}


def test_the_stream_is_the_documents_with_an_end_after_each(tmp_path, small_jobs):
    tokenizer = tiny.tokenizer()
    documents = [f"document {i} " * (1 + i % 5) for i in range(60)]
    (tmp_path / "a.lines").write_text("\n".join(documents))
    stream = [
        id
        for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]
        for id in (*ids, tokenizer.eos_token_id)
    ]
    found = np.stack([*windows([f"{tmp_path}/a.lines"], shuffle_buffer=0, epochs=1)])
    assert found.dtype == np.int64
    assert found.shape == (len(stream) // (LENGTH + 1), LENGTH + 1)
    assert found.ravel().tolist() == stream[: found.size]


def test_shuffling_moves_windows_and_loses_none(sources, place):
    whole = rows(windows(sources, epochs=1, **place))
    plain = rows(windows(sources, epochs=1, shuffle_buffer=0, **place))
    assert len(whole) == len(plain) > 100
    assert whole != plain
    other = rows(windows(sources, epochs=1, seed=4, **place))
    assert other != whole
    if place:  # the buffer alone reorders; streamed, the shards too come in another order
        assert Counter(whole) == Counter(plain) == Counter(other)
        assert rows(windows(sources, **place))[len(plain) :] != whole


def test_the_seed_moves_the_windows_of_one_shard_too(sources, place):
    one = [f"{sources[0]}/plain.txt"]
    three, four = (rows(windows(one, epochs=1, seed=seed, **place)) for seed in (3, 4))
    assert three != four
    assert Counter(three) == Counter(four)


def test_shards_take_turns_and_a_document_is_never_interrupted(sources, small_jobs):
    reader = token_stream.Reader(corpus.shards.find(sources))
    texts, ended = [], True
    for job in reader.jobs():
        for text, ends in zip(job.texts, job.ends, strict=True):
            if ended:
                texts.append("")
            texts[-1] += text
            ended = ends
    starts = [text.split(".")[0] for text in texts if text.startswith("document")]
    assert starts[:6] == ["document 0", "document 1", "document 2"] * 2
    assert len(starts) == 5 * 17  # of 20 rows 3 are empty
    assert texts.count(" ".join(map(str, range(300)))) == 1


@pytest.mark.parametrize("at", [0, 1, 9, 10, 11, 137, -1])
def test_resumed_at_the_exact_window(sources, place, at):
    whole = rows(windows(sources, **place))
    at %= len(whole) + 1
    before = windows(sources, **place)
    iterator = iter(before)
    assert [next(iterator).tobytes() for _ in range(at)] == whole[:at]
    state = json.loads(json.dumps(before.state_dict()))
    assert rows(windows(sources, state=state, **place)) == whole[at:]
    assert rows(before) == whole[at:]  # and so does the same object, iterated anew


def test_a_finished_shard_is_not_read_again_on_resume(sources, small_jobs, monkeypatch):
    made = windows(sources, epochs=1)
    iterator = iter(made)
    for _ in range(len(rows(windows(sources, epochs=1))) - 2):
        next(iterator)
    opened = []
    real = token_stream.read
    monkeypatch.setattr(
        token_stream, "read", lambda shard, *rest: opened.append(shard.name) or real(shard, *rest)
    )
    assert rows(windows(sources, epochs=1, state=made.state_dict()))
    assert 0 < len(opened) < 6


def test_processes_share_no_window_and_leave_none_out(sources, place):
    options = place or {"shuffle_buffer": 0}
    parts = [
        rows(windows(sources, epochs=1, process_index=i, num_processes=2, **options))
        for i in range(2)
    ]
    whole = rows(windows(sources, epochs=1, **options))
    assert min(map(len, parts)) > 40
    if place:  # together they see what one alone sees, in its order
        turns = [window for pair in zip(*parts, strict=True) for window in pair]
        assert turns == whole[: len(turns)]
        assert len(whole) - len(turns) < 2
    else:  # jobs are dealt, and windows cut from what each process has
        numbers = [
            Counter(tiny.tokenizer().decode(np.frombuffer(b"".join(part), np.int64)).split())
            for part in parts
        ]
        once = {str(n) for n in range(100, 300)}  # each of them stands in the text once
        here, there = (once & set(found) for found in numbers)
        assert not here & there
        assert min(len(here), len(there)) > 40
        assert len(here | there) > 180


def test_any_number_of_workers_gives_the_same(sources, small_jobs, tmp_path):
    alone = rows(windows(sources))
    assert rows(windows(sources, workers=2)) == alone
    cached = rows(windows(sources, cache=tmp_path / "one"))
    assert rows(windows(sources, cache=tmp_path / "two", workers=2)) == cached


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 9}, "length was 8, is 9"),
        ({"seed": 4}, "seed was 3, is 4"),
        ({"shuffle_buffer": 11}, "shuffle_buffer was 10, is 11"),
        ({"num_processes": 2}, "num_processes was 1, is 2"),
        ({"on_bad_row": "skip"}, "on_bad_row was 'error', is 'skip'"),
    ],
)
def test_other_settings_cannot_go_on(sources, place, change, said):
    state = windows(sources, **place).state_dict()
    with pytest.raises(UserError, match=f"cannot go on at the same window: {said}"):
        windows(sources, state=state, **change, **place)


def test_other_text_or_another_tokenizer_cannot_go_on(sources, place, tmp_path):
    state = windows(sources, **place).state_dict()
    other = tiny.tokenizer()
    other.add_tokens(["<new>"])
    options = {"length": LENGTH, "shuffle_buffer": 10, "seed": 3, "workers": 0, "epochs": 2}
    with pytest.raises(UserError, match="tokenizer was '.*', is '"):
        corpus.windows(sources, other, state=state, **options, **place)
    (tmp_path / "shards" / "3.jsonl").write_text('{"text": "other"}')
    (tmp_path / "shards" / "4.jsonl").rename(tmp_path / "shards" / "5.jsonl")
    with pytest.raises(UserError, match="4.jsonl is missing; 5.jsonl is new; 3.jsonl has other co"):
        windows(sources, state=state, **place)


def test_fewer_tokens_than_a_window(tmp_path, place):
    source = tmp_path / "a.txt"
    source.write_text("two words")
    for epochs in (1, None):
        with pytest.raises(
            UserError, match=r"the corpus has \d tokens, fewer than one window of 5"
        ):
            next(iter(windows([str(source)], length=50, epochs=epochs, **place)))


def test_a_share_without_a_window(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("two words " * 20)
    with pytest.raises(UserError, match="for process 2 of 2, fewer than one window of 9"):
        next(iter(windows([str(source)], process_index=1, num_processes=2)))


def test_a_shard_that_vanishes_is_named(sources, place, tmp_path):
    made = windows(sources, epochs=1)
    if place:
        (tmp_path / "shards" / "4.jsonl").unlink()
        with pytest.raises(UserError, match=r"4.jsonl has vanished since it was found"):
            module.cached_ids(place["cache"], made.shards, tiny.tokenizer(), made.reading, 0)
        assert [f for f in place["cache"].iterdir() if f.suffix != ".lock"] == []
        return
    iterator = iter(made)
    next(iterator)
    for file in (tmp_path / "shards").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"has vanished since it was found: put it back"):
        list(iterator)


def test_bad_rows_are_left_out_and_counted(sources, tmp_path, small_jobs):
    with open(tmp_path / "shards" / "2.jsonl", "ab") as stream:
        stream.write(b"\n\xff\n{}")
    with pytest.raises(UserError, match="2.jsonl:21: invalid UTF-8"):
        rows(windows(sources))
    with pytest.raises(UserError, match="2.jsonl:21: broken JSON"):
        rows(windows(sources, on_bad_row="replace"))
    made = windows(sources, on_bad_row="skip", epochs=1)
    assert len(rows(made)) > 40
    assert made.state_dict()["place"]["origin"].reader["skipped"] <= 2
    folder = tmp_path / "cache"
    rows(windows(sources, on_bad_row="skip", cache=folder))
    (manifest,) = folder.glob("*/manifest.json")
    assert json.loads(manifest.read_text())["skipped_rows"] == 2


# The cache


def test_the_cache_is_written_once_small_and_checked(sources, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = rows(windows(sources, cache=cache))
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["dtype"] == "uint16"
    assert (folder / "tokens.bin").stat().st_size == 2 * manifest["tokens"]
    assert manifest["shards"][0][0] == "0.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(module, "encoded", None)  # nothing is tokenised again
        assert rows(windows(sources, cache=cache)) == first
        longer = windows(sources, cache=cache, length=20, shuffle_buffer=0)
        assert next(iter(longer)).shape == (21,)
    with open(folder / "tokens.bin", "r+b") as stream:
        stream.write(b"\xff\xff")
    with pytest.raises(UserError, match=r"tokens.bin is not as it was written: delete .*/cache/"):
        windows(sources, cache=cache)
    (folder / "manifest.json").unlink()
    with pytest.raises(UserError, match="not a whole cache of tokens.*delete"):
        windows(sources, cache=cache)


def test_a_large_vocabulary_takes_four_bytes(sources, tmp_path):
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(2**16)])
    assert token_stream.dtype(tokenizer) == np.uint32
    assert token_stream.dtype(tiny.tokenizer()) == np.uint16


# Worker processes


SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C
sys.path[:0] = {paths!r}
def main():
    from support import tiny
    from ft.data import corpus
    from ft.errors import exit_cleanly
    made = corpus.windows({sources!r}, tiny.tokenizer(), length=8, shuffle_buffer=0, seed=0, workers=2)
    with exit_cleanly():
        for window in made:
            print("window", flush=True)
if __name__ == "__main__":
    main()
"""


@pytest.fixture
def reading(sources, tmp_path):
    """A process that reads without end, once it has begun."""
    root = Path(__file__).parents[2]
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(paths=[str(root / "tests"), str(root)], sources=sources))
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"window\n"
        yield process
        process.kill()


def children(parent: int) -> set[int]:
    tasks = Path(f"/proc/{parent}/task")
    return {
        int(child)
        for task in tasks.iterdir()
        for child in (task / "children").read_text().split()
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
    }


def gone(pids: set[int], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(reading, how):
    workers = children(reading.pid)
    assert workers
    assert all(alive(pid) for pid in workers)
    os.kill(reading.pid, how)
    try:
        _, errors = reading.communicate(timeout=10)
    except subprocess.TimeoutExpired:  # Python loses a Ctrl-C that comes while it collects garbage
        os.kill(reading.pid, how)
        _, errors = reading.communicate(timeout=60)
    assert gone(workers)
    if how == signal.SIGINT:
        assert reading.returncode == 130
        assert errors.endswith(b"stopped by Ctrl-C\n")


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_a_worker_that_dies_is_one_clear_error(reading):
    for pid in children(reading.pid):
        os.kill(pid, signal.SIGKILL)
    _, errors = reading.communicate(timeout=60)
    assert reading.returncode == 2
    assert errors.startswith(b"error: a process that tokenises has died")
