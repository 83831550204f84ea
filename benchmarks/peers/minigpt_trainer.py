"""Peer: transformers' GPT-2 of the same size under ``Trainer``, with its defaults (pre-norm, GELU)."""

from minigpt_job import open_job, threads
from worker import step_callback


def main() -> None:
    """Train in fp32, rows in order."""
    job, pipe = open_job()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

    torch.set_num_threads(threads())
    torch.set_flush_denormal(True)
    set_seed(42)
    s, batches = job.shape, job.load_batches()
    config = GPT2Config(
        vocab_size=s["vocab_size"],
        n_positions=s["max_position_embeddings"],
        n_embd=s["hidden_size"],
        n_layer=s["num_hidden_layers"],
        n_head=s["num_attention_heads"],
        n_inner=s["intermediate_size"],
        bos_token_id=s["bos_token_id"],
        eos_token_id=s["eos_token_id"],
    )  # its dropout is 0.1 everywhere, as the book's
    rows = [
        {"input_ids": row[:-1].tolist(), "labels": row[:-1].tolist()}
        for row in batches.reshape(-1, batches.shape[-1])
    ]
    trainer = Trainer(
        model=GPT2LMHeadModel(config),
        args=TrainingArguments(
            output_dir=job.output,
            use_cpu=True,
            bf16=False,
            per_device_train_batch_size=batches.shape[1],
            max_steps=len(batches),
            learning_rate=job.learning_rate,
            lr_scheduler_type="constant",
            max_grad_norm=job.max_grad_norm,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=rows,  # pyright: ignore[reportArgumentType]
        callbacks=[step_callback(pipe)],
    )
    trainer.train()


if __name__ == "__main__":
    main()
