"""Gemma learns to answer questions about images: LoRA on the language model, its image tower frozen.

accelerate launch recipes/vision_lora.py                                  a tiny model, a laptop, offline
accelerate launch recipes/vision_lora.py --model google/gemma-3-4b-it --data photos.jsonl
accelerate launch recipes/vision_lora.py --model google/gemma-3-4b-it --data photos.jsonl --train-vision
ft plan recipes/vision_lora.py --model google/gemma-3-4b-it --max-length 512 --gpu 24GB

Hardware  two CPU cores for the tiny model; a GPU for Gemma 3 4B in 4 bits (not run yet)
Time      290 s of one core's time for the tiny model (500 steps of 16 pictures, 300 answers); 4B not measured
Memory    1.5 GiB for the tiny model; for 4B 8.4 GiB are planned (--precision nf4, 16 examples of 512 tokens, its
          image tower of 0.8 GiB included), 12.1 of 1,024 tokens, 12.8 in bf16; not measured
Score     tiny model, 300 pictures that it has not seen: colour 100% right [98.7, 100], shape 91% [88, 94], position
          78% [73, 82], all three 71% [65, 76]; a guess 17%, 25%, 20% and 0.8%
Data      your jsonl: {"image": "photo.jpg", "prompt": "What is it?", "completion": "A red kite."}, `images` for
          several, paths relative to the file, rows without any mixed in; by default pictures drawn here
Source    google/gemma-cookbook, "Fine-tune Gemma for vision tasks using Hugging Face Transformers and QLoRA";
          LoRA https://arxiv.org/abs/2106.09685

Without --model a tiny Gemma 3 with random weights is made: an adapter cannot teach it to see, so all of it is
trained, the tower included. An image of Gemma 3 takes 256 tokens of --max-length.
"""

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ft import config, data, machine, models, plan, runs, score, text, train
from ft.config import Amount, Count
from ft.data import images
from ft.machine import say
from ft.models import vision
from ft.text import Template, prompts

TINY = "tiny-vision"


@dataclass(frozen=True)
class Config:
    # Base model
    model_name_or_path: str = TINY  # Hub id, folder, or `tiny-vision` (random weights)
    precision: Literal["auto", "fp32", "bf16", "nf4"] = "auto"  # of the base; auto: by the hardware

    # What is trained
    lora_r: int | None = None  # rank of the update; 0: all parameters. None: 16; 0 of tiny-vision
    lora_alpha: Amount = 32  # the update is scaled by alpha / r
    lora_dropout: float = 0.0  # share of the update's inputs zeroed while training
    lora_target_modules: tuple[str, ...] = ("auto",)  # auto: the language model's linear layers
    train_vision: bool | None = None  # image tower and projector too. None: of tiny-vision

    # Data
    data: str = images.DRAWN  # a jsonl, json, csv or parquet file, or `pictures`, drawn here
    pictures: Count = 8000  # how many are drawn to train on
    template: str = "chat"  # how a prompt is put: turns of an -it model, plain, …, a YAML file
    on_bad_row: Literal["error", "skip"] = "error"  # a row that cannot be used
    max_length: Count = 1024  # tokens of a whole example, those of its images included
    length_policy: Literal["drop", "error"] = "drop"  # what happens to a longer one
    valid_rows: Count | None = None  # held out, their loss is watched; none: a tenth, at most 100
    test_rows: Count | None = None  # held out, answered at the end; none: a tenth, at most 300

    # Optimisation
    learning_rate: Amount | None = None  # at the top. None: 2e-4; 2e-3 of tiny-vision
    lr_scheduler_type: Literal["linear", "cosine", "constant"] = "linear"  # after the warm-up, to 0
    warmup_ratio: float = 0.1  # share of the steps until the top
    adam_beta2: float = 0.98  # decay of AdamW's mean of squares: few steps need a short memory
    optim: Literal["auto", "adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "auto"  # auto: adamw
    num_train_epochs: Amount = 1.0  # passes over the training rows
    max_steps: Count | None = None  # optimizer steps; overrides num_train_epochs
    per_device_train_batch_size: Count = 16  # examples in each process
    gradient_accumulation_steps: Count = 1  # batches in one optimizer step
    # recompute activations (slower); offload: from inputs in RAM. None: if needed
    gradient_checkpointing: bool | Literal["offload"] | None = None

    # Run
    output_dir: Path = Path("runs/vision_lora")  # adapter or model, card, curves and record
    overwrite_output_dir: bool = False  # replace the run that lies there
    resume_from_checkpoint: str | None = None  # `last`, or a checkpoint's folder
    # optimizer steps between validations, each with a checkpoint. None: a tenth, at least 30
    eval_steps: Count | None = None
    # train although the first loss says that model and data do not fit. None: of tiny-vision
    accept_loss: bool | None = None
    keep: Literal["best", "last"] = "best"  # weights of the best validation, or of the last step
    early_stopping_patience: Count | None = None  # validations without a better one, then it ends
    max_new_tokens: Count = 64  # of an answer at the end
    seed: int = 42  # of pictures, held-out rows, adapter and order
    report_to: str = "none"  # tensorboard, trackio or wandb

    def __post_init__(self) -> None:
        tiny = self.model_name_or_path == TINY
        automatic = {
            "lora_r": 0 if tiny else 16,
            "train_vision": tiny,
            "accept_loss": tiny,  # which begins with a guess
            "learning_rate": 2e-3 if tiny else 2e-4,
        }
        for name, value in automatic.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)


def rows(c: Config) -> dict[str, data.Rows]:
    """The rows of each split, every image opened once. Needs no model."""
    return images.splits(c.data, **config.pick(c, images.splits))


def template(c: Config, tokenizer: Any) -> Template:
    """How a row reads; training, evaluation, chat and the card all use this one."""
    return prompts.by_name(c.template, tokenizer)


def main(c: Config) -> None:
    target, splits = plan.checked(c, rows, template, __file__, **config.pick(c, plan.checked))

    say(machine.use_all_cores())
    see = vision.reader(c.model_name_or_path)
    precision = "fp32" if not c.lora_r and c.precision == "auto" else c.precision
    base = models.load(
        c.model_name_or_path, precision=precision, max_length=c.max_length, text_only=False
    )
    say("\n".join(base.notes))
    t = template(c, base.tokenizer)
    machine.seed_everything(c.seed)
    if c.lora_r:
        model = models.attach_lora(
            base,
            r=c.lora_r,
            alpha=c.lora_alpha,
            dropout=c.lora_dropout,
            targets=c.lora_target_modules,
            vision=bool(c.train_vision),
        )
    else:
        model = models.train_all(base, vision=bool(c.train_vision))
    say(models.summary(model))
    encode = partial(vision.encode, see=see, policy=c.length_policy)
    splits, encoded = text.encode_splits(
        splits, t, base.tokenizer, max_length=c.max_length, encode=encode
    )
    r = runs.start(
        target,
        recipe=__file__,
        config=c,
        task="images",
        base=base,
        model=model,
        template=t,
        splits=splits,
        encoded=encoded,
        plan=plan.of_run(config.to_dict(c), base, encoded["train"]),
    )

    batch = partial(vision.batch, see=see, pad=base.tokenizer.pad_token_id)
    trained = train.sft(
        model,
        base.tokenizer,
        encoded["train"].examples,
        run=r,
        validate=lambda: score.loss(model, encoded["valid"].examples, batch=batch),
        batch=batch,
        **config.pick(c, train.sft),
    )
    r.note(training=asdict(trained))
    if machine.is_main():
        see.processor.save_pretrained(r.folder)
    result = score.images.before_after(
        model, base.tokenizer, t, see, splits["test"], max_new_tokens=c.max_new_tokens
    )
    runs.finish(r, test=result)
    say(f"try it: ft chat {r.folder} --image {splits['test'][0]['images'][0]}")


if __name__ == "__main__":
    config.run(main, Config, __doc__)
