"""What llama.cpp has to be told of a Gemma: its kind, hyperparameters, origin and tokens, or why it cannot compute it."""

import logging
from pathlib import Path
from typing import Any

from ft import files
from ft.errors import UserError
from ft.models import gguf as gguf_tokenizer

ARCHITECTURES = {"gemma": "gemma", "gemma2": "gemma2", "gemma3": "gemma3", "gemma3_text": "gemma3"}
ARCHITECTURES |= dict.fromkeys(("gemma3n", "gemma3n_text"), "gemma3n")
ARCHITECTURES |= dict.fromkeys(("gemma4", "gemma4_text"), "gemma4")
# llama.cpp knows these by itself, so a model that differs cannot be said in a file:
FULL_ATTENTION = {"gemma2": 2, "gemma3": 6, "gemma3n": 5}  # which layers see everything: each 2nd …
WIDE = {"gemma2": 46, "gemma3": 62}  # layers of the 27B, whose queries are scaled by another rule
GEMMA3N = {"altup_num_inputs": 4, "altup_active_idx": 0, "laurel_rank": 64}
GEMMA3N |= {"hidden_size_per_layer_input": 256}
OWN_KEYS, SPARSE = 20, 10  # of Gemma 3n, layers from the first on
FULL = "full_attention"
# of Gemma 4, shown though they are special, for a chat parser to read
VISIBLE = {"<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'}
VISIBLE |= {"<|tool_response>", "<tool_response|>"}


def architecture(folder: Path) -> tuple[str, Any]:
    """llama.cpp's name of the model's kind, and the configuration of its text part.

    Reads the configuration alone. Raises ``UserError`` for a model that llama.cpp lacks or computes
    otherwise.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json, so it is not a Hugging Face model")
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    kind, text = config.model_type, config.get_text_config()
    if kind not in ARCHITECTURES:
        known = ", ".join(dict.fromkeys(ARCHITECTURES.values()))
        raise UserError(f"{folder} is a {kind} model; ft writes GGUF for {known} only")
    arch = ARCHITECTURES[kind]
    if getattr(config, "quantization_config", None):
        what = "weights stored in few bits; merge into the base in bf16 or fp32 first"
    else:
        what = _unlike(arch, text)
    if what:
        raise UserError(f"{folder}: llama.cpp's {arch} cannot compute a model with {what}")
    return arch, text


def _unlike(arch: str, text: Any) -> str:
    """What llama.cpp would compute otherwise, or nothing."""
    heads = text.hidden_size // text.num_attention_heads
    scale = heads if WIDE.get(arch) == text.num_hidden_layers else text.to_dict()["head_dim"]
    if getattr(text, "query_pre_attn_scalar", scale) != scale:
        return f"query_pre_attn_scalar {text.query_pre_attn_scalar}; it takes {scale}"
    every = FULL_ATTENTION.get(arch)
    layers = range(1, text.num_hidden_layers + 1)
    usual = [f"{'sliding' if every and n % every else 'full'}_attention" for n in layers]
    if arch != "gemma4" and list(getattr(text, "layer_types", None) or usual) != usual:
        return f"layer_types other than one full_attention after {(every or 1) - 1} sliding"
    rope = _rope(text).get("rope_type", "default")
    if rope not in (("proportional",) if arch == "gemma4" else ("default", "linear")):
        return f"rope_type {rope!r}"
    if arch == "gemma3n":
        return _unlike_gemma3n(text)
    return _unlike_gemma4(text) if arch == "gemma4" else ""


def _unlike_gemma3n(text: Any) -> str:
    for name, wanted in GEMMA3N.items():
        if (value := getattr(text, name)) != wanted:
            return f"{name} {value}; it takes {wanted}"
    layers = text.num_hidden_layers
    if text.num_kv_shared_layers != max(0, layers - OWN_KEYS):
        return f"num_kv_shared_layers {text.num_kv_shared_layers}; it takes all after {OWN_KEYS}"
    if list(text.activation_sparsity_pattern) != [0.95 * (n < SPARSE) for n in range(layers)]:
        return f"activation_sparsity_pattern other than 0.95 in {SPARSE} layers and 0 after them"
    return "" if text.final_logit_softcapping else "no final_logit_softcapping"


def _unlike_gemma4(text: Any) -> str:
    first = text.num_hidden_layers - text.num_kv_shared_layers
    kinds = text.layer_types[max(0, first - 2) : first]
    if text.num_kv_shared_layers and kinds != ["sliding_attention", FULL]:
        return "layers that share keys of others than a sliding and a full one right before them"
    return "attention in both directions" if text.use_bidirectional_attention == "all" else ""


def _rope(text: Any) -> dict[str, Any]:
    """The rotary embedding of the layers that look at everything."""
    return text.rope_parameters.get(FULL, text.rope_parameters)


def origin(writer: Any, name: str, base: str, license: str | None, n_parameters: int) -> None:
    """Write what the model is, and what it was tuned from."""
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


def settings(writer: Any, arch: str, text: Any) -> None:
    """Write the model's hyperparameters."""
    import gguf

    layers = range(text.num_hidden_layers)
    wide = per_layer(text, "head_dim")
    writer.add_context_length(text.max_position_embeddings)
    writer.add_embedding_length(text.hidden_size)
    writer.add_block_count(text.num_hidden_layers)
    shared = text.num_hidden_layers - (getattr(text, "num_kv_shared_layers", 0) or 0)
    broad, inner = getattr(text, "use_double_wide_mlp", False), text.intermediate_size
    writer.add_feed_forward_length(
        [inner * (1 + (n >= shared)) for n in layers] if broad else inner
    )
    writer.add_head_count(text.num_attention_heads)
    kv = per_layer(text, "num_key_value_heads")
    writer.add_head_count_kv(kv if len(set(kv)) > 1 else kv[0])
    writer.add_layer_norm_rms_eps(text.rms_norm_eps)
    writer.add_key_length(wide[-1])  # the last layer sees everything, where layers differ
    writer.add_value_length(wide[-1])
    full = _rope(text)
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
    if arch in ("gemma3n", "gemma4"):
        _newer(writer, arch, text)


def _newer(writer: Any, arch: str, text: Any) -> None:
    """What Gemma 3n and 4 have besides."""
    import statistics

    writer.add_embedding_length_per_layer_input(text.hidden_size_per_layer_input or 0)
    writer.add_shared_kv_layers(text.num_kv_shared_layers)
    writer.add_sliding_window_pattern([kind != FULL for kind in text.layer_types])
    if arch == "gemma3n":
        writer.add_altup_active_idx(text.altup_active_idx)
        writer.add_altup_num_inputs(text.altup_num_inputs)
        normal = statistics.NormalDist()
        shares = text.activation_sparsity_pattern
        far = [normal.inv_cdf(share) if share else float("-inf") for share in shares]
        writer.add_activation_sparsity_scale(far)
        return
    narrow, *_, wide = sorted(per_layer(text, "head_dim"))
    writer.add_key_length_swa(narrow)
    writer.add_value_length_swa(narrow)
    writer.add_rope_dimension_count(wide)
    part = text.rope_parameters["sliding_attention"].get("partial_rotary_factor", 1.0)
    writer.add_rope_dimension_count_swa(int(narrow * part))
    if text.enable_moe_block:
        writer.add_expert_count(text.num_experts)
        writer.add_expert_used_count(text.top_k_experts)
        writer.add_expert_feed_forward_length(text.moe_intermediate_size)


def per_layer(text: Any, name: str) -> list[int]:
    """A setting of each layer; in Gemma 4 those that see everything have another."""
    plain = text.to_dict()  # the object itself refuses to name one for all layers
    own = {str(n): one for n, one in (plain.get("per_layer_config") or {}).items()}
    return [own.get(str(n), {}).get(name, plain[name]) for n in range(text.num_hidden_layers)]


def rope_factors(text: Any) -> list[float]:
    """What Gemma 4's full layers divide each pair's frequency by: 1, or so much that it does not turn."""
    width = per_layer(text, "head_dim")[-1] // 2
    turning = int(2 * width * _rope(text).get("partial_rotary_factor", 1.0) / 2)
    return [1.0] * turning + [1e30] * (width - turning)


def tokens(arch: str, folder: Path, pieces: Path, rows: int) -> tuple[list[str], Any, Any]:
    """Texts, scores and types of the tokens, one for each of ``rows`` of the embedding."""
    if arch != "gemma4":
        return gguf_tokenizer.lists(folder, pieces, rows)
    import gguf

    if not (file := folder / "tokenizer.json").is_file():
        raise UserError(f"{folder} has no tokenizer.json, which GGUF's list of tokens is made from")
    found = list(gguf.LlamaHfVocab(folder).all_tokens())[:rows]
    texts, scores, types = map(list, zip(*found, strict=True))
    texts = [text.decode() for text in texts]
    for at, text, kind in gguf_tokenizer.added_tokens(file):
        if at < len(texts):
            texts[at], types[at] = text, kind
    for at in (n for n, text in enumerate(texts) if text in VISIBLE):
        types[at] = gguf_tokenizer.USER_DEFINED
    rest = range(len(texts), rows)
    texts += [f"[PAD{n}]" for n in rest]
    types += [gguf_tokenizer.UNUSED for _ in rest]
    return texts, scores + [-10_000.0] * len(rest), types


def vocabulary(writer: Any, arch: str, folder: Path, lists: tuple[list[str], Any, Any]) -> None:
    """Write ``tokens``, special ids, and the chat template if there is one."""
    import gguf

    texts, scores, kinds = lists
    writer.add_tokenizer_model("gemma4" if arch == "gemma4" else "llama")
    if arch != "gemma4":
        writer.add_tokenizer_pre("default")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    # it wonders at the BOS of a second text, which no one gives
    logging.getLogger("gguf.vocab").setLevel(logging.ERROR)
    special = gguf.SpecialVocab(folder, load_merges=arch == "gemma4", n_vocab=len(texts))
    if (generation := folder / "generation_config.json").is_file():
        ends = files.read_json(generation).get("eos_token_id", [])
        # GGUF has room for one control token more that ends an answer, such as <end_of_turn>
        for end in ends if isinstance(ends, list) else [ends]:
            if kinds[end] == gguf_tokenizer.CONTROL and end != special.special_token_ids.get("eos"):
                special.special_token_ids.setdefault("eot", end)
    special.add_special_token["bos"] = True
    special.add_to_gguf(writer, quiet=True)
    writer.add_add_space_prefix(False)
