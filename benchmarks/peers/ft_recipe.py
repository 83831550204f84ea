"""``ft`` as its recipes use it: ``models.load``, ``lora.attach``, ``train.sft``, packing on."""

import os
from pathlib import Path

import stand_in
from worker import load_adapter, open_job, step_callback


def main() -> None:
    """Train with the recipe's own defaults but for what all peers have in common."""
    job, pipe = open_job()
    import torch

    from ft import machine, models, train
    from ft.models import lora
    from ft.runs import folder, record
    from ft.train import optim

    if stand_in.here():
        stand_in.trust()
    machine.use_all_cores()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    base = models.load(job.model, precision=job.precision)
    settings = job.lora()
    model = lora.attach(base, r=settings["r"], alpha=settings["lora_alpha"], dropout=0.0)
    load_adapter(model, job.adapter)
    train.sft(
        model,
        base.tokenizer,
        job.read_rows(),
        run=record.begin(
            folder.Target(Path(job.output) / "run"), recipe=__file__, config_yaml="", seed=42
        ),
        validate=lambda: 0.0,  # not part of a step
        learning_rate=job.learning_rate,
        optim=optim.choose(job.optim),
        gradient_checkpointing=job.gradient_checkpointing,
        lr_scheduler_type="constant",
        max_grad_norm=1e9,
        max_steps=job.steps + 1,
        per_device_train_batch_size=job.batch_size,
        shuffle=False,
        callbacks=[step_callback(pipe)],
        eval_steps=10**9,
        save_steps=10**9,
    )


if __name__ == "__main__":
    main()
