"""Greedy decoding on a CPU beside transformers and llama.cpp, and the limits of the machine; in turn in one run.

Command   python benchmarks/generate.py --data PATH/TO/MTNT --out generate.json
Hardware  two CPU cores with nothing else running, and 8 GiB of memory
Time      7 minutes; the first run builds llama-cpp-python, 10 minutes more (--no-llama leaves it out)

The embedded Gemma 3 270M goes on from one prompt by `--new-tokens`; `first` is the time to the first
new token, `ms/token` that of each one after it. `limit: copy` is the bytes of the weights over the
bandwidth of a copy, `limit: mv` PyTorch's matrix-vector product with every weight in turn.
Sixteen prompts in one batch, and MTNT's lines with the template's stop, each beside transformers'
`generate` with one at a time. Answers in fp32 must be the same as transformers', or the exit status is 1.

Goals: fp32 at 95% of `limit: mv`; int8 2.3 times transformers in fp32 and level with llama.cpp (the
Q4_K_M file, whose weights the others have in fp32); 16 prompts 4 times, MTNT 4 times.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.environments import python_of
from harness.process import Worker
from harness.report import cpu_name

from ft import config, data, models
from ft.config import Count
from ft.files import write_json
from ft.generate import answers
from ft.models import embedded
from ft.runs import merge
from ft.text import prompts

TEXT = (
    "Once upon a time, in a small town by the sea, there lived an old fisherman who had never "
    "learned to swim. Every morning, before the sun came up, he would walk down to the harbour"
)
SHORT = 12  # new tokens without a cache, where each costs as much as all before it


@dataclass(frozen=True)
class Config:
    """What to measure, on what."""

    model: str = "embedded"
    new_tokens: int = 128
    prompts: Count = 16  # in one batch
    data: Path | None = None  # MTNT, as `ft eval` takes it; nothing: leave it out
    lines: int = 40  # of its test split, evenly spread
    llama: bool = True  # beside llama.cpp
    compiled: bool = False  # transformers with a static cache and torch.compile, too: minutes more
    repeats: int = 3  # of each side, in turn, after one to warm up
    threads: int = 2
    out: Path | None = None  # JSON file for the result


def main(c: Config) -> None:
    """Measure in turn, print medians and ratios; exit 1 if fp32's answers differ."""
    import torch

    torch.set_num_threads(c.threads)
    torch.set_flush_denormal(True)
    plain = models.load(c.model, precision="fp32")
    small = models.load(c.model, precision="int8", inference=True)
    for base in (plain, small):  # all sides write as many tokens as they are asked for
        base.model.generation_config.eos_token_id = None
        base.tokenizer.eos_token = None
    ids = plain.tokenizer(TEXT)["input_ids"]
    result: dict[str, Any] = {
        "device": cpu_name(),
        "torch": torch.__version__,
        "options": config.to_dict(c),
        "load_average": [os.getloadavg()[0]],
        "limits": limits(plain.model, c.repeats),
    }
    sides: dict[str, Callable[[], dict[str, float]]] = {
        "transformers": lambda: timed(lambda n: theirs(plain, ids, n), c.new_tokens),
        "transformers, no cache": lambda: timed(
            lambda n: theirs(plain, ids, n, use_cache=False), SHORT
        ),
        "ft": lambda: timed(lambda n: ours(plain, [ids], n)[0], c.new_tokens),
        "ft, int8": lambda: timed(lambda n: ours(small, [ids], n)[0], c.new_tokens),
    }
    if c.compiled:
        compiled = torch.compile(plain.model.forward, dynamic=True)

        def static(n: int) -> list[int]:
            eager, plain.model.forward = plain.model.forward, compiled
            try:
                return theirs(plain, ids, n, cache_implementation="static")
            finally:
                plain.model.forward = eager

        sides["transformers, static, compiled"] = lambda: timed(static, c.new_tokens)
    with tempfile.TemporaryDirectory() as folder:
        worker = None
        if c.llama:
            gguf = Path(folder) / "model.gguf"
            gguf.write_bytes(embedded._assemble(embedded._parts()))
            job = {"gguf": str(gguf), "ids": ids, "new_tokens": c.new_tokens, "threads": c.threads}
            job["output"] = str(Path(folder) / "llama")
            worker = Worker(
                "llama.cpp", python_of("llama"), "peers/llama_decode.py", job, c.threads
            )
            sides["llama.cpp, Q4_K_M"] = worker.step
        result["one"] = in_turn(sides, c.repeats)
        if worker:
            worker.stop()
    words = TEXT.split()
    many = [plain.tokenizer(" ".join(words[: 8 + i]))["input_ids"] for i in range(c.prompts)]
    batch = in_turn({"ft": lambda: whole(lambda: ours(plain, many, c.new_tokens))}, 1)
    result["many"] = batch["ft"] | {"tokens_per_s": c.prompts * c.new_tokens / batch["ft"]["s"]}
    same = ours(plain, [ids], c.new_tokens)[0] == theirs(plain, ids, c.new_tokens)
    rows = [torch.tensor([x]) for x in (ids, *many[-4:])]
    kl = merge.compare(*(merge.logits(b.model, rows) for b in (plain, small)), bound=1.0)
    result |= {"same": same, "int8": {"kl": kl.kl, "same_first_choice": kl.agreement}}
    if c.data:
        result["mtnt"] = translate(plain, c)
    result["load_average"].append(os.getloadavg()[0])
    print(table(result, c))
    if c.out:
        write_json(c.out, result)
    if not same or (c.data and result["mtnt"]["same"] < 1):
        raise SystemExit(1)


def ours(base: models.Base, prompts: list[list[int]], n: int) -> list[list[int]]:
    """New ids of greedy answers by ft."""
    found = answers.generate(base.model, base.tokenizer, prompts, max_new_tokens=n)
    return [list(answer.ids) for (answer,) in found]


def theirs(base: models.Base, ids: list[int], n: int, **options: Any) -> list[int]:
    """New ids of a greedy answer by transformers."""
    import torch

    given = torch.tensor([ids], device=base.model.device)
    mask = torch.ones_like(given)
    found: Any = base.model.generate(  # pyright: ignore[reportCallIssue]
        given, attention_mask=mask, max_new_tokens=n, do_sample=False, **options
    )
    return found[0, len(ids) :].tolist()


def timed(run: Callable[[int], list[int]], n: int) -> dict[str, float]:
    """Seconds to the first new token, and of each of the next ones."""
    start = time.perf_counter()
    run(1)
    first = time.perf_counter() - start
    start = time.perf_counter()
    assert len(run(n)) == n
    return {"first_s": first, "token_s": (time.perf_counter() - start - first) / (n - 1)}


def whole(run: Callable[[], Any]) -> dict[str, float]:
    """Seconds of one call."""
    start = time.perf_counter()
    run()
    return {"s": time.perf_counter() - start}


def in_turn(
    sides: dict[str, Callable[[], dict[str, float]]], repeats: int
) -> dict[str, dict[str, float]]:
    """Medians of what each side measures, after one turn to warm up."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for turn in range(repeats + 1):
        for name, run in sides.items():
            measured = run()
            if turn:
                found[name].append(measured)
    keys = {
        name: [k for k in rows[0] if k.endswith("_s") or k == "s"] for name, rows in found.items()
    }
    return {
        name: {key: statistics.median(row[key] for row in rows) for key in keys[name]}
        for name, rows in found.items()
    }


def limits(model: Any, repeats: int) -> dict[str, float]:
    """Seconds that a token takes at least: by a copy's bandwidth, and by matrix-vector products."""
    import torch

    weights = [m.weight for m in model.modules() if isinstance(m, torch.nn.Linear)]
    vectors = [torch.randn(w.shape[1]) for w in weights]
    source = torch.randn(2**26)
    target = torch.empty_like(source)

    def best(run: Callable[[], Any]) -> float:
        return min(whole(run)["s"] for _ in range(3 * repeats))

    with torch.inference_mode():
        copied = 2 * source.nbytes / best(lambda: target.copy_(source))
        products = best(lambda: [torch.mv(w, v) for w, v in zip(weights, vectors, strict=True)])
    size = sum(w.nbytes for w in weights)
    return {
        "weight_bytes": size,
        "copy_bytes_per_s": copied,
        "copy_s": size / copied,
        "mv_s": products,
    }


def translate(base: models.Base, c: Config) -> dict[str, float]:
    """Seconds of some lines of MTNT's test split by each side, and the share of same answers."""
    rows = list(data.mtnt("test", "en-fr", str(c.data)))
    rows = [{"source": row["source"]} for row in rows[:: max(1, len(rows) // c.lines)]][: c.lines]
    template = prompts.translation()
    most = 64
    batched: list[str] = []
    single: list[str] = []

    def one_at_a_time() -> None:
        for row in rows:
            ids = base.tokenizer(template.prompt_for(row))["input_ids"]
            new = theirs(
                base, ids, most, stop_strings=list(template.stop), tokenizer=base.tokenizer
            )
            single.append(template.trim(base.tokenizer.decode(new, skip_special_tokens=True)))

    fast = whole(
        lambda: batched.extend(
            answers.of_rows(base.model, base.tokenizer, template, rows, max_new_tokens=most)
        )
    )
    slow = whole(one_at_a_time)
    same = sum(a == b for a, b in zip(batched, single, strict=True)) / len(rows)
    return {"lines": len(rows), "ft_s": fast["s"], "transformers_s": slow["s"], "same": same}


def table(result: dict[str, Any], c: Config) -> str:
    """The result for people."""
    one, limit = result["one"], result["limits"]
    reference = one["transformers"]["token_s"]
    lines = [
        f"{result['device']}, {c.threads} threads, load average "
        + " to ".join(f"{x:.1f}" for x in result["load_average"]),
        f"\n{'one prompt':<32}{'first s':>9}{'ms/token':>10}{'tokens/s':>10}{'times':>7}{'of mv':>7}",
    ]
    rows = {name: (x["first_s"], x["token_s"]) for name, x in one.items()}
    rows |= {f"limit: {k}": (float("nan"), limit[f"{k}_s"]) for k in ("mv", "copy")}
    for name, (first, each) in rows.items():
        lines.append(
            f"{name:<32}{first:>9.2f}{1e3 * each:>10.1f}{1 / each:>10.1f}"
            f"{reference / each:>7.2f}{limit['mv_s'] / each:>7.0%}"
        )
    many = result["many"]["tokens_per_s"]
    lines.append(
        f"\n{c.prompts} prompts in one batch: {many:.1f} tokens/s, {many * reference:.1f} times "
        "transformers with one"
    )
    lines.append(
        f"int8 beside fp32: KL {result['int8']['kl']:.1e} nats, same first choice "
        f"{result['int8']['same_first_choice']:.1%}; fp32 beside transformers: "
        + ("same answer" if result["same"] else "ANOTHER ANSWER")
    )
    if mtnt := result.get("mtnt"):
        lines.append(
            f"MTNT, {mtnt['lines']} lines: ft {mtnt['ft_s']:.1f} s, transformers one at a time "
            f"{mtnt['transformers_s']:.1f} s, {mtnt['transformers_s'] / mtnt['ft_s']:.1f} times; "
            f"{mtnt['same']:.0%} same"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
