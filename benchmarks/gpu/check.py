"""Parts of a check on a GPU: ``python benchmarks/gpu/check.py PART…``, all of them in one process.

Command   bash benchmarks/gpu/pack.sh, then on the machine with the GPU: bash benchmarks/gpu/check.sh
          DEV=cpu runs each part in a tiny size on a CPU; SLOW=2 gives each part twice the time
Hardware  one GPU with bf16; the models of random weights lie in memory where there is room
Time      6 minutes for all parts

Each part prints short lines; what fails is one line, and the next part goes on.
"""

import faulthandler
import json
import os
import subprocess
import sys
import time
from typing import Any

import numbers_agree
import step as steps_alone
import trainers
from common import (
    DEV,
    GPU,
    ROOT,
    SHAPE,
    WORK,
    begin,
    clean,
    clock,
    failed,
    left,
    prepared,
    say,
    small,
    sync,
)


def env() -> None:
    """Versions, the device, how long imports take, 4-bit layers."""
    import importlib
    from importlib.metadata import PackageNotFoundError, version

    import torch

    found = {}
    names = "torch triton transformers tokenizers accelerate peft trl datasets bitsandbytes"
    for name in names.split():
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    say("python", sys.version.split()[0], " ".join(f"{k} {v}" for k, v in found.items()))
    taken = []
    for name in ("transformers", "bitsandbytes", "peft", "trl.trainer.sft_trainer"):
        start = time.perf_counter()
        importlib.import_module(name)
        taken.append(f"{name} {time.perf_counter() - start:.1f} s")
    say("imports:", ", ".join(taken))
    if not GPU:
        return
    from ft import machine

    p = torch.cuda.get_device_properties(0)
    say(
        f"{p.name}, sm_{p.major}{p.minor}, {p.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"
    )
    say(machine.here())
    start = time.perf_counter()
    peak = machine.matrix_peak(torch.device("cuda", 0), torch.bfloat16)
    say(
        f"best bf16 product {peak / 1e12:.0f} TFLOP/s, measured in {time.perf_counter() - start:.2f} s"
    )
    linear4bit()


def linear4bit() -> None:
    """bitsandbytes' own layer in Gemma 2 2B's widest size: right, and how fast."""
    import bitsandbytes as bnb
    import torch

    torch.manual_seed(0)
    wide, narrow = 9216, 2304
    plain = torch.nn.Linear(narrow, wide, bias=False).bfloat16()
    options = {"compute_dtype": torch.bfloat16, "quant_type": "nf4", "compress_statistics": True}
    made: Any = bnb  # its types are not exported
    layer = made.nn.Linear4bit(narrow, wide, bias=False, **options)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cuda")
    stored = made.functional.dequantize_4bit(layer.weight, layer.weight.quant_state)
    off = (stored - plain.weight.cuda()).float().norm() / plain.weight.float().norm()
    say(
        f"nf4 of a normal weight comes back as {stored.dtype}, {off:.3f} off (0.09 to 0.1 is right)"
    )
    weight = stored.bfloat16()
    for m in (1, 8, 571, 4096):
        x = torch.randn(1, m, narrow, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        y = layer(x)
        g = torch.randn_like(y)
        (dx,) = torch.autograd.grad(y, x, g)
        pairs = ((y, x.detach().double() @ weight.double().T), (dx, g.double() @ weight.double()))
        e = [((a.detach().double() - b).norm() / b.norm()).item() for a, b in pairs]
        both = clock(lambda x=x, g=g: torch.autograd.grad(layer(x), x, g), 5)
        bare = clock(lambda x=x, g=g: torch.autograd.grad(x @ weight.T, x, g), 5)
        say(f"Linear4bit {m} rows: off {e[0]:.1e} {e[1]:.1e}, {both:.3f} ms, bf16 {bare:.3f} ms")


def kernels() -> None:
    """The fused kernels one by one; on a CPU in a process of its own, of Triton's interpreter."""
    parts = os.environ.get("KERNELS", "weights elementwise answers layers").split()
    if not GPU:
        command = [sys.executable, str(ROOT / "benchmarks/gpu/fused_kernels.py"), *parts]
        return say(subprocess.run(command, text=True, cwd=ROOT, stdout=subprocess.PIPE).stdout)
    import fused_kernels

    return fused_kernels.main(parts)


def decode() -> None:
    """Greedy tokens a second of one prompt and of 16, by ft and by transformers."""
    import torch

    from ft.generate.answers import generate
    from ft.models import load

    place, n = prepared(SHAPE), 48 if GPU else 6
    for precision in ("bf16", "nf4"):
        base = load(str(place / "model"), precision=precision, inference=True)
        base.model.generation_config.eos_token_id = None
        base.tokenizer.eos_token = None
        size = sum(m.weight.nbytes for m in base.model.modules() if isinstance(m, torch.nn.Linear))
        for many in (1, 16):
            prompts = [[2, i + 3, *range(2, 34)] for i in range(many)]

            def ours(k: int, prompts: list = prompts, base: Any = base) -> object:
                return generate(base.model, base.tokenizer, prompts, max_new_tokens=k)

            def theirs(k: int, prompts: list = prompts, base: Any = base) -> object:
                given = torch.tensor(prompts, device=base.model.device)
                mask = torch.ones_like(given)
                return base.model.generate(
                    given, attention_mask=mask, max_new_tokens=k, do_sample=False
                )

            for name, run in (("ft", ours), ("transformers", theirs)):
                if left() < 4:
                    return say("no time left")
                try:
                    run(2)
                    times = []
                    for k in (2, n):
                        sync()
                        start = time.perf_counter()
                        run(k)
                        sync()
                        times.append(time.perf_counter() - start)
                    each = (times[1] - times[0]) / (n - 2)
                    say(
                        f"decode {SHAPE} {precision} {many} prompts, {name}: {many / each:.0f} tokens/s, "
                        f"{1e3 * each:.2f} ms a step, weights of {size / 1e9:.2f} GB at "
                        f"{size / each / 1e9:.0f} GB/s"
                    )
                except Exception as error:
                    failed(f"decode {precision} {many} {name}", error)
        del base
        clean()


TOLD = ("CUDA graphs", "attention", "precision", "the largest row", "gradient checkpointing")
TOLD += ("ok    memory", "WARN  memory", "a batch of")  # lines of a recipe that depend on the GPU


def recipe() -> None:
    """The recipes from end to end, on small models: train, translate, merge, prefer."""
    small()
    runs, model = WORK / "runs", str(WORK / "gemma2")
    pairs = WORK / "pairs.jsonl"
    rows = [
        {"source": f"it is {i}", "chosen": f"il est {i}", "rejected": f"{i}"} for i in range(40)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    preference = ["recipes/preference.py", "--run", str(runs / "mtnt"), "--data", str(pairs)]
    few = {"max-length": 256, "valid-rows": 4, "answer-rows": 2, "watch-rows": 2, "max-steps": 4}
    few |= {"max-new-tokens": 8, "max-kl": 99, "max-drift": 99, "min-distinct": 0}
    few |= {"output-dir": runs / "preference"}
    preference += [word for name, value in few.items() for word in (f"--{name}", str(value))]
    mtnt = ["recipes/mtnt_lora.py", "--model", model, "--eval-limit", "6", "--eval-steps", "4"]
    mtnt += ["--output-dir", str(runs / "mtnt"), "--max-steps", "8"]
    ft = [sys.executable, "-m", "ft"]
    todo = {
        "mtnt_lora": [sys.executable, *mtnt, "--overwrite-output-dir"],
        "ft translate": [*ft, "translate", str(runs / "mtnt"), "hello my friend"],
        "mtnt_lora of Gemma 4": [sys.executable, "recipes/mtnt_lora.py", "--model"]
        + [str(WORK / "gemma4_text"), "--eval-limit", "4", "--max-steps", "6"]
        + ["--output-dir", str(runs / "gemma4"), "--overwrite-output-dir"],
        "ft merge": [*ft, "merge", str(runs / "mtnt"), str(runs / "merged")],
        "preference": [sys.executable, *preference, "--overwrite-output-dir"],
    }
    for name, command in todo.items():
        if left() < 10:
            return say(f"{name}: no time left")
        start = time.perf_counter()
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, cwd=ROOT, timeout=max(5, left() - 3)
            )
        except subprocess.TimeoutExpired:
            return say(f"{name}: not done after {time.perf_counter() - start:.0f} s")
        print(f"== {name}\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}", file=sys.stderr)
        for line in done.stdout.splitlines():
            if line.startswith(TOLD):
                say("  ", line[:300])
        last = (done.stderr if done.returncode else done.stdout).strip().splitlines()[-1:]
        good = "FAILED" if done.returncode else "ok"
        say(f"{good} {name}: {time.perf_counter() - start:.1f} s; {''.join(last)[:250]}")
    for file in sorted(runs.glob("*/run.json")):
        t = json.loads(file.read_text()).get("training", {})
        kept = {k: t.get(k) for k in ("tokens_per_second", "mfu", "start_loss", "eval_loss")}
        say(file.parent.name, kept)


def preferences() -> None:
    """Steps of DPO by ft and by TRL's own trainer; not of the parts that run unasked."""
    if not GPU:
        return say("preferences: on a GPU alone")
    command = [sys.executable, str(ROOT / "benchmarks/gpu_preferences.py"), "--rounds", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, timeout=max(5, left() - 3)
    )
    say(done.stdout if done.returncode == 0 else f"FAILED preferences: {done.stderr[-600:]}")


PARTS = {  # and the seconds that each may take
    "env": (env, 25),
    "steps": (trainers.steps, 95),
    "step": (steps_alone.step, 55),
    "attention": (steps_alone.attention, 15),
    "kernels": (kernels, 25),
    "parity": (numbers_agree.parity, 60),
    "decode": (decode, 35),
    "recipe": (recipe, 70),
    "preferences": (preferences, 120),
    "_numbers": (numbers_agree.of_this_device, 120),
}


def alive() -> bool:
    """Whether the device still answers: after some faults nothing in this process can use it."""
    try:
        sync()
    except Exception as error:
        failed("the device", error)
        return False
    return True


def main() -> None:
    """Run the parts that are named, each to its end or its failure; status 3 if the rest needs another process."""
    WORK.mkdir(parents=True, exist_ok=True)
    slow = float(os.environ.get("SLOW", "1" if GPU else "10"))
    for name in sys.argv[1:]:
        run, seconds = PARTS[name]
        start, seconds = time.perf_counter(), begin(seconds * slow)
        if not name.startswith("_"):
            if seconds < 8:
                say(f"## {name}: no time left")
                continue
            say(f"## {name} (at most {seconds:.0f} s)")
            print(f"## {name}", file=sys.stderr, flush=True)
            with (WORK / "begun").open("a") as begun:
                begun.write(f"{name}\n")
            faulthandler.dump_traceback_later(seconds + 5, exit=True)  # the next process goes on
        try:
            run()
        except Exception as error:
            failed(name, error)
        faulthandler.cancel_dump_traceback_later()
        if not name.startswith("_"):
            say(f"({name}: {time.perf_counter() - start:.0f} s on {DEV})")
        if not alive():
            sys.exit(3)
        clean()


if __name__ == "__main__":
    main()
