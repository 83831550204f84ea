"""Peer: transformers' plain ``Trainer`` over a PEFT model, with its own full-logits loss, in fp32."""

from worker import open_job, step_callback


def main() -> None:
    """Train with padded batches and Trainer's own defaults."""
    job, pipe = open_job()
    import torch
    from peft import PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Trainer,
        TrainingArguments,
    )

    base = AutoModelForCausalLM.from_pretrained(job.model, dtype=torch.float32)
    trainer = Trainer(
        model=PeftModel.from_pretrained(base, job.adapter, is_trainable=True),
        args=TrainingArguments(**job.trainer_arguments()),
        train_dataset=job.read_rows(),  # pyright: ignore[reportArgumentType]
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(job.model)),
        callbacks=[step_callback(pipe)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
