"""What a GGUF file says of a Gemma besides its weights: hyperparameters, tokens, special ids, origin."""

import json
import logging
from pathlib import Path
from typing import Any

from ft.models import gguf as gguf_tokenizer


def rope(text: Any) -> dict[str, Any]:
    """The rotary embedding of the layers that look at everything."""
    return text.rope_parameters.get("full_attention", text.rope_parameters)


def origin(writer: Any, name: str, base: str, license: str | None, n_parameters: int) -> None:
    """What the model is, and what it was tuned from."""
    import gguf

    _, _, basename, _, _, size = gguf.Metadata.get_model_id_components(base or name, n_parameters)
    writer.add_type("model")
    writer.add_name(gguf.Metadata.id_to_title(name))
    for add, value in (
        (writer.add_basename, basename),
        (writer.add_size_label, size),
        (writer.add_license, license),
    ):
        if value:
            add(value)
    if base:
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base.split("/")[1])
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")


def settings(writer: Any, text: Any) -> None:
    """The model's hyperparameters."""
    import gguf

    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    writer.add_feed_forward_length(text.intermediate_size)
    writer.add_head_count(text.num_attention_heads)
    writer.add_head_count_kv(text.num_key_value_heads)
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_key_length(text.head_dim)
    writer.add_value_length(text.head_dim)
    full = rope(text)
    writer.add_rope_freq_base(full["rope_theta"])
    if full.get("rope_type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(full["factor"])
    if "sliding_attention" in text.rope_parameters:
        writer.add_rope_freq_base_swa(text.rope_parameters["sliding_attention"]["rope_theta"])
    for add, value in (
        (writer.add_sliding_window, getattr(text, "sliding_window", None)),
        (writer.add_attn_logit_softcapping, getattr(text, "attn_logit_softcapping", None)),
        (writer.add_final_logit_softcapping, getattr(text, "final_logit_softcapping", None)),
    ):
        if value is not None:
            add(value)


def vocabulary(
    writer: Any, folder: Path, tokens: list[str], scores: list[float], kinds: list[int]
) -> None:
    """Tokens, special ids, and the chat template if there is one."""
    import gguf

    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    # it wonders at the BOS of a second text, which no one gives
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(folder, n_vocab=len(tokens))
    if (generation := folder / "generation_config.json").is_file():
        ends = json.loads(generation.read_text("utf-8")).get("eos_token_id", [])
        # GGUF has room for one control token more that ends an answer, such as <end_of_turn>
        for end in ends if isinstance(ends, list) else [ends]:
            if kinds[end] == gguf_tokenizer.CONTROL and end != special.special_token_ids.get("eos"):
                special.special_token_ids.setdefault("eot", end)
    special.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(False)
