"""Parts of a step and of an answer on a GPU, against its limits: the head and its loss, decoding, the mini-GPT.

Command   python benchmarks/gpu_parts.py --out gpu_parts.json
          python benchmarks/gpu_parts.py --device cpu --shape tiny      to see it run, without a GPU
Hardware  one GPU with bf16; PyTorch's own loss of full logits takes about 40 GB
Time      about 5 minutes (not run on a GPU yet)

`head`: forward and backward of the head with Gemma 2's soft cap and the cross-entropy at 8,192 x 2,304 x
256,000, weight frozen, beside the two bare products, PyTorch on full logits, and what TRL, Liger and
cut-cross-entropy make of it where they are installed. Loss and gradient of 256 rows must be those of fp32.
`decoding`: one prompt to a model in the shape of Gemma 2B, in bf16 and nf4, by ft and transformers; the
limit is the bytes of its linear layers over the bandwidth of a copy. `minigpt`: recipes/minigpt_pretrain.py,
`--preset book`, 64 windows of 256 a step, between the first log line and the last; the share is of the
best bf16 product measured. Each part is written as it ends. A part that fails, a wrong loss or a wrong gradient
makes the exit status 1.
"""

import dataclasses
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from generate import in_turn, ours, theirs, timed
from harness.interleaved import measure
from harness.random_model import build, save_tokenizer, shape_of
from harness.report import cpu_name

from ft import config, machine
from ft.errors import UserError
from ft.files import write_json

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]  # hidden, weight, targets -> summed loss

CAP = 30.0
RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "minigpt_pretrain.py"
SIZES = {"gemma": (8192, 2304, 256_000), "tiny": (300, 64, 1024)}  # rows, width, vocabulary
CHECKED = 256  # rows whose results are compared
TOLERANCE = 0.02  # of the loss, and of the gradient by its norm, in bf16
GOALS = {
    "head: ft's time over the bare products', at most": 1.4,
    "head: GB that ft needs besides, at most": 1.2,
    "head: ft's time over the fastest other's, at most": 1.0,
    "minigpt: million tokens/s, at least": 1.5,
}
SMALL = ["--hidden-size", "32", "--num-hidden-layers", "1", "--num-attention-heads", "2"]
SMALL += ["--intermediate-size", "64", "--max-length", "16", "--per-device-train-batch-size", "2"]
SMALL += ["--vocab-size", "512", "--prompt", "a", "--valid-tokens", "64", "--workers", "0"]


@dataclasses.dataclass(frozen=True)
class Config:
    """What to measure, on what."""

    parts: tuple[str, ...] = ("head", "decoding", "minigpt")
    device: Literal["cuda", "cpu"] = "cuda"
    shape: Literal["gemma", "tiny"] = "gemma"
    new_tokens: int = 128  # of an answer
    repeats: int = 5  # of each side, in turn, after one to warm up
    corpus: str = "../shared/data/wikitext-2"  # of the mini-GPT, as its recipe takes it
    steps: int = 200  # of the mini-GPT
    out: Path | None = None  # JSON file for the result

    def check(self) -> list[str]:
        """Mistakes that the types cannot tell."""
        known = ("head", "decoding", "minigpt")
        wrong = [part for part in self.parts if part not in known]
        mistakes = [f"--parts: {part!r} is none of {', '.join(known)}" for part in wrong]
        if self.steps < 4 or self.new_tokens < 2 or self.repeats < 1:
            mistakes.append("--steps must be 4 or more, --new-tokens 2, --repeats 1")
        return mistakes


def main(c: Config) -> None:
    """Measure, print tables and goals; exit 1 where a loss or its gradient is wrong."""
    import torch

    if c.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no GPU here; --device cpu --shape tiny shows that it runs")
    device = torch.device(c.device)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if c.device == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "options": config.to_dict(c),
        "bf16_peak_tflops": machine.matrix_peak(device, torch.bfloat16) / 1e12,
        "copy_gb_per_s": bandwidth(device) / 1e9,
    }
    failed = list[str]()
    with tempfile.TemporaryDirectory(prefix="ft-gpu-") as folder:
        parts: dict[str, Callable[[], Any]] = {
            "head": lambda: head(c),
            "decoding": lambda: decoding(c, result["copy_gb_per_s"] * 1e9, Path(folder)),
            "minigpt": lambda: minigpt(c, result["bf16_peak_tflops"] * 1e12, Path(folder)),
        }
        for name in c.parts:
            try:
                result[name] = parts[name]()
            except Exception as error:  # the other parts are worth as much
                traceback.print_exception(error)
                failed.append(f"{name}: {type(error).__name__}: {error}")
            result["goals"] = goals(result)
            if c.out:
                write_json(c.out, result)
    print(table(result))
    wrong = [n for n, x in result.get("head", {}).items() if x.get("differs", 0) > TOLERANCE]
    failed += [f"{name} has another loss or gradient" for name in wrong]
    if failed:
        print("\n".join(f"FAILED: {what}" for what in failed))
        raise SystemExit(1)


def bandwidth(device: Any) -> float:
    """Bytes a second of the best copy, read and written."""
    import torch

    source = torch.zeros(2**29 if device.type == "cuda" else 2**24, dtype=torch.uint8).to(device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        start = time.perf_counter()
        target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def head(c: Config) -> dict[str, dict[str, Any]]:
    """Seconds, extra memory and error of each side; ``missing`` or ``failed`` where there is none."""
    import torch

    rows, width, vocabulary = SIZES[c.shape]
    generator = torch.Generator(c.device).manual_seed(0)
    options: Any = {"device": c.device, "generator": generator}
    hidden = torch.randn(rows, width, **options).bfloat16()
    weight = (torch.randn(vocabulary, width, **options) * width**-0.5).bfloat16()
    targets = torch.randint(vocabulary, (rows,), **options)
    found: dict[str, dict[str, Any]] = {}
    sides: dict[str, Callable[[], Any]] = {"bare products": lambda: products(hidden, weight)}

    def step(loss: Loss, n: int = rows, dtype: Any = torch.bfloat16) -> tuple[float, "Tensor"]:
        leaf = hidden[:n].to(dtype).requires_grad_()
        value = loss(leaf, weight.to(dtype), targets[:n])
        value.backward()
        assert leaf.grad is not None
        return value.item(), leaf.grad.float()

    exact, slope = step(plain, CHECKED, torch.float32)
    for name, load in LOSSES.items():
        try:
            loss = load()
            value, gradient = step(loss, CHECKED)
            sides[name] = lambda loss=loss: step(loss)
            sides[name]()
        except ImportError as error:
            found[name] = {"missing": str(error)}
            continue
        except (RuntimeError, TypeError, AttributeError) as error:
            if name == "ft":
                raise
            sides.pop(name, None)  # out of memory, no kernel for this device, another version
            found[name] = {"failed": " ".join(str(error).split())[:200]}
            continue
        off = (gradient - slope).norm() / slope.norm()
        found[name] = {"differs": max(abs(value / exact - 1), off.item())}
    taken = measure(sides, c.repeats, c.device)
    return {name: taken.get(name, {}) | found.get(name, {}) for name in (*taken, *found)}


def products(hidden: "Tensor", weight: "Tensor", rows: int = 2048) -> None:
    """Logits and the gradient by their inputs, without anything between the two products."""
    import torch

    result = torch.empty_like(hidden)
    logits = hidden.new_empty(min(rows, len(hidden)), len(weight))
    for at in range(0, len(hidden), rows):
        part = slice(at, at + rows)
        held = logits[: len(hidden[part])]
        torch.mm(hidden[part], weight.T, out=held)
        torch.mm(held, weight, out=result[part])


def plain(hidden: "Tensor", weight: "Tensor", targets: "Tensor") -> "Tensor":
    """PyTorch's loss of full logits."""
    import torch

    logits = CAP * torch.tanh((hidden @ weight.T).float() / CAP)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


def _ft() -> Loss:
    from ft.kernels import cross_entropy

    return lambda hidden, weight, targets: cross_entropy.cross_entropy(hidden, weight, targets, CAP)


def _trl() -> Loss:
    module: Any = importlib.import_module("trl.trainer.utils")
    function, size = module._ChunkedLogProbFunction, module._CHUNKED_LOGPROB_CHUNK_SIZE
    wanted = ("log_probs", "entropy", "is_top1")  # as its SFTTrainer asks for

    def loss(hidden: "Tensor", weight: "Tensor", targets: "Tensor") -> "Tensor":
        return -function.apply(hidden, weight, None, targets, 1.0, size, CAP, 1.0, wanted)[0].sum()

    return loss


def _liger() -> Loss:
    module: Any = importlib.import_module("liger_kernel.transformers")
    function = module.LigerFusedLinearCrossEntropyLoss(reduction="sum", softcap=CAP)
    return lambda hidden, weight, targets: function(weight, hidden, targets)


def _cut() -> Loss:
    module: Any = importlib.import_module("cut_cross_entropy")
    return lambda hidden, weight, targets: module.linear_cross_entropy(
        hidden, weight, targets, softcap=CAP, reduction="sum"
    )


LOSSES: dict[str, Callable[[], Loss]] = {
    "ft": _ft,
    "PyTorch": lambda: plain,
    "TRL": _trl,
    "Liger": _liger,
    "cut-cross-entropy": _cut,
}


def decoding(c: Config, copy: float, folder: Path) -> dict[str, float]:
    """Seconds of each token after the first, and at least by the bandwidth."""
    import torch

    from ft import models

    shape = shape_of("tiny" if c.shape == "tiny" else "gemma-2b")
    build(shape, c.device).save_pretrained(folder / "model")
    save_tokenizer(shape, folder / "model")
    ids, found = list(range(2, 34)), {}
    if c.device == "cpu":  # it stands in for a GPU, and computes as one does, fast there or not
        machine.fast_bf16 = lambda: True
    for precision in ("bf16", "nf4"):
        base = models.load(str(folder / "model"), precision=precision, inference=True)
        base.model.generation_config.eos_token_id = None  # as many tokens as are asked for
        base.tokenizer.eos_token = None
        linear = [m for m in base.model.modules() if isinstance(m, torch.nn.Linear)]
        size = sum(module.weight.nbytes for module in linear)
        found[f"limit, {precision}"] = size / copy
        sides = {
            "ft": lambda base=base: timed(lambda n: ours(base, [ids], n)[0], c.new_tokens),
            "transformers": lambda base=base: timed(lambda n: theirs(base, ids, n), c.new_tokens),
        }
        for name, seconds in in_turn(sides, c.repeats).items():
            found[f"{name}, {precision}"] = seconds["token_s"]
    return found


def minigpt(c: Config, peak: float, folder: Path) -> dict[str, float]:
    """Tokens a second of the recipe's steps, and the share of the peak that they are."""
    from ft.minigpt import MiniGPTConfig

    every = c.steps // 4
    corpus = str(Path(c.corpus).resolve()) if Path(c.corpus).exists() else c.corpus
    flags = ["--preset", "book", "--data", corpus, "--max-minutes", "none"]
    flags += ["--max-steps", str(4 * every), "--logging-steps", str(every)]
    flags += ["--eval-steps", "1000000", "--save-steps", "1000000", "--valid-tokens", "16384"]
    flags += ["--token-cache", str(folder / "tokens"), "--output-dir", str(folder / "run")]
    flags += SMALL * (c.shape == "tiny")
    env = os.environ | ({"CUDA_VISIBLE_DEVICES": ""} if c.device == "cpu" else {})
    done = subprocess.run(
        [sys.executable, str(RECIPE), *flags], env=env, capture_output=True, text=True
    )
    if done.returncode:
        why = done.stderr.strip().rpartition("error: ")[2]
        raise UserError(f"recipes/minigpt_pretrain.py: {why}")
    lines = [json.loads(x) for x in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    first, *_, last = [line for line in lines if "tokens_per_second" in line]
    rate = (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])
    shape = MiniGPTConfig.from_pretrained(folder / "run")
    flops = shape.flops_per_token(shape.max_position_embeddings)
    return {"tokens_per_s": rate, "mflop_per_token": flops / 1e6, "mfu": rate * flops / peak}


def goals(result: dict[str, Any]) -> dict[str, float]:
    """What was reached of ``GOALS``, where it was measured."""
    found: dict[str, float] = {}
    if sides := result.get("head"):
        ours = sides["ft"]["wall_s"]
        rest = {n: x["wall_s"] for n, x in sides.items() if n != "ft" and "wall_s" in x}
        figures = [ours / rest.pop("bare products"), sides["ft"]["peak_mib"] * 2**20 / 1e9]
        figures += [ours / min(rest.values())] * bool(rest)
        found |= dict(zip(GOALS, figures, strict=False))
    if gpt := result.get("minigpt"):
        found[list(GOALS)[-1]] = gpt["tokens_per_s"] / 1e6
    return found


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        f"{result['device']}; best bf16 product measured: {result['bf16_peak_tflops']:.2f} TFLOP/s, "
        f"copy: {result['copy_gb_per_s']:.1f} GB/s"
    ]
    if sides := result.get("head"):
        bare = sides["bare products"]["wall_s"]
        lines += ["", "| head and loss | ms | of bare products | extra GB | differs |"]
        lines += ["|---|---:|---:|---:|---:|"]
        for name, x in sides.items():
            cells = [x.get("missing") or x.get("failed") or "", "", "", ""]
            if "wall_s" in x:
                cells = [f"{1e3 * x['wall_s']:.2f}", f"{x['wall_s'] / bare:.2f}"]
                cells += [f"{x['peak_mib'] * 2**20 / 1e9:.2f}", f"{x.get('differs', 0):.1e}"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if found := result.get("decoding"):
        lines += ["", "| decoding, one prompt | tokens/s | of the limit |", "|---|---:|---:|"]
        for name, seconds in found.items():
            limit = found[f"limit, {name.rpartition(', ')[2]}"]
            lines.append(f"| {name} | {1 / seconds:.1f} | {limit / seconds:.0%} |")
    if gpt := result.get("minigpt"):
        lines.append(
            f"\nmini-GPT: {gpt['tokens_per_s']:,.0f} tokens/s, {gpt['mflop_per_token']:.0f} MFLOP a "
            f"token, {gpt['mfu']:.1%} of the bf16 peak"
        )
    lines += ["", "| goal | bound | reached |", "|---|---:|---:|"]
    lines += [f"| {name} | {GOALS[name]:g} | {x:.3g} |" for name, x in result["goals"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    config.run(main, Config, __doc__)
