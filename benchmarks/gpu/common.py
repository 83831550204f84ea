"""What the parts of the check share: sizes, clocks, rows, and models of random weights, made once."""

import functools
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for place in ("tests", "benchmarks/harness", "benchmarks", ""):
    sys.path.insert(0, str(ROOT / place))
DEV = os.environ.get("DEV", "cuda")
GPU = DEV == "cuda"
if not GPU:  # a CPU stands in, and computes as a GPU does: in bf16, fast there or not
    from ft import machine

    machine.fast_bf16 = lambda: True
WORK = Path(os.environ.get("WORK", "/dev/shm/ft-check" if GPU else "/tmp/ft-check"))
DATA = Path(os.environ.get("DATA", ROOT / ".gpu/data"))
SHAPE = os.environ.get("SHAPE", "gemma-2-2b" if GPU else "tiny")
END = time.perf_counter() + float(os.environ.get("LIMIT", "1e9"))  # of the process
part_end = END
KINDS = ("gemma", "gemma2", "gemma3_text", "gemma4_text", "recurrent_gemma")


def say(*words: Any) -> None:
    """A line of the result."""
    print(*words, flush=True)


def begin(seconds: float) -> float:
    """Begin a part that may take so long; how long it has."""
    global part_end
    part_end = min(END, time.perf_counter() + seconds)
    return left()


def left() -> float:
    """Seconds until the part should have ended."""
    return part_end - time.perf_counter()


def failed(what: str, error: BaseException) -> None:
    """The end of a traceback as one line, and all of it in the log."""
    import traceback

    traceback.print_exception(error)
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    where = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    say(f"FAILED {what}: {type(error).__name__}: {' '.join(str(error).split())[:350]} ({where})")


def autocast_of(model: Any) -> Callable[[], Any]:
    """What ``train.sft`` computes a forward in: bf16 over weights in it, and nothing else."""
    import torch

    half = model.get_input_embeddings().weight.dtype == torch.bfloat16
    return functools.partial(torch.autocast, DEV, torch.bfloat16, enabled=half)


def sync() -> None:
    """Wait for the device."""
    import torch

    if GPU:
        torch.cuda.synchronize()


def clock(run: Callable[[], Any], repeats: int = 10, warm: int = 3) -> float:
    """Median milliseconds."""
    times = []
    warm, repeats = (warm, repeats) if GPU else (0, 1)
    for at in range(warm + repeats):
        sync()
        start = time.perf_counter()
        run()
        sync()
        times.append(time.perf_counter() - start)
        if at > warm and left() < 3:
            break
    times = times[warm:]
    return 1e3 * sorted(times)[len(times) // 2]


def fresh(x: Any) -> Any:
    """A leaf like x that no stream has seen: the node of its gradient remembers its first one."""
    return x.detach().clone().requires_grad_(x.requires_grad)


def captured(run: Callable[[], Any]) -> Any:
    """A graph of ``run``, whose leaves are ``fresh``, after it ran on a stream of its own."""
    import torch

    from ft.train.graph_room import CudaGraph

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = CudaGraph()
    graph.capture(run)
    return graph


def graphed(run: Callable[[], Any]) -> float:
    """Milliseconds of a replay: what the GPU takes without launches; no number where none is possible."""
    if not GPU:
        return clock(run)
    try:
        return clock(captured(run).replay)
    except RuntimeError as error:
        say(f"no graph: {' '.join(str(error).split())[:200]}")
        return float("nan")


def peak_of(run: Callable[[], Any]) -> float:
    """GB above what is held."""
    import torch

    if not GPU:
        run()
        return 0.0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e9


def clean() -> None:
    """Give back what nothing holds any more."""
    import torch

    gc.collect()
    if GPU:
        torch.cuda.empty_cache()


def rows_of(name: str, n: int, vocabulary: int, start: int = 0) -> list[dict[str, list[int]]]:
    """Encoded examples from ``DATA``, their ids brought into a vocabulary."""
    lines = (DATA / f"{name}.jsonl").read_text().splitlines()
    lines = (lines * (1 + (start + n) // len(lines)))[start : start + n]
    return [
        {
            "input_ids": [i % vocabulary for i in r["input_ids"]],
            "labels": [i if i < 0 else i % vocabulary for i in r["labels"]],
        }
        for r in map(json.loads, lines)
    ]


def typical_rows(name: str, n: int, vocabulary: int) -> list[dict[str, list[int]]]:
    """Neighbours among the encoded examples whose tokens are nearest to the mean of as many."""
    lengths = [len(json.loads(x)["input_ids"]) for x in (DATA / f"{name}.jsonl").open()]
    mean = n * sum(lengths) / len(lengths)
    starts = range(0, len(lengths) - n + 1, n)
    start = min(starts, key=lambda at: abs(sum(lengths[at : at + n]) - mean))
    return rows_of(name, n, vocabulary, start)


def prepared(shape: str) -> Path:
    """The folder of a model of random weights in a published shape, and of an adapter."""
    from harness import stand_in
    from harness.gpu_prepare import save_adapter
    from harness.random_model import build, save_tokenizer, save_zeros, shape_of

    place = WORK / shape
    if (place / "adapter").exists():
        return place
    s, start = shape_of(shape), time.perf_counter()
    model = build(s, DEV)
    if stand_in.here():  # files that are holes
        save_zeros(s, place / "model")
    else:
        model.save_pretrained(place / "model")
        save_tokenizer(s, place / "model")
    save_adapter(model, place / "adapter.new", 16, 32)
    (place / "adapter.new").rename(place / "adapter")
    del model
    clean()
    say(f"{shape} made in {time.perf_counter() - start:.1f} s")
    return place


def small() -> None:
    """Folders of small models, some hundred wide, so that no size is too small for a kernel."""
    from support import tiny

    wide = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4}
    for kind in KINDS:
        if (WORK / kind / "config.json").exists():
            continue
        options = wide | {"num_key_value_heads": 2, "head_dim": 64}
        if kind == "gemma4_text":
            options |= {"global_head_dim": 128}
        if kind == "recurrent_gemma":
            options = wide | {"num_key_value_heads": 1, "lru_width": 256}
        tiny.folder(kind, WORK / kind, **options)


def flops(shape: str, tokens: int, supervised: int) -> float:
    """Of a step of LoRA: 4 N a token and 4 V H a supervised one."""
    from harness.random_model import shape_of

    from ft.plan import layers

    sizes = shape_of(shape)
    inner = sum(matrix.numbers for matrix in layers.matrices(sizes))
    return 4 * inner * tokens + 4 * sizes.vocab_size * sizes.hidden_size * supervised
