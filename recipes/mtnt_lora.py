"""Gemma learns to translate noisy English into French: LoRA or QLoRA on MTNT.

accelerate launch recipes/mtnt_lora.py                                    a laptop, offline
accelerate launch recipes/mtnt_lora.py --data PATH/TO/MTNT                real data
accelerate launch recipes/mtnt_lora.py --data my.tsv --language-pair en-de   your own (docs/data.md)
accelerate launch recipes/mtnt_lora.py --model google/gemma-2b-it         QLoRA on one GPU
accelerate launch --config_file accelerate_config.yaml recipes/mtnt_lora.py --model google/gemma-7b

Hardware  two CPU cores and no GPU for Gemma 3 270M; a GPU for larger ones in 4 bits (not run yet)
Time      16 minutes for 363 steps of 8 MTNT examples on two CPU cores; for the bundled sample, scores and all, 6 with AVX512 and 8 and a half with AVX2
Memory    2.2 GiB at the peak of these steps, 2.4 with the evaluation (bf16; in fp32 2.9 on the sample; `peak_memory_bytes` in run.json)
Score     chrF 45.8, BLEU 21.8 on all of MTNT test by beams; greedy 14.5 -> 41.9, 1.7 -> 18.1 (benchmarks/README.md)
Data      Michel & Neubig 2018, https://github.com/pmichel31415/mtnt; a bundled sample without --data
Source    google-deepmind/gemma, colabs/fine_tuning.ipynb; LoRA https://arxiv.org/abs/2106.09685
"""

import functools
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.machine import say
from ft.text import Template, prompts

ASK = {"source": "Hello, my name is Morgane."}  # of base and tuned, at the end


@dataclass(frozen=True)
class Config:
    # Base model
    model_name_or_path: str = "embedded"  # Hub id, folder, or `embedded` (Gemma 3 270M, PyPI)
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # of the base; auto: by the hardware
    backend: Literal["auto", "transformers", "unsloth"] = "auto"  # what loads the base
    # what packed rows go through; auto: the fastest that gives PyTorch's numbers (docs/hardware.md)
    attention: Literal["auto", "flash", "varlen", "flex_attention", "sdpa", "eager"] = "auto"

    # Adapter
    lora_r: Count = 16  # rank of the update
    lora_alpha: Amount = 32  # the update is scaled by alpha / r
    lora_target_modules: tuple[str, ...] = ("auto",)  # auto: the language model's linear layers
    lora_variant: Literal["lora", "rslora", "dora"] = "lora"  # rslora: scaled by alpha / sqrt(r)

    # Data
    data: str = (
        "sample"  # `sample`, `release`, MTNT's folder or .tar.gz; or own pairs: a.jsonl,b.tsv=0.3
    )
    max_rows: Count | None = None  # own pairs in all, drawn by seed and held-out ones among them
    valid_data: str | None = None  # own pairs to watch; none: MTNT's, or some held out by seed
    test_data: str | None = None  # own pairs to score; none: likewise
    extra_data: str | None = None  # more pairs: FILE.jsonl, NAME.en:NAME.fr, a folder, a Hub id
    extra_rows: Count | None = None  # how many of them, drawn by seed; none: all
    language_pair: str = "en-fr"  # direction, by codes: en-de, en-pt_BR, en-tlh=Klingon
    normalize_punctuation: bool = True  # French quotes and apostrophes of targets as MTNT has them
    quoting: Literal["auto", "quoted", "raw"] = "auto"  # own csv and tsv; auto: as the file looks
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_length: Count = 512  # tokens of a whole example; longer ones are left out and counted

    # Optimisation
    learning_rate: Amount = 3e-4  # after the warm-up; then it falls to 0 in a line
    # 8bit: AdamW's states in a quarter of the memory; paged: moved to RAM where the GPU is full
    optim: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    num_train_epochs: Amount = 1.0  # passes over the training pairs
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs
    per_device_train_batch_size: Count = 8  # examples, not rows, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    # recompute activations (slower); offload: from inputs in RAM. None: if needed
    gradient_checkpointing: bool | Literal["offload"] | None = None

    # Answers
    decoding: Literal["auto", "greedy", "beam"] = "auto"  # auto: what has the best chrF on valid
    base_rows: Count = 40  # first lines of test that the base answers too, for comparison

    # Run
    output_dir: Path = Path("runs/mtnt_lora")  # adapter, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    # optimizer steps between validations, each with a checkpoint. None: a tenth, at least 30
    eval_steps: Count | None = None
    accept_loss: bool = False  # train although the first loss says that model and data do not fit
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    best_by: Literal["loss", "chrf", "bleu"] = "loss"  # of the validation rows; scores: of answers
    early_stopping_patience: Count | None = None  # validations without a better one, then it ends
    eval_limit: Count | None = None  # lines of valid to watch, of test to score; none: 40 and all
    seed: int = 42  # of adapter, order and bootstrap
    report_to: str = "none"  # tensorboard, trackio or wandb
    push_to_hub: str | None = None  # repository to publish the adapter in at the end (private)


@functools.lru_cache(maxsize=1)  # the template looks at them too
def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split. Needs no model, so `ft check` runs it in a moment."""
    splits = data.translation_splits(**config.pick(c, data.translation_splits))
    splits["valid"] = splits["valid"].head(c.eval_limit or 40)
    if c.eval_limit:
        splits["test"] = splits["test"].head(c.eval_limit)
    return splits


def template(c: Config, _: Any = None) -> Template:
    """How a row reads, whatever the tokenizer; training, evaluation, generation and the card all use this one."""
    return prompts.translation_of(c.language_pair, one_line=data.one_line(rows(c)))


def asked(c: Config) -> dict[str, Any]:
    """What base and tuned are asked at the end, and the direction, by which they are scored."""
    return {"ask": ASK, "pair": c.language_pair}


def main(c: Config) -> None:
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
    t = template(c)
    say(machine.use_all_cores())
    base = models.load(c.model_name_or_path, **config.pick(c, models.load))
    say("\n".join(base.notes))
    machine.seed_everything(c.seed)
    model = models.attach_lora(
        base, r=c.lora_r, alpha=c.lora_alpha, targets=c.lora_target_modules, variant=c.lora_variant
    )
    say(models.summary(model))
    splits, encoded = text.encode_splits(splits, t, base.tokenizer, max_length=c.max_length)
    r = runs.start(
        target,
        recipe=__file__,
        config=c,
        task="translation",
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
        scores=lambda: score.translation.watched(*watched, pair=c.language_pair),
        warmup_ratio=0.05,  # then it falls to 0 in a line
        **config.pick(c, train.sft),
    )
    chosen = score.decoding.choose(*watched, how=c.decoding)
    say(chosen.line)
    r.note(training=asdict(trained), decoding=chosen.record)
    how: dict[str, Any] = {"sampler": chosen.sampler, "base_rows": c.base_rows, **asked(c)}
    result = score.translation.before_after(
        model, base.tokenizer, t, splits["test"], encoded["test"].examples, **how
    )
    runs.finish(r, test=result, push_to_hub=c.push_to_hub)
    say(f'try it: ft translate {r.folder} "idk what ur talking about lol"')


if __name__ == "__main__":
    config.run(main, Config, __doc__)
