"""Peer: TRL's ``SFTTrainer`` as shipped; precision "fp32" only adds ``bf16=False``."""

from worker import load_adapter, open_job, step_callback


def main() -> None:
    """Train as TRL's documentation shows: a model path, an ``SFTConfig`` and a ``LoraConfig``."""
    job, pipe = open_job()
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    trainer = SFTTrainer(
        model=job.model,
        args=SFTConfig(max_length=job.max_length, **job.trainer_arguments()),
        train_dataset=Dataset.from_list(job.read_rows()),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **job.lora()),
        callbacks=[step_callback(pipe)],
    )
    load_adapter(trainer.model, job.adapter)
    trainer.train()


if __name__ == "__main__":
    main()
