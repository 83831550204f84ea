"""A tiny Gemma 3 that sees, with random weights: image tower, projector and language model, to learn from pictures on any machine."""

from pathlib import Path
from typing import Any

from ft import files
from ft.data.pictures import SIDE
from ft.models import embedded

VERSION = 1  # of what `folder` writes
NAMES = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
TOWER: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
    "vision_use_head": False,
}
LANGUAGE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 32,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "max_position_embeddings": 1024,
    "initializer_range": 0.05,
}
TOKENS = 16  # that stand for an image
VOCABULARY = (
    262_208  # rows of the embedding with Gemma 3's own tokenizer, as of the published models
)
CONFIG: dict[str, Any] = {
    "model_type": "gemma3",
    "dtype": "float32",
    "text_config": {"model_type": "gemma3_text", "vocab_size": VOCABULARY, **LANGUAGE},
    "vision_config": TOWER,
}

# what Google's Gemma 3 -it models render, system messages left out
CHAT_TEMPLATE = """\
{{ bos_token }}
{%- for message in messages -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {{ '<start_of_image>' if item['type'] == 'image' else item['text'] | trim }}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""


def folder() -> Path:
    """The Hugging Face folder of the model in the user's cache, with Gemma 3's tokenizer; made on first use."""
    target = files.cache_dir() / f"tiny-vision-v{VERSION}"
    if not target.is_dir():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(embedded.folder(), extra_special_tokens=NAMES)
        with files.new_dir(target) as beside:
            write(beside, tokenizer)
    return target


def write(target: Path, tokenizer: Any, *, seed: int = 0, **language: Any) -> None:
    """Weights drawn by ``seed``, configuration, tokenizer and processor in the folder ``target``.

    ``tokenizer`` knows the tokens of ``NAMES``; ``language`` changes the language model's settings.
    """
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
    from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

    ids = tokenizer.convert_tokens_to_ids(list(NAMES.values()))
    special = {
        f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    config = Gemma3Config(
        text_config={
            "vocab_size": -(-len(tokenizer) // 64) * 64,
            **LANGUAGE,
            **special,
            **language,
        },
        vision_config=TOWER,
        mm_tokens_per_image=TOKENS,
        boi_token_index=ids[0],
        eoi_token_index=ids[1],
        image_token_index=ids[2],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3ForConditionalGeneration(config)
        # zeros by transformers, through which nothing would pass; and places that stand out from the start
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
        for name, parameter in model.named_parameters():
            if name.endswith("position_embedding.weight"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(target)
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=CHAT_TEMPLATE, image_seq_length=TOKENS
    )
    processor.save_pretrained(target)
