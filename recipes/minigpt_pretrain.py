"""A small GPT learns to write from nothing: pretraining on streamed text, one visible loop.

accelerate launch recipes/minigpt_pretrain.py                                    a laptop, offline
accelerate launch recipes/minigpt_pretrain.py --preset modern --data PATH/TO/WIKITEXT --vocab-size 8000
accelerate launch recipes/minigpt_pretrain.py --preset book --data "hub:allenai/c4/en"      a GPU (not run yet)
accelerate launch --num_processes 4 recipes/minigpt_pretrain.py --preset book --data "c4/*.jsonl.gz"

Hardware  two CPU cores for the defaults; a GPU for the presets at full length
Time      five minutes of training steps with the defaults (--max-minutes), 5 min 24 s in all
Memory    16 bytes a parameter, and the activations of a batch (`peak_memory_bytes` in run.json)
Score     15 minutes on WikiText-2: 3.58 -> 1.88 bits per byte (modern), 3.59 -> 2.13 (book); benchmarks/README.md
Data      the Python standard library's documentation, or --data: files, folders, globs, hub:owner/name
Source    Chollet & Watson, Deep Learning with Python, 3rd edition, chapter 16: --preset book
"""

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ft import config, machine, plan
from ft.config import Amount, Count
from ft.data import corpus, shards
from ft.data import tokenizer as tokenizers
from ft.data.rows import Rows
from ft.errors import UserError
from ft.runs import folder, record
from ft.text import prompts
from ft.train import optim, pretraining

STYLE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
FULL = {"vocab_size": 32_000, "per_device_train_batch_size": 64, "max_minutes": None}
FULL |= {"max_steps": 58_246, "eval_steps": 7_280, "save_steps": 1_000, "valid_tokens": 2**17}


# of the settings that may differ where a run goes on, those that only this recipe has
MAY_CHANGE = record.MAY_CHANGE | {"workers", "logging_steps", "valid_tokens", "prompt"}


@dataclass(frozen=True)
class Config:
    # Model
    style: Literal["book", "modern"] = "modern"  # post-norm, ReLU; or pre-norm, RoPE, gated
    hidden_size: int = 256  # width
    intermediate_size: int | None = None  # of the feed-forward; none: 4 times, modern 8/3 times
    num_hidden_layers: int = 4  # blocks
    num_attention_heads: int = 4  # of width / heads each
    max_length: Count = 256  # tokens of a window, and positions of the model
    dropout: float = 0.0  # of attention weights and of what each half of a block adds

    # Text
    data: tuple[str, ...] = ("builtin",)  # files, folders, globs, hub:owner/name, or builtin
    valid_data: tuple[
        str, ...
    ] = ()  # to validate on; empty: files named valid…, or every 20th document
    text_field: str = "text"  # of jsonl and the Hub; several as a+b
    on_bad_row: Literal["error", "skip", "replace"] = "error"  # a row that cannot be read
    tokenizer: str = (
        "train"  # a folder or Hub id; train: made of the training text, kept in the cache
    )
    vocab_size: int = 4096  # of a tokenizer that is made
    shuffle_buffer: int = 2048  # windows that are shuffled at a time
    token_cache: Path | None = None  # folder for ids tokenised once and mapped into memory
    workers: int = 1  # processes that tokenise, for each process that trains
    valid_tokens: Count = 2**15  # of the validation text

    # Optimisation
    optim: Literal["adamw", "muon"] = "adamw"  # muon: of the blocks' matrices; AdamW of the rest
    learning_rate: Amount = 2e-3  # at the top of the schedule
    lr_scheduler_type: pretraining.Schedule = "cosine"  # after the warm-up, to 0
    warmup_steps: int = 100  # optimizer steps until the top
    weight_decay: float = 0.1  # of matrices; embeddings, norms and biases never decay
    adam_beta2: float = 0.95  # of AdamW
    max_grad_norm: float = 1.0  # longer gradients are scaled down to it
    max_steps: Count = 10**6  # optimizer steps at most
    max_minutes: Amount | None = (
        5.0  # of training steps at most, validation not counted; none: no limit, and going on is exact
    )
    per_device_train_batch_size: Count = 16  # windows, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    precision: Literal["auto", "fp32", "bf16"] = (
        "auto"  # of products; auto: bf16 where the hardware has it
    )
    torch_compile: Literal["auto", "yes", "no"] = "auto"  # auto: on a GPU; on a CPU it did not pay

    # Run
    output_dir: Path = Path("runs/minigpt")  # model, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    logging_steps: Count = 10  # optimizer steps that one line of metrics.jsonl is the mean of
    eval_steps: Count = 100  # optimizer steps between validations
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    save_steps: Count = 200  # optimizer steps between checkpoints
    seed: int = 42  # of weights, order, dropout and samples
    prompt: str = "This function"  # continued at every validation

    PRESETS: ClassVar = {
        "book": STYLE
        | FULL
        | {
            "style": "book",
            "intermediate_size": 2056,
            "dropout": 0.1,
            "learning_rate": 2e-4,
            "lr_scheduler_type": "constant",
            "warmup_steps": 1_000,
            "weight_decay": 0.0,
            "adam_beta2": 0.999,
            "prompt": "A piece of advice",
        },
        "modern": STYLE | FULL | {"intermediate_size": 1376, "prompt": "A piece of advice"},
    }

    def check(self) -> Iterator[str]:
        if not 0 <= self.dropout < 1:
            yield f"dropout {self.dropout} must be from 0 to below 1"


def sources(c: Config) -> dict[str, list[str]]:
    """What to train on, and what to validate on."""
    train, valid = (c.data, c.valid_data) if c.valid_data else shards.split(c.data)
    return {"train": list(train), "valid": list(valid)}


def rows(c: Config) -> dict[str, Rows]:
    """The shards of each split, a row each. Needs no model, so `ft check` runs it in a moment."""
    found = {}
    for split, text in sources(c).items():
        names = [{"shard": shard.name, "part": shard.part} for shard in shards.find(text)]
        found[split] = Rows(
            names, ", ".join(text), pretraining.digest(shards.hashes(shards.find(text)))
        )
    return found


def main(c: Config) -> None:
    # What can be wrong without a model is found before torch is imported, and nothing is written
    # before text and model are known to be good.
    machine.check_not_sharded("the loop asks the model itself, and it is small")
    target, splits = plan.checked(c, rows, None, __file__, **config.pick(c, plan.checked))
    texts = sources(c)

    import numpy as np
    import torch
    from accelerate import Accelerator
    from accelerate.utils import gather_object, set_seed

    from ft import minigpt
    from ft.generate import answers, samplers
    from ft.runs import curves, hub
    from ft.score import likelihood

    machine.say(machine.use_all_cores())
    on, gpu = machine.here(), torch.cuda.is_available()
    able = on.bf16 and (gpu or on.device == "cpu")
    half = c.precision == "bf16" or (c.precision == "auto" and able)
    machine.say(f"products in {'bf16' if half else 'fp32'} on {on.name}")
    accelerator = Accelerator(mixed_precision="bf16" if half else "no", cpu=not gpu)
    with accelerator.local_main_process_first():
        tokenizer = load_tokenizer(c)
    read: Any = {"text_field": c.text_field, "on_bad_row": c.on_bad_row}
    fixed, size = corpus.validation(texts["valid"], tokenizer, c.max_length, c.valid_tokens, **read)
    prompt = [tokenizer.eos_token_id, *tokenizer(c.prompt, add_special_tokens=False)["input_ids"]]
    if len(prompt) >= c.max_length:
        raise UserError(f"the prompt fills the window of {c.max_length} tokens; shorten --prompt")

    set_seed(c.seed)
    model = minigpt.MiniGPTForCausalLM(shape(c, tokenizer)).to(accelerator.device)
    machine.say(f"{c.style}, {model.num_parameters():,} parameters, {len(tokenizer):,} pieces")
    options: Any = {"learning_rate": c.learning_rate, "weight_decay": c.weight_decay}
    options |= {"betas": (0.9, c.adam_beta2)}
    muon = c.optim == "muon"
    optimizers = optim.muon(model, **options) if muon else [optim.create(model, "adamw", **options)]
    torch.set_float32_matmul_precision("high" if gpu else "highest")
    compiled = c.torch_compile == "yes" or (c.torch_compile == "auto" and gpu)
    wrapped = accelerator.prepare(torch.compile(model) if compiled else model)
    read |= {
        "length": c.max_length,
        "seed": c.seed,
        "process_index": accelerator.process_index,
        "num_processes": accelerator.num_processes,
        "cache": c.token_cache,
    }
    # one window, to see that there is one for each process
    next(iter(corpus.windows(texts["train"], tokenizer, shuffle_buffer=0, workers=0, **read)))
    read |= {"shuffle_buffer": c.shuffle_buffer, "workers": c.workers}
    windows = corpus.windows(texts["train"], tokenizer, **read)
    r = record.begin(
        target, recipe=__file__, config_yaml=config.to_repeat(c), seed=c.seed, task="pretraining"
    )
    may_change = MAY_CHANGE - {"data", "valid_data"}  # which are read as a stream, and have no hash
    same = {k: v for k, v in config.to_dict(c).items() if k not in may_change}
    same |= machine.launched() | {"recipe": r.record["recipe_sha256"]}
    checkpoint, done = folder.go_on(r, c.resume_from_checkpoint, same), {}
    if checkpoint:
        done = pretraining.restore(checkpoint, model=model, optimizers=optimizers)
        windows.load_state_dict(done["windows"][accelerator.process_index])
        r.rewind(done["step"])
        machine.say(f"resumed after step {done['step']}")
    r.note(
        model={
            "style": c.style,
            "parameters": model.num_parameters(),
            "vocabulary": len(tokenizer),
            "precision": "bf16" if half else "fp32",
        },
        lora={},
        template=asdict(prompts.INSTRUCTION["plain"]),
        data={
            name: {"origin": part.origin, "sha256": part.sha256} for name, part in splits.items()
        },
    )
    batch_size, batches = c.per_device_train_batch_size, c.gradient_accumulation_steps
    meter = pretraining.Meter(
        accelerator,
        r,
        step_tokens=batch_size * batches * accelerator.num_processes * c.max_length,
        flops=model.config.flops_per_token(c.max_length),
        max_steps=c.max_steps,
        max_minutes=c.max_minutes,
        step=done.get("step", 0),
        seconds=done.get("seconds", 0.0),
        best=done.get("best"),
    )

    def validate() -> dict[str, float]:
        meter.measure_peak()
        found = likelihood.of_windows(
            model, fixed, size, batch_size=batch_size, autocast=lambda: accelerator.autocast()
        )
        sampler, most = samplers.TopK(40, temperature=0.8), min(64, c.max_length - len(prompt))
        ((answer,),) = answers.generate(
            model, tokenizer, [prompt], sampler, max_new_tokens=most, seed=c.seed
        )
        r.log({"step": meter.step, **asdict(found), "sample": c.prompt + answer.text})
        meter.bar.clear()
        at = f"STEP {meter.step} training loss: {meter.mean:.4f} -" if meter.step else "Start,"
        machine.say(f"{at} {found}\n  {c.prompt}{answer.text}")
        return asdict(found)

    def save() -> None:
        states = gather_object([windows.state_dict()])  # of each process
        done = {"step": meter.step, "seconds": meter.seconds, "windows": states, "best": meter.best}
        if accelerator.is_main_process:
            pretraining.save(
                r.folder, model=model, optimizers=optimizers, done=done, made_with=same
            )
        accelerator.wait_for_everyone()

    stream = iter(windows)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    with folder.signals(meter.asked), meter:
        found = {} if meter.step else validate()
        while not meter.over:
            meter.begin()
            # of seed and step alone: a run that goes on drops what it would have dropped
            drop = (c.seed << 40) + (meter.step << 16) + accelerator.process_index
            torch.manual_seed(drop % 2**63)
            rate = pretraining.rate(
                meter.step,
                meter.progress,
                peak=c.learning_rate,
                warmup_steps=c.warmup_steps,
                schedule=c.lr_scheduler_type,
            )
            for group in groups:
                group["lr"] = rate
            total = torch.zeros((), device=accelerator.device)
            for turn in range(batches):
                ids = torch.from_numpy(np.stack([next(stream) for _ in range(batch_size)]))
                ids = ids.to(accelerator.device, non_blocking=True)  # [B, T + 1]
                last = turn == batches - 1  # only then processes add their gradients up
                with contextlib.nullcontext() if last else accelerator.no_sync(wrapped):
                    loss = wrapped(ids[:, :-1], shift_labels=ids[:, 1:]).loss / batches
                    accelerator.backward(loss)
                total += loss.detach()
            norm: Any = accelerator.clip_grad_norm_(model.parameters(), c.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            meter.end(total)
            judge, keep = (meter.over or not meter.step % n for n in (c.eval_steps, c.save_steps))
            if judge or keep or not meter.step % c.logging_steps:
                meter.log(learning_rate=rate, grad_norm=float(norm))
            if judge and meter.signal is None:
                found = validate()
                keep |= c.keep == "best" and meter.better(found)
            if keep:
                save()
    if meter.signal is not None:
        machine.say(f"stopped by {signal.Signals(meter.signal).name}; go on with --resume last")
        raise SystemExit(128 + meter.signal)

    if (kept := meter.best) and kept["step"] != meter.step:
        pretraining.restore(r.folder / f"checkpoint-{kept['step']}", model=model)
        machine.say(f"kept: step {kept['step']} of {meter.step}, by its validation loss")
    if accelerator.is_main_process:
        with folder.adopted(r, ".model") as made:
            model.save_pretrained(made)
            tokenizer.save_pretrained(made)
    samples = [(line["step"], line["sample"]) for line in r.metrics() if "sample" in line]
    r.write("samples.txt", "".join(f"step {step}\n{text}\n\n" for step, text in samples))
    kept = {"kept_step": kept.get("step", meter.step)}
    r.note(training={"steps": meter.step, **kept, **meter.figures(), **found})
    curves.curve(r.folder)
    curves.learning_rate(r.folder)
    record.close(r)
    r.write("README.md", hub.card(r.folder))
    machine.say(f"\nmodel, card and curves: {r.folder}")


def load_tokenizer(c: Config) -> Any:
    """The tokenizer that is named, or one made of the training text."""
    if c.tokenizer != "train":
        return tokenizers.load(c.tokenizer)
    read: Any = {"text_field": c.text_field, "on_bad_row": c.on_bad_row}
    return tokenizers.make(sources(c)["train"], vocab_size=c.vocab_size, **read)


def shape(c: Config, tokenizer: Any) -> Any:
    """The model's configuration."""
    from ft.minigpt import MODERN, MiniGPTConfig

    modern = c.style == "modern"
    inner = c.intermediate_size or round((8 / 3 if modern else 4) * c.hidden_size / 32) * 32
    return MiniGPTConfig(
        **(MODERN if modern else {})
        | {
            "vocab_size": len(tokenizer),
            "hidden_size": c.hidden_size,
            "intermediate_size": inner,
            "num_hidden_layers": c.num_hidden_layers,
            "num_attention_heads": c.num_attention_heads,
            "max_position_embeddings": c.max_length,
            "dropout": c.dropout,
            "attention_dropout": c.dropout,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )


if __name__ == "__main__":
    config.run(main, Config, __doc__)
