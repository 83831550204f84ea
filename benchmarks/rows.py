"""Memory and time of many rows: read, looked at and encoded, by ft and by datasets.map as TRL does it.

python benchmarks/rows.py --rows 500000 --tokens 200
python benchmarks/rows.py --rows 20000 --who ft trl     each in a process of its own

The rows are instructions of random words in a jsonl file. TRL's way is its own preparation of prompt and
completion, `datasets.map` of one row at a time with the tokenizer called on each, without truncation.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = "the cat sleeps on a table while rain falls over quiet streets and people read long letters"


def write(file: Path, rows: int, tokens: int) -> None:
    """Rows of about ``tokens`` tokens, prompt included; a fifth of them in the instruction."""
    drawn, words = random.Random(0), WORDS.split()
    with open(file, "w") as stream:
        for number in range(rows):
            count = max(4, tokens - 45)  # the template's own
            asked = " ".join(drawn.choices(words, k=count // 5))
            answer = " ".join(drawn.choices(words, k=count - count // 5))
            row = {"instruction": f"{number} {asked}", "context": "", "response": answer}
            stream.write(json.dumps(row) + "\n")


def of_ft(file: Path) -> dict:
    """Read, look for doubles, encode, and go once through the examples in a shuffled order."""
    from ft.data.instructions import instructions
    from ft.data.rows import summary
    from ft.models.load import load_tokenizer
    from ft.text import prompts, tokens
    from ft.text.batches import Order
    from ft.text.examples import lengths_of

    tokenizer, start = load_tokenizer("embedded"), time.perf_counter()
    rows = instructions(file)
    found = {"read_s": time.perf_counter() - start, "read_gib": peak()}
    summary({"train": rows})
    found |= {"summary_s": time.perf_counter() - start - found["read_s"]}
    start = time.perf_counter()
    encoded = tokens.encode_rows(rows, prompts.INSTRUCTION["dolly"], tokenizer, max_length=1024)
    found |= {"encode_s": time.perf_counter() - start, "tokens": sum(encoded.lengths)}
    start = time.perf_counter()
    for i in list(Order(lengths_of(encoded.examples), 1))[:100_000]:
        encoded.examples[i]
    return found | {"make_100k_s": time.perf_counter() - start}


def of_trl(file: Path) -> dict:
    """What TRL's SFTTrainer does with prompt and completion before it trains."""
    from datasets import load_dataset

    from ft.models.load import load_tokenizer
    from ft.text import prompts

    tokenizer, template = load_tokenizer("embedded"), prompts.INSTRUCTION["dolly"]
    start = time.perf_counter()
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent))
    found = {"read_s": time.perf_counter() - start, "read_gib": peak()}

    def tokenize(row: dict) -> dict:
        pair = template.render(row)
        prompt = tokenizer(text=pair["prompt"])["input_ids"]
        both = tokenizer(text=pair["prompt"] + pair["completion"])["input_ids"]
        mask = [0] * len(prompt) + [1] * (len(both) - len(prompt))
        return {"input_ids": both, "completion_mask": mask}

    start = time.perf_counter()
    rows.map(tokenize, remove_columns=rows.column_names)
    return found | {"encode_s": time.perf_counter() - start}


def peak() -> float:
    """GiB of this process, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--tokens", type=int, default=200, help="of a row, about")
    parser.add_argument("--who", nargs="+", choices=["ft", "trl"], default=["ft"])
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)  # of one measurement
    a = parser.parse_args()
    if a.file:
        found = (of_ft if a.who == ["ft"] else of_trl)(a.file)
        print(json.dumps({"who": a.who[0], "rows": a.rows} | found | {"peak_gib": peak()}))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write(file, a.rows, a.tokens)
        for who in a.who:
            words = ["--rows", str(a.rows), "--who", who, "--file", str(file)]
            subprocess.run([sys.executable, __file__, *words], check=True, env=os.environ)


if __name__ == "__main__":
    main()
