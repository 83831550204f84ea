"""Supervised fine-tuning through TRL's SFTTrainer: validation, exact resume, a stop on a non-finite loss."""

import gc
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ft.errors import UserError
from ft.machine import (
    agreed,
    collecting_later,
    launched,
    peak_memory,
    say,
)
from ft.runs import checkpoints
from ft.runs.folder import Run, adopted, go_on, signals
from ft.runs.launch import own_precision, prepare_sharding
from ft.runs.record import COMMAND, trackers
from ft.text import batches
from ft.text.tokens import Example
from ft.train import first_batch, graph_room, graphed
from ft.train.optim import Name, choose

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Schedule = Literal["linear", "cosine", "constant"]


@dataclass(frozen=True)
class Trained:
    """What a training run cost and reached."""

    steps: int
    wall_seconds: float  # from the first validation to the last
    seconds: float  # of training steps alone, as are the rates
    tokens_per_second: float
    supervised_tokens_per_second: float
    mfu: float | None
    start_loss: float
    eval_loss: float  # at the end
    best_step: int | None  # whose validation was the best, none before the first step counted
    best_loss: float | None  # at that step
    best_by: str  # what the best was told by, ``loss`` or a score
    best_score: float | None  # its value at that step
    kept_step: int  # whose weights the run has: the best, or the last
    peak_memory_bytes: int  # so far: of the GPU's allocator, or of this process


def sft(
    model: "PreTrainedModel | Any",
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    run: Run,
    validate: Callable[[], float],
    learning_rate: float,
    optim: Name | Literal["auto"] = "adamw",
    weight_decay: float = 0.0,
    adam_beta2: float = 0.999,
    lr_scheduler_type: Schedule = "linear",
    warmup_ratio: float = 0.0,
    max_grad_norm: float = 1.0,
    num_train_epochs: float = 1.0,
    max_steps: int | None = None,
    per_device_train_batch_size: int = 8,
    gradient_accumulation_steps: int = 1,
    shuffle: bool = True,
    packing: bool | None = None,
    row_length: int | None = None,
    gradient_checkpointing: bool | Literal["offload"] | None = None,
    autocast: bool = False,
    eval_steps: int | None = None,
    save_steps: int | None = None,
    seed: int = 42,
    report_to: str = "none",
    keep: Literal["best", "last"] = "last",
    early_stopping_patience: int | None = None,
    accept_loss: bool = False,
    best_by: str = "loss",
    scores: Callable[[], dict[str, float]] | None = None,
    resume_from_checkpoint: str | None = None,
    fingerprint: dict[str, Any] | None = None,
    callbacks: Sequence[Any] = (),
    batch: Callable[[Sequence[Example]], dict[str, "Tensor"]] | None = None,
    make_graph: Any = None,
) -> Trained:
    """Train the trainable parameters of ``model`` on encoded examples.

    A batch is a number of **examples**; packing (none: wherever it is exact) lays them in rows of at most
    ``row_length`` tokens (512 on a CPU, which is busy with that; 8,192 on a GPU, which is not) and changes
    speed alone. The loss of an optimizer step is the mean over all its supervised tokens, whatever the
    accumulation and the number of processes.

    ``batch`` makes the model's inputs of examples that are more than ids and labels, where they are not packed.
    ``gradient_checkpointing`` computes activations again, with ``offload`` from inputs that wait in the processor's
    memory (none: as the run's plan has it, if it has one, and where the largest row finds no room without it).
    ``make_graph`` is the class of graphs, by default ``graph_room.CudaGraph`` on a GPU and none elsewhere.
    ``validate`` returns the validation loss; it is called before the first step and every ``eval_steps`` (by
    default ``checkpoints.interval``); a first one that no Gemma starts at is refused with ``UserError``
    (``first_batch``), but for ``accept_loss``. Each has a checkpoint, unless there are other ``save_steps``.
    ``autocast`` computes in bf16 over fp32 weights; over bf16 ones it is always on.
    ``keep`` says which weights the run has at its end: the last, or those of the ``best`` validation, whose
    checkpoint stays: of the lowest loss, or with ``best_by`` the highest of that name among the ``scores``, which
    are taken at every validation then. The training ends after ``early_stopping_patience`` validations without a better one.
    ``resume_from_checkpoint`` is ``"last"`` or a checkpoint's folder, refused with
    ``UserError`` when ``fingerprint`` (by default the run's: data, model, template, recipe, settings) differs
    from the one that the checkpoint was made with. SIGTERM and Ctrl-C save a checkpoint at the end of the
    step and exit with 143 and 130.
    """
    assert batch is None or not packing
    with collecting_later():
        import torch
        from trl.trainer.sft_config import SFTConfig

        from ft.kernels.recurrent import packs_exactly
        from ft.train.journal import Journal
        from ft.train.trainer import Trainer

    prepare_sharding()
    own_precision()
    packing = batch is None and packs_exactly(model) if packing is None else packing
    fingerprint = (run.made_with if fingerprint is None else fingerprint) | launched()
    row_length = row_length or batches.row_length("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = go_on(run, resume_from_checkpoint, fingerprint)
    made = SFTConfig(
        output_dir=str(run.folder),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        adam_beta2=adam_beta2,
        lr_scheduler_type=lr_scheduler_type,
        warmup_steps=warmup_ratio,
        max_grad_norm=max_grad_norm,
        num_train_epochs=num_train_epochs,
        max_steps=max_steps if max_steps is not None else -1,
        per_device_train_batch_size=per_device_train_batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        report_to=trackers(report_to),
        seed=seed,
        ddp_find_unused_parameters=batch is not None,  # an image tower, of rows without images
        max_length=None,
        packing=False,  # TRL's own; ours happens in the collator, within one batch
        dataset_kwargs={"skip_prepare_dataset": True},
        save_strategy="steps",
        accelerator_config={"non_blocking": torch.cuda.is_available()},
        **of_every_trainer(model, recomputes(run, gradient_checkpointing), autocast),
    )
    args = on_one_gpu(made)
    best, patience = keep == "best", early_stopping_patience
    eval_steps = eval_steps or checkpoints.interval(_steps(args, len(examples)))
    args.save_steps = save_steps or eval_steps
    journal = Journal(run, validate, eval_steps, best, patience, accept_loss, scores, best_by)
    trainer = Trainer(
        model=model,
        args=args,
        examples=examples,
        tokenizer=tokenizer,
        shuffle=shuffle,
        packing=packing,
        row_length=row_length,
        optimizer_name=choose(optim),
        fingerprint=fingerprint,
        callbacks=[journal, *callbacks],
        batch=batch,
        make_graph=make_graph or (graph_room.CudaGraph if torch.cuda.is_available() else None),
        offloading=offloads(run, gradient_checkpointing),
        may_recompute=gradient_checkpointing is None,
    )
    journal.attach(trainer)
    ended = _trained(trainer, journal, run, checkpoint)
    # they know each other and the optimizer's states: an evaluation needs the room
    del trainer, journal
    gc.collect()
    return ended


def recomputes(run: Run, asked: bool | str | None) -> bool:
    """Whether activations are computed again: as is asked, or as the run's plan has it."""
    planned = run.record.get("plan", {}).get("checkpointing", False)
    return planned if asked is None else bool(asked)


def offloads(run: Run, asked: bool | str | None) -> bool:
    """Whether what is computed again starts from the processor's memory: as is asked, or as the run's plan has it."""
    planned = run.record.get("plan", {}).get("aside", 0) > 0
    return asked == "offload" or planned and asked is not False


def _steps(args: Any, examples: int) -> int:
    """Optimizer steps of a training, as transformers counts them."""
    if args.max_steps > 0:
        return args.max_steps
    batches = math.ceil(examples / (args.per_device_train_batch_size * args.world_size))
    return math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))


def _trained(trainer: Any, journal: Any, run: Run, checkpoint: Any) -> Trained:
    """Train, from a checkpoint where there is one, and leave the run as it ended."""
    start = time.perf_counter()
    with signals(journal):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    wall = time.perf_counter() - start
    return _ended(trainer, journal, run, wall, resumed=checkpoint is not None)


def _ended(trainer: Any, journal: Any, run: Run, wall: float, *, resumed: bool) -> Trained:
    """What the run has at its end, saved: the weights of the last step, or of the best one."""
    if number := journal.signalled():
        say(f"stopped by {signal.Signals(number).name}; go on with --resume last")
        raise SystemExit(128 + number)
    if bad := [
        n for n, p in trainer.model.named_parameters() if p.requires_grad and not p.isfinite().all()
    ]:
        retry = first_batch.advice(trainer.model)
        raise UserError(f"{bad[0]} is not finite after the last step; nothing was saved. {retry}")
    if not journal.moved and not resumed:
        say("nothing was learnt: in every step the learning rate or the gradient was 0")
        raise SystemExit(1)
    kept, steps = (trainer.best_step or trainer.state.global_step), trainer.state.global_step
    if kept != steps:
        trainer.load_best()
        name, value = journal.best_by, journal.best[f"eval_{journal.best_by}"]
        say(f"kept: step {kept}, whose validation {name} {value} was the best of {steps}")
    _save(trainer, run)
    if trainer.args.bf16 and _half(trainer.model) and not trainer.is_fsdp_enabled:
        # autocast served the gradients; it slows down the many small products of answers. Accelerate's own
        # way back takes what was there for a method, which ours, put into a model, is not
        held = vars(trainer.model)
        trainer.model.forward = held.pop("_original_forward", trainer.model.forward)
    if trainer.made_room:
        run.note(made_room=[*trainer.made_room])
    summary = journal.summary() | {"peak_memory_bytes": peak_memory(), "kept_step": kept}
    return Trained(steps, wall, **summary)


def on_one_gpu(args: Any) -> Any:
    """Arguments of a trainer, by which a process that no launcher started leaves other GPUs than its own alone.

    transformers would cut its batches in pieces for them, which TRL refuses.
    """
    if args.n_gpu > 1:
        launch = f"accelerate launch --num_processes {args.n_gpu} {' '.join(sys.argv)}"
        if given := os.environ.get(COMMAND):
            launch = f"{given} --processes {args.n_gpu}"
        say(f"one of {args.n_gpu} GPUs is used; all of them: {launch}")
        args._n_gpu = 1
    return args


def of_every_trainer(model: Any, recompute: bool = False, autocast: bool = False) -> dict[str, Any]:
    """Arguments of TRL's trainers that are the same in every training, or follow from model and machine."""
    import torch
    from trl.trainer.sft_config import SFTConfig

    half = _half(model)
    renamed = "activation_checkpointing" in SFTConfig.__dataclass_fields__  # transformers 5.22
    name, gpu = (
        f"{'activation' if renamed else 'gradient'}_checkpointing",
        torch.cuda.is_available(),
    )
    return {
        name: recompute,
        f"{name}_kwargs": graphed.recomputing(model),
        "bf16": half or autocast,  # autocast: the adapters' fp32 weights meet a bf16 base
        "remove_unused_columns": False,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "eval_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": gpu,
        "use_cpu": not gpu,
    }


def _save(trainer: Any, run: Run) -> None:
    """Write what was learnt into the run's folder, complete or not at all."""
    trainer.model.config.use_cache = True  # the trainer clears it; a saved model would be slow
    with adopted(run) as made:
        trainer.save_model(str(made), _internal_call=True)
        trainer.accelerator.wait_for_everyone()
        (made / "training_args.bin").unlink(missing_ok=True)  # a pickle that no one reads


def _half(model: Any) -> bool:
    import torch

    return model.get_input_embeddings().weight.dtype == torch.bfloat16


def deadline(seconds: float) -> Any:
    """A callback that ends a training after the step in which ``seconds`` from now have passed."""
    from transformers.trainer_callback import TrainerCallback

    class Deadline(TrainerCallback):
        end = time.perf_counter() + seconds

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if agreed(time.perf_counter() > self.end):
                control.should_training_stop = True

    return Deadline()
