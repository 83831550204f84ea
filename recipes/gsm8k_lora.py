"""Gemma learns to solve grade-school maths step by step: LoRA on GSM8K, then votes among sampled chains.

accelerate launch recipes/gsm8k_lora.py --data PATH/TO/GSM8K              a laptop, offline
accelerate launch recipes/gsm8k_lora.py                                   with GSM8K from the Hub
accelerate launch recipes/gsm8k_lora.py --model google/gemma-7b --eval-limit 1319      QLoRA on one GPU

At the end the base and the tuned model draw chains for test questions: how often is one right, the
majority of 4 (self-consistency), the most likely one of them, any of them? `ft eval RUN --n 16` draws
more, and `ft solve RUN "…"` lets them vote on a question of yours.

Hardware  two CPU cores and no GPU for Gemma 3 270M; a GPU for larger ones in 4 bits (not run yet)
Time      18 minutes on two CPU cores: 93 steps of 8 worked answers, then 4 chains for each of 25 questions
Memory    2.6 GiB at the peak (bf16; `peak_memory_bytes` in run.json)
Score     GSM8K test, 25 questions, 16 chains each: right in any 4 -> 24% [11, 43], by majority 4 -> 4% [1, 20],
          one chain 0.5 -> 1.5% [0, 16]; chains that end by themselves 24 -> 92% (benchmarks/README.md)
Data      Cobbe et al. 2021, https://github.com/openai/grade-school-math (MIT): a folder with
          train.jsonl and test.jsonl, or the Hub
Source    GSM8K https://arxiv.org/abs/2110.14168; self-consistency https://arxiv.org/abs/2203.11171
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.data import gsm8k
from ft.machine import say
from ft.runs import curves
from ft.score import reasoning
from ft.text import Template, prompts


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
    data: str = gsm8k.GSM8K  # a folder with train.jsonl and test.jsonl, or a dataset of the Hub
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_length: Count = 512  # tokens of a whole example
    length_policy: Literal["drop", "truncate", "error"] = "drop"  # what happens to a longer one
    valid_rows: Count | None = None  # held out, their loss is watched; none: a tenth, at most 100

    # Optimisation
    learning_rate: Amount = 3e-4  # at the top of the schedule
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up, to 0
    warmup_ratio: float = 0.05  # share of the steps until the top
    # 8bit: AdamW's states in a quarter of the memory; paged: moved to RAM where the GPU is full
    optim: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    num_train_epochs: Amount = 0.1  # passes over the training questions
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs
    per_device_train_batch_size: Count = 8  # examples, not rows, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    # recompute activations (slower); offload: from inputs in RAM. None: if needed
    gradient_checkpointing: bool | Literal["offload"] | None = None

    # Run
    output_dir: Path = Path("runs/gsm8k_lora")  # adapter, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    # optimizer steps between validations, each with a checkpoint. None: a tenth, at least 30
    eval_steps: Count | None = None
    accept_loss: bool = False  # train although the first loss says that model and data do not fit
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    early_stopping_patience: Count | None = None  # validations without a better one, then it ends
    eval_limit: Count | None = 25  # questions of the test split to solve at the end; none: all
    chains: Count = 4  # drawn for each of them; `ft eval` draws 16
    temperature: float = reasoning.TEMPERATURE  # that they are drawn at
    max_new_tokens: Count = 200  # of a chain; 1 of 50 worked answers is longer
    seed: int = 42  # of held-out questions, adapter, order and chains
    report_to: str = "none"  # tensorboard, trackio or wandb
    push_to_hub: str | None = None  # repository to publish the adapter in at the end (private)

    def check(self) -> Iterator[str]:
        if self.temperature <= 0:
            yield f"temperature: got {self.temperature}, must be above 0: chains have to differ"


def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split. Needs no model, so `ft check` runs it in a moment."""
    splits = gsm8k.splits(c.data, **config.pick(c, gsm8k.splits))
    if c.eval_limit:
        splits["test"] = splits["test"].head(c.eval_limit)
    return splits


def template(c: Config, _: Any = None) -> Template:
    """How a row reads; training, evaluation and `ft solve` all use this one."""
    return prompts.INSTRUCTION["steps"]


def main(c: Config) -> None:
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
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
        splits, t, base.tokenizer, max_length=c.max_length, policy=c.length_policy
    )
    r = runs.start(
        target,
        recipe=__file__,
        config=c,
        task="reasoning",
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
    result = reasoning.before_after(
        model,
        base.tokenizer,
        t,
        [splits["test"][i] for i in encoded["test"].rows],
        encoded["test"].examples,
        n=c.chains,
        temperature=c.temperature,
        seed=c.seed,
        max_new_tokens=c.max_new_tokens,
    )
    curves.accuracy(result.values, r.folder / "accuracy.png")
    runs.finish(r, test=result, push_to_hub=c.push_to_hub)
    say(f'try it: ft solve {r.folder} "A pen costs 3 dollars. How much do 12 pens cost?"')


if __name__ == "__main__":
    config.run(main, Config, __doc__)
