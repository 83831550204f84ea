"""Peer: TRL's ``SFTTrainer`` as shipped; "fp32" adds ``bf16=False``, "nf4" the linear layers in 4 bits, "nf4, bf16"
the others in bf16 besides."""

from worker import load_adapter, open_job, step_callback


def main() -> None:
    """Train as TRL's documentation shows: a model path, an ``SFTConfig`` and a ``LoraConfig``."""
    job, pipe = open_job()
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype="bfloat16",
    )
    # TRL leaves what is not in 4 bits, embeddings and head among it, in fp32
    loading = {"dtype": "bfloat16"} if job.precision == "nf4, bf16" else None
    trainer = SFTTrainer(
        model=job.model,
        args=SFTConfig(
            max_length=job.max_length, model_init_kwargs=loading, **job.trainer_arguments()
        ),
        quantization_config=four_bit if job.precision.startswith("nf4") else None,
        train_dataset=Dataset.from_list(job.read_rows()),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **job.lora()),
        callbacks=[step_callback(pipe)],
    )
    load_adapter(trainer.model, job.adapter)
    trainer.train()


if __name__ == "__main__":
    main()
