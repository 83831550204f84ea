"""Adapters as PEFT, TRL, Unsloth and axolotl leave them, on a tiny model."""

import json
from pathlib import Path
from typing import Any

import torch
from support import tiny

PROMPT = "Translate this into French:\nHello, my name is Morgane.\n"
IDS = tiny.tokenizer()(PROMPT, return_tensors="pt").input_ids

# what Unsloth writes as target_modules of a language model's layers
UNSLOTH_TARGETS = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj).*?)|"
    r"(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\."
    r"(?:(?:k_proj|v_proj|q_proj|o_proj|gate_proj|up_proj|down_proj)))"
)


def by_peft(base: Path, to: Path, **options: Any) -> Path:
    """The adapter that PEFT saves of a model that it changes."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    values = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], **options}
    inner = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    model = get_peft_model(inner, LoraConfig(task_type="CAUSAL_LM", **values))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(str(to))
    return to


def by_unsloth(base: Path, to: Path) -> Path:
    """The same with the names, keys and files that Unsloth adds; its base is a 4-bit copy on the Hub."""
    by_peft(base, to, target_modules=UNSLOTH_TARGETS)
    edit(
        to,
        base_model_name_or_path="unsloth/gemma-3-270m-it-unsloth-bnb-4bit",
        auto_mapping={
            "base_model_class": "Gemma3ForCausalLM",
            "parent_library": "transformers.models.gemma3.modeling_gemma3",
            "unsloth_fixed": True,
        },
    )
    tiny.tokenizer().save_pretrained(to)
    return to


def by_axolotl(base: Path, to: Path) -> Path:
    """The same with axolotl's card, the model's own configuration, a tokenizer and a checkpoint beside it."""
    by_peft(base, to)
    (to / "README.md").write_text("---\nlibrary_name: peft\n---\n\naxolotl version: `0.13`\n")
    (to / "config.json").write_text((base / "config.json").read_text())
    tiny.tokenizer().save_pretrained(to)
    (to / "checkpoint-2").mkdir()
    (to / "checkpoint-2" / "trainer_state.json").write_text("{}")
    return to


def by_trl(base: Path, to: Path) -> Path:
    """What TRL's SFTTrainer saves after two steps on conversations."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    talks = [
        {
            "prompt": [{"role": "user", "content": f"Hello {n}"}],
            "completion": [{"role": "assistant", "content": "Bonjour"}],
        }
        for n in range(4)
    ]
    settings = SFTConfig(
        output_dir=str(to),
        max_steps=2,
        per_device_train_batch_size=2,
        learning_rate=0.05,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(base),
        args=settings,
        train_dataset=Dataset.from_list(talks),
        processing_class=tiny.tokenizer(),
        peft_config=LoraConfig(
            r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()
    trainer.save_model()
    return to


def edit(folder: Path, **values: Any) -> None:
    """Change keys of an adapter's configuration."""
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def plain(base: Path, folder: Path) -> Any:
    """What transformers and PEFT alone make of base and adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inner = AutoModelForCausalLM.from_pretrained(base)
    return PeftModel.from_pretrained(inner, str(folder)).eval()


def logits(model: Any) -> torch.Tensor:
    """Of the prompt, [T, V] in float32."""
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0].float()


def answer(model: Any, template: Any, row: dict[str, str], new: int) -> str:
    """A plain model's greedy answer, cut and decoded as ours are."""
    from ft.generate import answers

    (said,) = answers.of_rows(model, tiny.tokenizer(), template, [row], max_new_tokens=new)
    return said
