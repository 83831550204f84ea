"""Gemma goes on reading: continued pretraining with LoRA on plain text of your own.

accelerate launch recipes/text_lora.py                                    a laptop, offline: Python's own prose
accelerate launch recipes/text_lora.py --data notes/                      a folder of .txt, .md, .jsonl, each also .gz
accelerate launch recipes/text_lora.py --data papers.jsonl,wiki.parquet=0.3 --text-field body
accelerate launch recipes/text_lora.py --model google/gemma-2b            QLoRA on one GPU

Hardware  two CPU cores and no GPU for Gemma 3 270M; a GPU for larger ones in 4 bits (not run yet)
Time      13 minutes for --max-steps 40 --valid-rows 20 --test-rows 20 (20,525 tokens) on one busy CPU core
Memory    2.2 GiB at the peak of these steps and the evaluation (bf16; planned 2.3)
Score     1.23 [1.09, 1.42] -> 1.06 [0.93, 1.23] bits per byte of 20 held-out documents (p 0.001)
Data      text files, tables with a column of text, folders, the Hub, or `builtin`, what Python says of itself
Source    continued pretraining, Gururangan et al. 2020 https://arxiv.org/abs/2004.10964; LoRA
          https://arxiv.org/abs/2106.09685
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.data import texts
from ft.machine import say
from ft.text import Template, documents
from ft.text.documents import encode as encode  # `ft show` looks at windows with it


@dataclass(frozen=True)
class Config:
    # Base model
    model_name_or_path: str = "embedded"  # Hub id, folder, or `embedded` (Gemma 3 270M, PyPI)
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # of the base; auto: by the hardware
    backend: Literal["auto", "transformers", "unsloth"] = "auto"  # what loads the base

    # Adapter
    lora_r: Count = 16  # rank of the update
    lora_alpha: Amount = 32  # the update is scaled by alpha / r
    lora_dropout: float = 0.0  # share of the update's inputs zeroed while training
    lora_target_modules: tuple[str, ...] = ("auto",)  # auto: the language model's linear layers
    lora_variant: Literal["lora", "rslora", "dora"] = "lora"  # rslora: scaled by alpha / sqrt(r)

    # Data
    data: str = (
        "builtin"  # files, folders, hub:owner/name; a,b=0.3: mixed, 3 in 10 documents are b's
    )
    test_data: str | None = None  # documents to judge by, of the same kinds; none: drawn from data
    text_field: str = "text"  # of a row: where its text stands
    max_rows: Count | None = (
        None  # documents in all, drawn by seed and held-out ones among them; none: all
    )
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_length: Count = 512  # tokens of a window; a longer document is cut into several
    valid_rows: Count | None = None  # held out, their loss is watched; none: a tenth, at most 50
    test_rows: Count | None = None  # held out, base and tuned are judged by them; none: likewise

    # Optimisation
    learning_rate: Amount = 2e-4  # at the top of the schedule
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"  # after the warm-up, to 0
    warmup_ratio: float = 0.05  # share of the steps until the top
    # 8bit: AdamW's states in a quarter of the memory; paged: moved to RAM where the GPU is full
    optim: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    num_train_epochs: Amount = 1.0  # passes over the training windows
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs
    per_device_train_batch_size: Count = 8  # windows, not rows, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    # recompute activations (slower); offload: from inputs in RAM. None: if needed
    gradient_checkpointing: bool | Literal["offload"] | None = None

    # Run
    output_dir: Path = Path("runs/text_lora")  # adapter, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    # optimizer steps between validations, each with a checkpoint. None: a tenth, at least 30
    eval_steps: Count | None = None
    accept_loss: bool = False  # train although the first loss says that model and data do not fit
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    early_stopping_patience: Count | None = None  # validations without a better one, then it ends
    max_new_tokens: Count = 60  # that base and tuned go on with, at the end
    seed: int = 42  # of held-out documents, adapter, order and bootstrap
    report_to: str = "none"  # tensorboard, trackio or wandb
    push_to_hub: str | None = None  # repository to publish the adapter in at the end (private)


def rows(c: Config) -> dict[str, data.Rows]:
    """The documents of each split. Needs no model, so `ft check` runs it in a moment."""
    return texts.splits(**config.pick(c, texts.splits))


def template(c: Config, _: Any = None) -> Template:
    """Text as it is: what is asked is gone on from."""
    return documents.TEMPLATE


def main(c: Config) -> None:
    options = config.pick(c, plan.checked)
    target, splits = plan.checked(c, rows, template, __file__, encode=encode, **options)
    t = template(c)

    say(machine.use_all_cores())
    base = models.load(
        c.model_name_or_path, precision=c.precision, backend=c.backend, max_length=c.max_length
    )
    say("\n".join(base.notes))
    machine.seed_everything(c.seed)
    model = models.attach_lora(
        base,
        r=c.lora_r,
        alpha=c.lora_alpha,
        dropout=c.lora_dropout,
        targets=c.lora_target_modules,
        variant=c.lora_variant,
    )
    say(models.summary(model))
    splits, encoded = text.encode_splits(
        splits, t, base.tokenizer, max_length=c.max_length, encode=encode
    )
    r = runs.start(
        target,
        recipe=__file__,
        config=c,
        task="text",
        base=base,
        model=model,
        template=t,
        splits=splits,
        encoded=encoded,
        plan=plan.of_run(config.to_dict(c), base, encoded["train"]),
    )

    trained = train.sft(
        model,
        base.tokenizer,
        encoded["train"].examples,
        run=r,
        validate=lambda: score.loss(model, encoded["valid"].examples),
        **config.pick(c, train.sft),
    )
    r.note(training=asdict(trained))
    result = score.documents.before_after(
        model,
        base.tokenizer,
        t,
        splits["test"],
        max_length=c.max_length,
        max_new_tokens=c.max_new_tokens,
    )
    runs.finish(r, test=result, push_to_hub=c.push_to_hub)
    say(f'try it: ft generate {r.folder} "Once upon a time"')


if __name__ == "__main__":
    config.run(main, Config, __doc__)
