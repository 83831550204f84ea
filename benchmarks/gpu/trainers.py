"""Steps of each peer through its real trainer, all started at once, stepped one after the other."""

import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from common import DEV, GPU, ROOT, SHAPE, WORK, flops, left, prepared, rows_of, say, typical_rows
from harness import stand_in
from harness.process import first_numbers

SIZE = 8  # examples of a step
VARIED = "ft-varied"
# way: script, precision, how much is computed again, steps on each data set, folder of packages that go first
PEERS: dict[str, tuple[str, str, bool | str, int, str]] = {
    "ft": ("peers/ft_recipe.py", "nf4", False, 6, ""),
    "ft-bf16": ("peers/ft_recipe.py", "bf16", False, 6, ""),
    "ft-varied": ("peers/ft_recipe.py", "nf4", False, 75, ""),
    "ft-checkpointing": ("peers/ft_recipe.py", "nf4", True, 6, ""),
    "ft-offloading": ("peers/ft_recipe.py", "nf4", "offload", 6, ""),
    # these two always compute again; Unsloth offloads
    "unsloth": ("peers/unsloth_sft.py", "nf4", False, 5, "unsloth"),
    "trl": ("peers/trl_sft.py", "nf4", False, 2, ""),
}


def rows_for(peer: str, n: int, vocabulary: int, full: str = "") -> tuple[Any, dict[str, list]]:
    """A file of rows, the same step again and again, as graphs and compilers like it; and the steps.

    ``ft-varied`` takes all rows of Dolly in turn, three times with other neighbours, as a run does.
    """
    sets = {name: typical_rows(name, SIZE, vocabulary) for name in ("dolly", "mtnt")}
    if full:
        batch, length = map(int, full.split("x"))
        ids = [i for r in rows_of("dolly", 200, vocabulary) for i in r["input_ids"]]
        ids = (ids * (length // len(ids) + 1))[:length]
        labels = [-100] * (length // 2) + ids[length // 2 :]
        sets = {full: [{"input_ids": ids, "labels": labels}] * batch}
    rows = [row for given in sets.values() for row in given * n]
    if peer == VARIED:
        draw, all_rows, rows = random.Random(0), rows_of("dolly", 200, vocabulary), []
        while len(rows) < n * SIZE:
            rows += draw.sample(all_rows, len(all_rows))
        sets = {"dolly": (rows := rows[: n * SIZE])}
    rows += list(sets.values())[-1][:SIZE]  # the last step fetches a batch ahead
    file = WORK / f"{peer}-rows.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file, sets


def job_of(peer: str, place: Any, file: Any, n: int, batch: int, most: int) -> dict[str, Any]:
    """What the peer's script is told."""
    script, precision, again, *_ = PEERS[peer]
    return {
        "model": str(place / "model"),
        "adapter": str(place / "adapter"),
        "rows": str(file),
        "output": str(WORK / f"out-{peer}-{time.time_ns()}"),
        "precision": precision,
        "gradient_checkpointing": again,
        "batch_size": batch,
        "steps": n,
        "max_length": most,
        "learning_rate": 2e-4,
        "device": DEV,
        "optim": "adamw",
    }


def steps() -> None:
    """Lines of each peer: its steps in ms, the rate of the last ones, the share of the peak, memory."""
    import torch
    from harness.process import Worker, cause
    from harness.random_model import shape_of

    from ft import machine

    place, vocabulary = prepared(SHAPE), shape_of(SHAPE).vocab_size
    full = os.environ.get(
        "FULL", ""
    )  # as "8x1024": examples and their tokens, in place of the data sets
    names = [n for n in os.environ.get("PEERS", ",".join(PEERS)).split(",") if n in PEERS]
    if not (ROOT / ".gpu/unsloth").exists():
        names = [n for n in names if n != "unsloth"]
    peak = machine.matrix_peak(torch.device(DEV), torch.bfloat16)
    if GPU:
        torch.cuda.empty_cache()

    def start(peer: str, path: str) -> Any:
        script, _, _, n, folder = PEERS[peer]
        n = n if GPU else 3
        file, sets = rows_for(peer, n, vocabulary, full)
        batch, length = map(int, full.split("x")) if full else (SIZE, 1024)
        job = job_of(peer, place, file, n * len(sets), batch, length)
        begin = time.perf_counter()
        first = f"{ROOT / '.gpu' / folder}:" if folder else ""
        os.environ["PYTHONPATH"] = first + path
        return job, sets, n, lambda: Worker(peer, sys.executable, script, job, 2, DEV), begin

    path, made = os.environ.get("PYTHONPATH", ""), []
    with ThreadPoolExecutor(len(names)) as pool:
        for peer in names:
            job, sets, n, make, begin = start(peer, path)
            made.append((peer, job, sets, n, pool.submit(make), begin))
            time.sleep(0.5)  # the process has its environment by then
    os.environ["PYTHONPATH"] = path
    for peer, job, sets, n, future, begin in made:
        log = WORK / os.path.basename(job["output"]) / "log.txt"
        try:
            worker = future.result()
        except Exception as error:
            say(f"FAILED {peer} did not start:", cause(str(error))[:600])
            continue
        ready = time.perf_counter() - begin
        try:
            for name, examples in sets.items():
                if left() < 6:
                    say(f"{peer} {name}: no time left")
                    break
                taken = [worker.step() for _ in range(n)]
                report = _report_varied if peer == VARIED else _report
                report(peer, name, taken, examples, peak, ready)
        except Exception as error:
            say(f"FAILED {peer}:", cause(str(error))[:600])
        finally:
            worker.stop()
            if log.exists():
                print(f"== {peer}\n{log.read_text()[-2500:]}", file=sys.stderr)


def _work(examples: list) -> tuple[int, int]:
    """Tokens, and those of them that are supervised."""
    labels = [x for e in examples for x in e["labels"][1:]]
    return sum(len(e["input_ids"]) for e in examples), sum(x >= 0 for x in labels)


def _report(
    peer: str, name: str, taken: list[dict], examples: list, peak: float, ready: float
) -> None:
    times = [step["wall_s"] for step in taken]
    best = statistics.median(times[-3:])
    tokens, supervised = _work(examples)
    listed = " ".join(f"{1e3 * t:.0f}" for t in times)
    rate = (
        f"{tokens / best:,.0f} tokens/s, "
        f"{flops(SHAPE, tokens, supervised) / best / peak:.1%} of the bf16 peak"
    )
    if stand_in.here():
        rate = "of the processor alone, as no kernel computes"
    say(
        f"{SHAPE} {name} {peer}: {listed} ms; {rate}, peak "
        f"{max(step['peak_mib'] for step in taken) * 2**20 / 1e9:.2f} GB, first step "
        f"{ {k: round(x, 4) for k, x in first_numbers(taken).items()} } "
        f"(all had started after {ready:.0f} s)"
    )


def _report_varied(
    peer: str, name: str, taken: list[dict], examples: list, peak: float, ready: float
) -> None:
    """Rows of many sizes: the first of a size are launched and captured."""
    times = [step["wall_s"] for step in taken]
    work = [_work(examples[at : at + SIZE]) for at in range(0, len(examples), SIZE)]
    words = []
    for part in (slice(None), slice(-(len(times) // 3), None)):
        seconds, tokens = sum(times[part]), sum(n for n, _ in work[part])
        share = sum(flops(SHAPE, *each) for each in work[part]) / seconds / peak
        words.append(f"{tokens / seconds:,.0f} tokens/s, {share:.1%} of the bf16 peak")
    slow = sum(t > 2 * statistics.median(times) for t in times)
    say(
        f"{SHAPE} {name} {peer}: {len(times)} steps, {words[0]}; the last third {words[1]}; median "
        f"{1e3 * statistics.median(times):.0f} ms, {slow} took over twice that; "
        f"peak {max(step['peak_mib'] for step in taken) * 2**20 / 1e9:.2f} GB"
    )
