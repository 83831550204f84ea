"""Tiny random Gemma models of every generation, and their tokenizer, for tests offline."""

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 400  # rows of the embedding; the tokenizer fills fewer, as Gemma 3's does

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]  # ids 0 to 5

CORPUS = [
    "Translate this into French:\nHello, my name is Morgane.\n",
    "Bonjour, je m'appelle Morgane.\nTranslate this into English:\n",
    "<bos>user\nmodel\nWrite a response that appropriately completes the request.",
    "### Instruction:\nWhat is the capital of France?\n\n### Response:\nParis.",
    "Ce matin, le chat dort sur la table ; the cat sleeps on the table this morning.",
    "0123456789 ABCDEFGHIJKLMNOPQRSTUVWXYZ abcdefghijklmnopqrstuvwxyz éèàçù !?'\"-:;,.()#",
]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) }}\n"
    "{{ message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)

# Both layer types in every generation that has both; windows short enough for a test to cross.
_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
_SLIDING: dict[str, Any] = {
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
_SOFT_CAPS = {"query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0}
_GEMMA3 = {**_TEXT, **_SLIDING, "query_pre_attn_scalar": 16}
_GEMMA4 = {
    **_TEXT,
    **_SLIDING,
    "global_head_dim": 32,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "final_logit_softcapping": 30.0,
}
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_TEXT_OPTIONS: dict[str, dict[str, Any]] = {
    "gemma": _TEXT,
    "gemma2": {**_TEXT, **_SLIDING, **_SOFT_CAPS, "attn_logit_softcapping": 50.0},
    "gemma3_text": _GEMMA3,
    "gemma3": _GEMMA3,
    "gemma3n": {
        **_TEXT,
        **_SLIDING,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
    },
    "gemma4_text": _GEMMA4,
    "gemma4_moe": {
        **_GEMMA4,
        "hidden_size_per_layer_input": 0,
        "num_kv_shared_layers": 0,
        "attention_k_eq_v": True,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "gemma4": _GEMMA4,
    "recurrent_gemma": {
        **{k: v for k, v in _TEXT.items() if k not in {"head_dim", "initializer_range"}},
        "num_hidden_layers": 3,
        "lru_width": 32,
        "attention_window_size": 8,
        "w_init_variance_scale": 1.0,
    },
}

KINDS = tuple(_TEXT_OPTIONS)  # gemma3n is its text model: its vision tower needs timm
MULTIMODAL = ("gemma3", "gemma4")


def config(kind: str, **overrides: Any) -> Any:
    """The configuration of one kind; ``overrides`` change its text part."""
    import transformers as hf

    options = {**_TEXT_OPTIONS[kind], **overrides}
    options = {k: list(v) if isinstance(v, list) else v for k, v in options.items()}
    if kind == "gemma3":
        return hf.Gemma3Config(
            text_config=options,
            vision_config={**_TOWER, "image_size": 16, "patch_size": 8},
            mm_tokens_per_image=4,
            boi_token_index=390,
            eoi_token_index=391,
            image_token_index=392,
        )
    if kind == "gemma4":
        return hf.Gemma4Config(
            text_config=options,
            vision_config={
                **_TOWER,
                "num_key_value_heads": 2,
                "head_dim": 8,
                "patch_size": 4,
                "pooling_kernel_size": 2,
                "position_embedding_size": 16,
            },
            audio_config={
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "subsampling_conv_channels": [4, 2],
                "output_proj_dims": 16,
            },
            **{
                name: 390 + i
                for i, name in enumerate(
                    ["boi_token_id", "eoi_token_id", "image_token_id", "video_token_id"]
                    + ["boa_token_id", "eoa_token_index", "audio_token_id"]
                )
            },
        )
    names = {
        "gemma": hf.GemmaConfig,
        "gemma2": hf.Gemma2Config,
        "gemma3_text": hf.Gemma3TextConfig,
        "gemma3n": hf.Gemma3nTextConfig,
        "gemma4_text": hf.Gemma4TextConfig,
        "gemma4_moe": hf.Gemma4TextConfig,
        "recurrent_gemma": hf.RecurrentGemmaConfig,
    }
    return names[kind](**options)


def build(kind: str, seed: int = 0, *, plain: bool = False, **overrides: Any) -> "PreTrainedModel":
    """A random model in float32 and eval mode; the same seed gives the same weights.

    RecurrentGemma is mended as `models.load` does it, unless ``plain``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ft.kernels import recurrent

    torch.set_num_threads(1)  # for tiny products, threads only wait for each other
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            config(kind, **overrides),
            dtype=torch.float32,
            # older versions of transformers take sdpa for Gemma 2, which leaves out its soft cap
            attn_implementation="eager" if kind == "gemma2" else None,
        )
        with torch.no_grad():  # zeros and ones hide mistakes: norms, AltUp's scale
            for parameter in model.parameters():
                if parameter.dim() == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    if kind == "recurrent_gemma" and not plain:
        recurrent.install(model)
    return model.eval()


@functools.cache
def _trained() -> str:
    """The JSON of a byte-fallback BPE tokenizer with Gemma's special tokens that adds a BOS."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from tokenizers.trainers import BpeTrainer

    learner = Tokenizer(models.BPE())
    normalizer = normalizers.Replace(" ", "▁")
    learner.normalizer = normalizer  # type: ignore[assignment]
    learner.train_from_iterator(CORPUS, BpeTrainer(vocab_size=122, show_progress=False))
    learned = sorted(learner.get_vocab().items(), key=lambda item: item[1])
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + [name for name, _ in learned]
    vocabulary = {name: index for index, name in enumerate(names)}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    bpe = models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    result = Tokenizer(bpe)
    result.normalizer = normalizer  # type: ignore[assignment]
    result.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    result.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", 2)]
    )
    result.add_special_tokens([AddedToken(n, normalized=False, special=True) for n in SPECIAL])
    return result.to_str()


def tokenizer() -> "PreTrainedTokenizerFast":
    """A fast tokenizer with Gemma's special tokens and a chat template of its turns."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def folder(kind: str, path: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a model and its tokenizer as a Hugging Face folder, and return ``path``."""
    build(kind, seed, **overrides).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path
