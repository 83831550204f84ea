"""RecurrentGemma learns to translate noisy English into French: MTNT, SGD, AdamW, LoRA or QLoRA.

accelerate launch recipes/mtnt_recurrent.py --data PATH/TO/MTNT
accelerate launch recipes/mtnt_recurrent.py --preset tutorial-sgd --data release
accelerate launch recipes/mtnt_recurrent.py --preset tutorial-adamw --data release
accelerate launch recipes/mtnt_recurrent.py --lora-r 16                   QLoRA on one GPU

PEFT has no default LoRA targets for RecurrentGemma. Here an adapter goes on all its linear layers:
linear_x, linear_y and linear_out of the recurrent blocks, q, k, v and o of the attention blocks, gate,
up and down of all. Attention alone, a usual default, would leave two of three blocks as they are.
RG-LRU's gates and the convolution are no linear layers: under 1% of the parameters, kept as they are.

Hardware  a GPU for 2B (not run yet); the tests run it on tiny models and a CPU
Time      not measured at 2B yet
Memory    16 bytes a parameter with AdamW, 8 with SGD, and activations; estimated before loading
Score     validation loss before and after; recipes/README.md has the tutorial's curve beside ours
Data      Michel & Neubig 2018, https://github.com/pmichel31415/mtnt; a bundled sample without --data
Source    google-deepmind/recurrentgemma, colabs/fine_tuning_tutorial_jax.ipynb; presets as there
"""

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.generate import answers
from ft.machine import say
from ft.text import Template, prompts
from ft.train import optim

ASK = {"source": "Hello, my name is Morgane."}  # what the tutorial asks before and after


@dataclass(frozen=True)
class Config:
    # Base model
    model_name_or_path: str = "google/recurrentgemma-2b-it"  # Hub id or folder
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # auto: fp32 where all train
    lora_r: int = 0  # rank of an adapter on all linear layers; 0: all parameters train
    lora_alpha: Amount = 32  # the adapter's update is scaled by alpha / r

    # Data
    data: str = "sample"  # `sample`, `release`, folder or .tar.gz of MTNT; or pairs of your own
    valid_data: str | None = None  # own pairs to watch; none: MTNT's, or some held out by seed
    language_pair: str = "en-fr"  # direction, by codes: en-de, en-pt_BR, en-tlh=Klingon
    reading: Literal["text", "tfds"] = "text"  # of MTNT; tfds: as CSV, which merges lines
    quoting: Literal["auto", "quoted", "raw"] = "auto"  # own csv and tsv; auto: as the file looks
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    second_bos: bool = False  # before the translation too, and supervised
    max_length: Count = 512  # tokens of a whole example; longer ones are dropped
    shuffle: bool = True  # by seed

    # Optimisation
    optim: str = "adamw"  # adamw, sgd, adamw_8bit or paged_adamw_8bit
    learning_rate: Amount = 1e-4  # at the top of the schedule
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up, to 0
    warmup_ratio: float = 0.05  # share of the steps until the top
    weight_decay: float = 0.1  # of matrices; RG-LRU, embeddings, norms and biases never decay
    adam_beta2: float = 0.96  # of AdamW
    max_grad_norm: float = 1.0  # longer gradients are scaled down to it; 0: they are not
    max_steps: Count = 200  # optimizer steps
    per_device_train_batch_size: Count = 16  # examples, in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    gradient_checkpointing: bool | None = None  # recompute activations (slower); none: if needed

    # Run
    output_dir: Path = Path("runs/mtnt_recurrent")  # model, card, curves and record of the run
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    eval_steps: Count = 20  # optimizer steps between validations
    accept_loss: bool = False  # train although the first loss says that model and data do not fit
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    eval_mean: Literal["tokens", "rows"] = "tokens"  # rows: the mean of each row's mean
    valid_rows: Count = 100  # first rows of the validation split that fit, whose loss is watched
    save_steps: Count = 500  # optimizer steps between checkpoints
    seed: int = 42  # of order and adapter

    PRESETS: ClassVar = {
        name: {
            "precision": "fp32",
            "reading": "tfds",
            "second_bos": True,
            "max_length": 33,
            "lr_scheduler_type": "constant",
            "warmup_ratio": 0.0,
            "max_grad_norm": 0.0,
            "per_device_train_batch_size": 1,
            "eval_mean": "rows",
            "valid_rows": 50,
            "keep": "last",
            **optimizer,
        }
        for name, optimizer in {
            "tutorial-sgd": {
                "optim": "sgd",
                "learning_rate": 1e-3,
                "weight_decay": 0.0,
                "max_steps": 300,
            },
            "tutorial-adamw": {
                "optim": "adamw",
                "learning_rate": 1e-4,
                "weight_decay": 0.1,
                "max_steps": 100,
            },
        }.items()
    }

    def check(self) -> Iterator[str]:
        yield from optim.check(self.optim)


@functools.lru_cache(maxsize=1)  # the template looks at them too
def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split. Needs no model, so `ft check` runs it in a moment."""
    return data.translation_splits(("train", "valid"), **config.pick(c, data.translation_splits))


def template(c: Config, _: Any = None) -> Template:
    """How a row reads, whatever the tokenizer; training, validation, generation and the card all use this one."""
    return prompts.translation_of(c.language_pair, one_line=data.one_line(rows(c), c.reading))


def main(c: Config) -> None:
    # nothing is written before model and data are known to be good
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))
    t = template(c)
    say(machine.use_all_cores())
    whole = not c.lora_r
    automatic = whole and c.precision == "auto"
    if whole and c.precision != "nf4":
        say(plan.check_memory(config.to_dict(c)))
    base = models.load(
        c.model_name_or_path,
        # bf16 weights have 8 bits and would round small updates away; products may well be in bf16
        precision="fp32" if automatic else c.precision,
        max_length=c.max_length,
        text_only=not whole,
    )
    say("\n".join(base.notes))
    machine.seed_everything(c.seed)
    if whole:
        model = models.train_all(base)
    else:
        model = models.attach_lora(base, r=c.lora_r, alpha=c.lora_alpha)
    say(models.summary(model))
    splits, encoded = text.encode_splits(
        splits, t, base.tokenizer, max_length=c.max_length, seed_parity=c.second_bos
    )
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

    watched = encoded["valid"].examples[: c.valid_rows]

    def answer() -> str:
        return answers.of_rows(model, base.tokenizer, t, [ASK], max_new_tokens=64)[0]

    before = answer()
    trained = train.sft(
        model,
        base.tokenizer,
        encoded["train"].examples,
        run=r,
        validate=lambda: score.loss(model, watched, mean=c.eval_mean),
        autocast=automatic and machine.here().bf16,
        **config.pick(c, train.sft),
    )
    r.note(training=asdict(trained))
    after = answer()
    r.write("samples.txt", f"source  {ASK['source']}\nbase    {before}\ntuned   {after}\n")
    say(f"\n{t.prompt_for(ASK).strip()}\n  base:  {before}\n  tuned: {after}")
    runs.finish(r)
    say(f'try it: ft translate {r.folder} "idk what ur talking about lol"')


if __name__ == "__main__":
    config.run(main, Config, __doc__)
