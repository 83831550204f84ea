"""Seconds from a command to its first training step, and of `--help`: ft beside TRL.

    python benchmarks/start.py --runs 3

Both train the embedded Gemma 3 270M with LoRA on the bundled sample, with a warm cache, in turn. Our
first step begins after the first validation (of one row here: TRL validates nothing), TRL's when its
progress bar appears; it reads the same pairs from jsonl.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ft import config, data
from ft.models import embedded
from ft.text import prompts

RECIPE = Path(__file__).parents[1] / "recipes" / "mtnt_lora.py"


@dataclass(frozen=True)
class Config:
    runs: int = 3  # of each command, in turn


def first_step(command: list[str], mark: str) -> float:
    """Seconds until ``mark`` stands in the command's output; the command is ended then."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        start_new_session=True,  # TRL trains in a child of its own, which must end with it
    )
    assert process.stdout is not None
    seen = b""
    while mark.encode() not in seen:
        piece = os.read(process.stdout.fileno(), 4096)
        assert piece, seen.decode(errors="replace")
        seen += piece
    seconds = time.perf_counter() - start
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return seconds


def cpu(command: list[str]) -> float:
    """CPU seconds of a whole command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(c: Config) -> None:
    """Measure in turn and print medians and ratios."""
    model = str(embedded.folder())
    with TemporaryDirectory() as name:
        folder = Path(name)
        template = prompts.translation()
        pairs = [template.render(row) for row in data.mtnt("train")]
        (folder / "train.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
        flags = ["--max_steps", "2", "--report_to", "none"]
        trl = ["trl", "sft", "--model_name_or_path", model, "--dataset_name", name, "--use_peft"]
        ours = ["accelerate", "launch", str(RECIPE), "--max-steps", "2"]
        few = [*ours, "--eval-limit", "1"]  # TRL validates nothing before its first step
        plain = [sys.executable, *ours[2:]]  # the same run where there is one device
        times: dict[str, list[float]] = {"ft": [], "as it comes": [], "plain": [], "trl": []}
        for i in range(c.runs):
            for key, words in (("ft", few), ("as it comes", ours), ("plain", plain)):
                words = [*words, "--output-dir", f"{name}/{key[:2]}{i}"]
                times[key].append(first_step(words, "Start, validation"))
            command = [*trl, *flags, "--use_cpu", "--output_dir", f"{name}/trl{i}"]
            times["trl"].append(first_step(command, "0/2"))
    ft, whole, alone, theirs = (statistics.median(found) for found in times.values())
    print(f"first training step: ft {ft:.1f} s, trl {theirs:.1f} s, ratio {ft / theirs:.2f}")
    print(
        f"with the loss of 40 validation lines before it, the default: ft {whole:.1f} s, "
        f"without `accelerate launch` {alone:.1f} s"
    )
    for label, a, b in (
        ("--help", ["ft", "--help"], ["trl", "sft", "--help"]),
        (
            "settings and data checked",
            ["ft", "check", str(RECIPE), "--output-dir", "never-made"],
            None,
        ),
    ):
        line = f"{label}: ft {statistics.median(cpu(a) for _ in range(c.runs)):.2f} CPU s"
        if b:
            line += f", trl {statistics.median(cpu(b) for _ in range(c.runs)):.2f} CPU s"
        print(line)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
