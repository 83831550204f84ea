"""Peer: Unsloth: ``FastLanguageModel`` and TRL's trainer as Unsloth patches it."""

from worker import load_adapter, open_job, step_callback


def main() -> None:
    """Train as Unsloth's notebooks show; precision "auto" leaves the dtype to Unsloth."""
    job, pipe = open_job()
    from unsloth import FastLanguageModel  # pyright: ignore[reportMissingImports]  # isort: skip
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    fp32 = job.precision == "fp32"
    model, tokenizer = FastLanguageModel.from_pretrained(
        job.model,
        max_seq_length=job.max_length,
        dtype=torch.float32 if fp32 else None,
        load_in_4bit=job.precision == "nf4",
    )
    model = FastLanguageModel.get_peft_model(model, **job.lora())
    load_adapter(model, job.adapter)
    trainer = SFTTrainer(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(max_length=job.max_length, **job.trainer_arguments()),
        train_dataset=Dataset.from_list(job.read_rows()),
        callbacks=[step_callback(pipe)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
