"""Tokens a second that the loader of text gives, beside what a training step takes.

    python benchmarks/loader.py --data PATH/TO/wikitext-2 --vocab-size 8000

Trains a tokenizer, then reads, tokenises, cuts and shuffles in each of the ways, in turn, and prints
medians; ``--step`` is what the model takes (300 for the book's 41.8 M parameters on two CPU cores in fp32).
"""

import itertools
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ft import config
from ft.config import Count
from ft.data import corpus
from ft.data import tokenizer as tokenizer_training


@dataclass(frozen=True)
class Config:
    data: tuple[str, ...] = ("builtin",)
    vocab_size: int = 4096  # of the tokenizer
    text_field: str = "text"  # of jsonl; several as a+b
    max_length: Count = 256  # tokens of a window
    windows: int = 4_000  # of each measurement
    runs: int = 3  # in turn
    step: int = 6_000  # tokens/s of the training step


def main(c: Config) -> None:
    """Measure in turn and print medians and multiples of the step."""
    from transformers import AutoTokenizer

    ways: dict[str, Any] = {f"streamed, {n} workers": {"workers": n} for n in (0, 1, 2)}
    with TemporaryDirectory() as name:
        out = Path(name) / "tokenizer"
        options: Any = {"text_field": c.text_field}
        print(tokenizer_training.train(c.data, out, vocab_size=c.vocab_size, **options))
        tokenizer = AutoTokenizer.from_pretrained(out)
        ways["from the cache"] = {"workers": 2, "cache": Path(name)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _, way in itertools.product(range(c.runs), ways):
            made: Any = iter(
                corpus.windows(
                    c.data,
                    tokenizer,
                    length=c.max_length,
                    shuffle_buffer=1_000,
                    seed=0,
                    **options,
                    **ways[way],
                )
            )
            next(made)  # processes have started, the first buffer is full
            start = time.perf_counter()
            for _ in range(c.windows):
                next(made)
            rates[way].append(c.windows * (c.max_length + 1) / (time.perf_counter() - start))
            made.close()
    for way, found in rates.items():
        rate = statistics.median(found)
        print(f"{way:20} {rate:>12,.0f} tokens/s, {rate / c.step:,.0f} times the step")


if __name__ == "__main__":
    config.run(main, Config, __doc__)
