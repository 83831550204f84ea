"""The recipe's training on a tiny model, as a program: for tests that kill it or run two of it."""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from support import tiny
from support.replayed import Replayed
from support.waits import Steps
from transformers import TrainerCallback

from ft import machine, models, train
from ft.errors import exit_cleanly
from ft.kernels import attention, cross_entropy, recurrent
from ft.machine import is_main, seed_everything, use_all_cores
from ft.models import lora
from ft.runs import folder, lock, record
from ft.score import likelihood, translation
from ft.text import prompts, tokens


def examples(n: int, seed: int = 0) -> list[tokens.Example]:
    """Rows of 6 to 40 tokens, some of whose second half is supervised."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = int(torch.randint(6, 40, (1,), generator=generator))
        ids = [2, *torch.randint(6, 60, (length - 2,), generator=generator).tolist(), 1]
        made.append({"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]})
    return made


class Interrupt(TrainerCallback):
    """SIGTERM to the main process alone, after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_) -> None:
        if state.global_step == self.step and is_main():
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    """One run, or one after the other: ``--then`` stands between their flags."""
    machine.matrix_peak = functools.partial(machine.matrix_peak, seconds=0.0)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kind", default="gemma3_text")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--resume")
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--padded", action="store_true")
    parser.add_argument("--data-seed", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--full", action="store_true", help="train all parameters")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--graphs", action="store_true", help="rows as graphs, by a stand-in")
    parser.add_argument("--keep", default="last")
    parser.add_argument("--nf4", help="a model's folder: train on it in 4 bits")
    parser.add_argument("--interrupt", type=int, help="step to stop after, and then go on from")
    words = sys.argv[1:]
    ends = [i for i, word in enumerate(words) if word == "--then"]
    with exit_cleanly():
        for begin, end in itertools.pairwise([-1, *ends, len(words)]):
            a = vars(parser.parse_args(words[begin + 1 : end]))
            if step := a.pop("interrupt"):
                with contextlib.suppress(SystemExit):
                    go(**a, callbacks=[Interrupt(step)])
                a["resume"] = "last"
            go(**a)


def in_4_bits(place: str) -> Any:
    """The model in a folder as QLoRA has it, computing in fp32, so that one sum is like another."""
    plain = dataclasses.replace(machine.here(), bf16=False)
    with mock.patch.object(machine, "here", return_value=plain):
        return models.load(place, precision="nf4").model


def adapted(kind: str) -> Any:
    """A tiny model as training has it, with an adapter that changes what it says."""
    base = tiny.build(kind)
    attention.install(base)
    cross_entropy.install(base)
    torch.manual_seed(0)
    model = lora.attach(base, r=2, alpha=4)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05)
    return model


def go(
    out: Path,
    kind: str = "gemma3_text",
    batch: int = 4,
    accumulate: int = 1,
    epochs: float = 2,
    resume: str | None = None,
    rate: float = 1e-2,
    padded: bool = False,
    data_seed: int = 0,
    dropout: float = 0.0,
    checkpointing: bool = False,
    rows: int = 24,
    full: bool = False,
    judge: bool = False,
    nf4: str = "",
    overwrite: bool = False,
    graphs: bool = False,
    row_length: int = 64,
    eval_steps: int | None = 4,
    save_steps: int | None = 2,
    **options,
) -> train.Trained:
    """Train, save, and return what it cost."""
    use_all_cores()
    target = folder.Target(out, overwrite, resume)
    r = record.begin(target, recipe=__file__, config_yaml="{}\n", seed=0)
    seed_everything(0)
    base = in_4_bits(nf4) if nf4 else tiny.build(kind)
    cross_entropy.install(base)
    steps = Steps()
    if graphs:
        attention.install(base)
        options["make_graph"] = Replayed
        options["callbacks"] = [*options.get("callbacks", ()), steps]
    model = base if full else lora.attach(base, r=4, alpha=8, dropout=dropout)
    packing = not padded and recurrent.packs_exactly(model)
    valid = examples(6, seed=1)
    with steps.counted() if graphs else contextlib.nullcontext():
        trained = train.sft(
            model,
            tiny.tokenizer(),
            examples(rows, seed=data_seed),
            run=r,
            validate=lambda: likelihood.loss(model, valid),
            learning_rate=rate,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulate,
            packing=packing,
            row_length=row_length,
            gradient_checkpointing=checkpointing,
            eval_steps=eval_steps,
            save_steps=save_steps,
            resume_from_checkpoint=resume,
            fingerprint={"data": data_seed, "learning_rate": rate},
            **options,
        )
    r.note(training=vars(trained))
    shared = [hasattr(p, "full_tensor") for p in model.parameters()]
    r.note(shared={"found": sum(shared), "all": len(shared)})
    if graphs:
        r.note(replays=sum(graph.replays for graph in Replayed.made), waits=steps.of_each())
    lock.release(out)
    if judge:
        template = prompts.translation_of("en-fr")
        text = [{"source": "cat " * n, "target": "le chat"} for n in (1, 5, 9)]
        ask = {"source": "the cat sleeps"}
        r.note(
            judged=translation.before_after(
                model,
                tiny.tokenizer(),
                template,
                text,
                valid,
                ask=ask,
                max_new_tokens=5,
            ).values
        )
    return trained


if __name__ == "__main__":
    main()
