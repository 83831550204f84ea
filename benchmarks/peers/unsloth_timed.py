"""Peer: what Unsloth trains in a given time, as its notebooks show, or with the settings of a run."""

from typing import Any

from timed import Clock, checkpointing, open_job, train

# Of the trainer; r 16, alpha 16 and all linear layers are its function's own.
NOTEBOOK: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "learning_rate": 2e-4,
    "optim": "adamw_8bit",  # on a CPU Unsloth takes another and says so
    "weight_decay": 0.001,
    "seed": 3407,
}
WARMUP = 5  # steps


def main() -> None:
    """``FastLanguageModel`` and TRL's trainer as Unsloth patches it; precision "auto" leaves the dtype to it."""
    job = open_job()
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]  # isort: skip
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    model, tokenizer = FastLanguageModel.from_pretrained(
        job.model,
        max_seq_length=job.max_length,
        dtype=torch.float32 if job.precision == "fp32" else None,
        load_in_4bit=False,
    )
    own = job.settings
    arguments: Any = job.arguments()
    if own:
        recompute = own["gradient_checkpointing"]
        model = FastLanguageModel.get_peft_model(
            model, use_gradient_checkpointing=recompute, **job.lora()
        )
        arguments |= {"optim": "adamw_torch"} | checkpointing(SFTConfig, recompute)
        clock = Clock(job.seconds, warmup_share=own["warmup_ratio"])
    else:
        model = FastLanguageModel.get_peft_model(model)
        arguments |= NOTEBOOK
        clock = Clock(job.seconds, warmup_steps=WARMUP)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(job.read_rows()),
    )
    train(trainer, job, clock)


if __name__ == "__main__":
    main()
