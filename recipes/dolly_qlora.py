"""Gemma learns to follow instructions: QLoRA on databricks-dolly-15k, or on your own conversations.

accelerate launch recipes/dolly_qlora.py                                  QLoRA of Gemma 7B on one GPU
accelerate launch recipes/dolly_qlora.py --preset laptop --data PATH/TO/DOLLY     a laptop, offline
accelerate launch recipes/dolly_qlora.py --preset book                    the book chapter's settings
accelerate launch recipes/dolly_qlora.py --data my_chats.jsonl --template chat
accelerate launch recipes/dolly_qlora.py --data mine.jsonl,hub:databricks/databricks-dolly-15k=0.3

Hardware  a GPU for Gemma 7B in 4 bits (`ft plan` tells what it needs; not run yet); two CPU cores for 270M
Time      20 minutes for the 250 steps of 4 of preset laptop, on two CPU cores which did other work as well
Memory    2.5 GiB at the peak of 40 steps (bf16; planned 2.4; `peak_memory_bytes` in run.json)
Score     preset laptop: ROUGE-L 8.6 -> 23.8, chrF 16.5 -> 27.4, answers that end by themselves 0% -> 74%
Data      databricks-dolly-15k (CC BY-SA 3.0); jsonl, json, csv or parquet with messages, conversations,
          prompt/completion, instruction/output or instruction/response; a dataset of the Hub
Source    F. Chollet, Deep Learning with Python, third edition (preset book); QLoRA
          https://arxiv.org/abs/2305.14314
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.data.instructions import DOLLY, readable
from ft.data.instructions import splits as drawn
from ft.machine import say
from ft.text import Template, prompts

ASK = {"instruction": "How can I make brownies?"}  # of base and tuned, at the end


@dataclass(frozen=True)
class Config:
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "laptop": {
            "model_name_or_path": "embedded",
            "max_steps": 250,
            "per_device_train_batch_size": 4,
            "max_length": 512,
            "eval_steps": 50,
            "early_stopping_patience": 3,
        },
        "book": {
            "model_name_or_path": "google/gemma-3-1b-pt",
            "template": "book",
            "no_context": True,
            "lora_r": 8,
            "lora_alpha": 8,
            "lora_target_modules": ("q_proj", "v_proj"),
            "learning_rate": 5e-5,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "optim": "adamw",
            "max_length": 512,
        },
    }

    # Base model
    model_name_or_path: str = "google/gemma-7b"  # Hub id, folder, or `embedded` (Gemma 3 270M)
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # of the base; auto: by the hardware
    backend: Literal["auto", "transformers", "unsloth"] = "auto"  # what loads the base
    # what packed rows go through; auto: the fastest that gives PyTorch's numbers (docs/hardware.md)
    attention: Literal["auto", "flash", "varlen", "flex_attention", "sdpa", "eager"] = "auto"

    # Adapter
    lora_r: Count = 16  # rank of the update
    lora_alpha: Amount = 32  # the update is scaled by alpha / r
    lora_dropout: float = 0.0  # share of the update's inputs zeroed while training
    lora_target_modules: tuple[str, ...] = ("auto",)  # auto: the language model's linear layers
    lora_variant: Literal["lora", "rslora", "dora"] = "lora"  # rslora: scaled by alpha / sqrt(r)

    # Data
    data: str = DOLLY  # file, folder, Hub id; a.jsonl,b.parquet=0.3: mixed, 3 in 10 rows are b's
    max_rows: Count | None = (
        None  # rows in all, drawn by seed and held-out ones among them; none: all
    )
    categories: tuple[str, ...] = ()  # only these categories of Dolly; none: all
    no_context: bool = False  # only rows without a text to read
    template: str = "dolly"  # book, dolly, alpaca, plain, a YAML file; chat: turns of an -it model
    ignore_fields: tuple[str, ...] = ()  # system, context: left out where the template lacks them
    allow_stop_in_answer: bool = False  # learn answers that hold the template's stop string
    enable_thinking: bool = False  # the model's chat template asks for thoughts, in use too
    supervise_thinking: bool = True  # learn thoughts (reasoning_content), not only what follows
    drop_duplicates: bool = False  # also training rows that ask what a held-out row asks
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_length: Count = 1024  # tokens of a whole example
    length_policy: Literal["drop", "truncate", "error"] = "drop"  # what happens to a longer one
    valid_rows: Count | None = None  # held out, their loss is watched; none: a tenth, at most 100
    test_rows: Count | None = None  # held out, answered before and after; none: likewise

    # Optimisation
    learning_rate: Amount = 2e-4  # at the top of the schedule
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "cosine"  # after the warm-up, to 0
    warmup_ratio: float = 0.03  # share of the steps until the top
    optim: Literal["auto", "adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "auto"  # auto: adamw
    num_train_epochs: Amount = 1.0  # passes over the training rows
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs
    per_device_train_batch_size: Count = 8  # examples, not rows, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    # recompute activations (slower); offload: from inputs in RAM. None: if needed
    gradient_checkpointing: bool | Literal["offload"] | None = None

    # Run
    output_dir: Path = Path("runs/dolly_qlora")  # adapter, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    # optimizer steps between validations, each with a checkpoint. None: a tenth, at least 30
    eval_steps: Count | None = None
    accept_loss: bool = False  # train although the first loss says that model and data do not fit
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    best_by: Literal["loss", "rouge", "chrf"] = "loss"  # of the validation rows; scores: of answers
    early_stopping_patience: Count | None = None  # validations without a better one, then it ends
    max_new_tokens: Count = 256  # of an answer at the end
    seed: int = 42  # of held-out rows, adapter, order and bootstrap
    report_to: str = "none"  # tensorboard, trackio or wandb
    push_to_hub: str | None = None  # repository to publish the adapter in at the end (private)


def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split, which the template can read. Needs no model, so `ft check` runs it in a moment."""
    splits = drawn(c.data, **config.pick(c, drawn))
    # what the template has no place for is found before a model loads
    t = prompts.without_tokenizer(c.template, c.ignore_fields)
    allow = c.allow_stop_in_answer
    return readable(splits, t, allow_stop_in_answer=allow)


def template(c: Config, tokenizer: Any) -> Template:
    """How a row reads; training, evaluation, chat and the card all use this one."""
    return prompts.by_name(c.template, tokenizer, **config.pick(c, prompts.by_name))


def main(c: Config) -> None:
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))

    say(machine.use_all_cores())
    base = models.load(c.model_name_or_path, **config.pick(c, models.load))
    say("\n".join(base.notes))
    t = template(c, base.tokenizer)
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
    options: dict[str, Any] = {"max_length": c.max_length, "policy": c.length_policy}
    options |= {"supervise_thinking": c.supervise_thinking}
    splits, encoded = text.encode_splits(splits, t, base.tokenizer, **options)
    r = runs.start(
        target,
        recipe=__file__,
        config=c,
        task="instructions",
        base=base,
        model=model,
        template=t,
        splits=splits,
        encoded=encoded,
        plan=plan.of_run(config.to_dict(c), base, encoded["train"]),
    )

    watched = (model, base.tokenizer, t, splits["valid"])
    trained = train.sft(
        model,
        base.tokenizer,
        encoded["train"].examples,
        run=r,
        validate=lambda: score.loss(model, encoded["valid"].examples),
        scores=lambda: score.instructions.watched(*watched, max_new_tokens=c.max_new_tokens),
        **config.pick(c, train.sft),
    )
    r.note(training=asdict(trained))
    result = score.instructions.before_after(
        *(model, base.tokenizer, t, [splits["test"][i] for i in encoded["test"].rows]),
        encoded["test"].examples,
        ask=ASK,
        max_new_tokens=c.max_new_tokens,
    )
    runs.finish(r, test=result, push_to_hub=c.push_to_hub)
    say(f"try it: ft chat {r.folder}")


if __name__ == "__main__":
    config.run(main, Config, __doc__)
