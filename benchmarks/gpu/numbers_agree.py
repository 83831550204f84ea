"""Small steps of LoRA on the GPU, launched and as graphs, against the same on this machine's CPU."""

import functools
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from common import DEV, GPU, KINDS, autocast_of, left, rows_of, say, small

# how far logits of answers may be apart by another order of sums, by whether they are in fp32
CLOSE = {True: 1e-4, False: 5e-2}
CHECK = Path(__file__).with_name("check.py")


def of_this_device() -> None:
    """Losses and gradient norms of this process's device, as JSON."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        for precision in ("fp32", "bf16", "nf4"):
            try:
                found[f"{kind} {precision}"] = _one(kind, precision)
            except Exception as error:
                found[f"{kind} {precision}"] = {"error": f"{type(error).__name__}: {error}"[:300]}
                traceback.print_exc()
    print("JSON" + json.dumps(found))


def _one(kind: str, precision: str) -> dict[str, Any]:
    import torch
    from common import WORK
    from support.replayed import Replayed

    from ft.generate.answers import generate
    from ft.kernels import cross_entropy
    from ft.models import load, lora
    from ft.score import likelihood
    from ft.text import batches, row_inputs
    from ft.train import graph_room, graphed, graphs

    torch.set_num_threads(8 if GPU else 1)
    rows = [r for r in rows_of("dolly", 60, 400) if 20 < len(r["input_ids"]) < 300][:6]
    base = load(str(WORK / kind), precision=precision)
    model, device = lora.attach(base, r=8, alpha=16), base.model.device
    cross_entropy.install(model.get_base_model())
    generator = torch.Generator().manual_seed(1)
    for _, p in sorted(model.named_parameters()):
        if p.requires_grad:
            p.data.copy_(torch.randn(p.shape, generator=generator) * 0.05)
    model.train()
    row = row_inputs.of(batches.packed_row(rows), 8)
    share = {"share": torch.tensor(1 / len(row["targets"]))}
    total, lines = torch.zeros((), device=device), []

    autocast = autocast_of(model)

    def run(inputs: Any) -> None:
        given = dict(inputs)
        share = given.pop("share")
        with autocast():
            part = model(**given)["loss"] * share
        back(part)

    def back(part: Any) -> None:
        part.backward()
        total.add_(part.detach())

    def norm() -> float:
        norms = [p.grad.double().norm() for p in model.parameters() if p.grad is not None]
        return torch.stack(norms).norm().item()

    def place(given: dict) -> dict:
        return {k: x.to(device) if hasattr(x, "to") else x for k, x in given.items()}

    run(place(row | share))
    found = {"loss": total.item(), "norm": norm(), "attention": base.attention}
    make = graph_room.CudaGraph if device.type == "cuda" else Replayed
    way = graphs.Graphs(
        *graphed.halves(model, autocast, back), model.parameters(), lines.append, make=make
    )
    for _ in range(3):
        model.zero_grad()
        total.zero_()
        way(place(row_inputs.padded(row) | share))
    found |= {
        "graph loss": total.item(),
        "graph norm": norm(),
        "graphs": len(way.rows),
        "said": lines,
    }
    model.zero_grad()
    pad = base.tokenizer.pad_token_id
    found["packed"] = likelihood.loss(model, rows)
    padded = functools.partial(batches.padded_batch, pad=pad)
    found["padded"] = likelihood.loss(model, rows, batch=padded)
    found["steps"] = _steps(model, make)
    if precision == "fp32":
        prompts = [[2, 50, 60, 70], [2, 80]]
        answers = generate(model, base.tokenizer, prompts, max_new_tokens=12)
        found["ids"] = [list(a.ids) for (a,) in answers]
    return found


def _steps(model: Any, make: Any) -> float:
    """How far logits of steps with keys and values at fixed places, as a graph, are from those of a growing cache."""
    import torch

    from ft.generate.decoding import Decoder
    from ft.generate.together import evaluating

    texts, worst = [[2, *range(50, 90)], [2, 80, 81]], 0.0
    with torch.no_grad(), evaluating(model):
        both = [Decoder(model, texts, 0, room=n, make_graph=make) for n in (0, 9)]
        for step in range(6):
            for decoder in both:
                decoder.step(torch.tensor([40, 50], device=decoder.logits.device) + step)
            grown, fixed = (decoder.logits.float() for decoder in both)
            worst = max(worst, ((fixed - grown).norm() / grown.norm()).item())
    return worst


def parity() -> None:
    """A line of each kind and precision: how far the two devices, and plain and graph, are apart."""
    small()
    both: dict[str, dict] = {}
    running = {}
    for name, visible in (("cpu", ""), (DEV, os.environ.get("CUDA_VISIBLE_DEVICES", "0"))):
        e = os.environ | {"CUDA_VISIBLE_DEVICES": visible, "DEV": name}
        pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running[name] = subprocess.Popen([sys.executable, str(CHECK), "_numbers"], env=e, **pipes)
    for name, process in running.items():
        try:
            out, err = process.communicate(timeout=max(5, left() - 2))
        except subprocess.TimeoutExpired:
            for other in running.values():
                other.kill()
            raise
        line = [x for x in out.splitlines() if x.startswith("JSON")]
        both[name] = json.loads(line[0][4:]) if line else {}
        if not line or "Traceback" in err:
            print(name, err[-6000:], file=sys.stderr)
    bad = 0
    for key, want in both["cpu"].items():
        got = both[DEV].get(key, {"error": "no answer"})
        if "error" in got or "error" in want:
            bad += 1
            say(f"FAILED {key}: {DEV} {got.get('error', 'ok')} | cpu {want.get('error', 'ok')}")
            continue
        off = {k: abs(got[k] / want[k] - 1) for k in ("loss", "norm", "packed", "padded")}
        apart = {k: abs(got[f"graph {k}"] / got[k] - 1) for k in ("loss", "norm")}
        exact = "fp32" in key  # in bf16 a gradient of so small a model goes with the order of sums
        limits = {"norm": 2e-4 if exact else 0.15}
        far = [
            v > limits.get(k, 2e-4 if exact else 2e-2) for k, v in (*off.items(), *apart.items())
        ]
        wrong = any(far) or got.get("ids") != want.get("ids") or got["steps"] > CLOSE[exact]
        bad += wrong
        say(
            f"{'WRONG' if wrong else 'ok'} {key} ({got['attention']}): loss {got['loss']:.5f}, off "
            + ", ".join(f"{k} {v:.1e}" for k, v in off.items())
            + f"; steps of answers {got['steps']:.1e}; graph against plain {apart['loss']:.1e} {apart['norm']:.1e}, graphs {got['graphs']} {' '.join(got['said'])[:250]}"
        )
    say(f"parity: {bad} of {len(both['cpu'])} wrong")
