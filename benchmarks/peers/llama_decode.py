"""llama.cpp through llama-cpp-python: greedy decoding of one prompt."""

import json
import sys
import time
from pathlib import Path

from worker import Pipe


def main() -> None:
    """Report, after each step, seconds to the first token and of each one after it."""
    job, pipe = json.loads(Path(sys.argv[1]).read_text()), Pipe()
    from llama_cpp import Llama  # pyright: ignore[reportMissingImports]

    llama = Llama(
        job["gguf"],
        n_ctx=1024,
        n_threads=job["threads"],
        n_threads_batch=job["threads"],
        verbose=False,
    )
    result: dict[str, float] = {}
    while True:
        pipe.wait(**result)
        llama.reset()  # or it would keep the prompt of the last time
        start, times = time.perf_counter(), []
        for _ in llama.generate(job["ids"], temp=0.0, repeat_penalty=1.0):
            times.append(time.perf_counter() - start)
            if len(times) == job["new_tokens"]:
                break
        result = {"first_s": times[0], "token_s": (times[-1] - times[0]) / (len(times) - 1)}


if __name__ == "__main__":
    main()
