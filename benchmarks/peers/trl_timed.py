"""Peer: what `trl sft --use_peft` trains in a given time, by TRL's defaults, or with the settings of a run."""

from typing import Any

from timed import Clock, checkpointing, open_job, train


def main() -> None:
    """As TRL's script does, but for where rows come from and when it ends."""
    job = open_job()
    from datasets import Dataset
    from peft import LoraConfig
    from trl.trainer.model_config import ModelConfig
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer
    from trl.trainer.utils import get_peft_config

    script = ModelConfig(use_peft=True)  # the defaults of its command line
    own = job.settings
    arguments: Any = job.arguments() | {"model_init_kwargs": {"dtype": script.dtype}}
    if own:
        arguments |= {"optim": "adamw_torch"}
        arguments |= checkpointing(SFTConfig, own["gradient_checkpointing"])
    trainer = SFTTrainer(
        model=job.model,
        args=SFTConfig(**arguments),
        train_dataset=Dataset.from_list(job.read_rows()),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **job.lora())
        if own
        else get_peft_config(script),
    )
    train(trainer, job, Clock(job.seconds, warmup_share=own["warmup_ratio"] if own else 0.0))


if __name__ == "__main__":
    main()
