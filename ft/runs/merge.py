"""An adapter merged into its base: a plain transformers model that answers as both together do, or nothing."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft import files
from ft.errors import UserError, nearest
from ft.generate import draft
from ft.models import lora
from ft.runs import elsewhere
from ft.text import chat_template
from ft.text.template import OPTIONAL, Template

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from ft.runs.opened import Finished

# Mean KL divergence, in nats a token, between adapter and merged model that rounding can explain:
# bfloat16 keeps 8 bits of a weight, and rounds the adapter's own sum elsewhere than the merged one.
BOUNDS = {"fp32": 1e-6, "bf16": 2e-2}
KEPT = ("preprocessor_config.json", "processor_config.json", "tokenizer.model")
TEXTS = (  # of which the merged model is compared
    "Hello, my name is Morgane.",
    "idk what ur talking about lol",
    "How can I make brownies?",
    "tbh the new update is kinda trash, my phone keeps crashing :(",
)


@dataclass(frozen=True)
class Difference:
    """How far the merged model is from base + adapter, over all tokens of the prompts."""

    tokens: int
    kl: float  # mean KL divergence of the next-token distributions, nats
    largest: float  # largest absolute difference of a logit
    agreement: float  # share of tokens where both prefer the same next token
    bound: float  # of kl
    trained: "Difference | None" = (
        None  # from the model as it was trained, where that was in 4 bits
    )

    def __str__(self) -> str:
        apart = (
            f"\nfrom the 4-bit model that was trained: mean KL {self.trained.kl:.1e} nats, same first "
            f"choice {self.trained.agreement:.1%}; the merged one is in 16 bits or more"
            if self.trained
            else ""
        )
        return (
            f"compared on {self.tokens} tokens: mean KL {self.kl:.1e} nats "
            f"(bound {self.bound:.0e}), same first choice {self.agreement:.1%}, "
            f"largest difference of a logit {self.largest:.1e}{apart}"
        )


def merge_run(run: "Finished", out: Path, dtype: str = "auto") -> Difference:
    """``merge`` of a run, with its base and its template, where ``opened.check_base`` lets it.

    A run of a 4-bit base is compared with that, too. An adapter whose template was not given keeps the chat
    template that it brought.
    """
    from ft.runs.opened import check_base

    check_base(run)
    prompts, asked = list(TEXTS), run.trained_with
    if asked:
        pieces = asked._pieces("prompt")
        fields = {name for _, *names, _ in pieces for name in names if name} - OPTIONAL.keys()
        prompts = [asked.prompt_for(OPTIONAL | dict.fromkeys(fields, text)) for text in TEXTS]
    quantised = run.record.get("model", {}).get("precision") == "nf4"
    options = {"base": run.base, "template": asked, "prompts": prompts, "any_base": run.any_base}
    return merge(run.folder, out, dtype=dtype, trained="nf4" if quantised else None, **options)


def merge(
    adapter_folder: Path,
    out_folder: Path,
    *,
    prompts: Sequence[str],
    base: str | None = None,
    template: Template | None = None,
    dtype: str = "auto",
    bound: float | None = None,
    trained: str | None = None,
    any_base: bool = False,
) -> Difference:
    """Write base + adapter as one plain model folder, safetensors and tokenizer included.

    The tokenizer has the adapter's chat template, where it brought one, and its SentencePiece model,
    which converters read. With ``template``, which is its chat template then, transformers' ``generate``
    stops where the template ends.

    ``base`` is what ``models.load`` takes; without it, the adapter's own record. ``dtype`` is fp32,
    bf16, or ``auto``: fp32 for a base stored so, else bf16. ``prompts`` are real texts of the task.
    The written folder is loaded again by plain transformers and compared with base + adapter;
    ``bound`` limits the mean KL divergence (by default ``BOUNDS``); ``trained`` is the precision of another
    base that the adapter learnt on, of which the divergence is told. Nothing is written
    unless all is well: ``UserError`` otherwise, as for a base that is not the adapter's, unless ``any_base``.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from ft.kernels import recurrent
    from ft.models.load import load, load_config

    _check_dtype(dtype)
    files.check_new_dir(out_folder)
    if not (texts := [prompt for prompt in prompts if prompt.strip()]):
        raise UserError("merging needs at least one prompt to compare the merged model on.")
    base = base or _base_of(adapter_folder)
    if dtype == "auto":
        stored = str(load_config(base).dtype)
        dtype = "fp32" if stored.endswith("float32") else "bf16"
    loaded = load(base, precision=dtype, backend="transformers", text_only=False)
    ids = [loaded.tokenizer(text, return_tensors="pt").input_ids for text in texts]
    model = lora.load(loaded, adapter_folder, any_base=any_base)
    _check_mergeable(model, adapter_folder)
    expected = logits(model, ids)
    merged = _merged(model, adapter_folder, expected)
    with files.new_dir(out_folder) as new:
        if template:
            merged.generation_config.eos_token_id = _ends(merged, loaded.tokenizer, template)
        if template and template.name != "chat":
            chat_template.install(loaded.tokenizer, template)
        elif spoken := elsewhere.chat_template_of(adapter_folder):
            loaded.tokenizer.chat_template = spoken
        merged.save_pretrained(new)
        loaded.tokenizer.save_pretrained(new)
        for file in filter(Path.is_file, (loaded.path / name for name in KEPT)):
            shutil.copyfile(file, new / file.name)
        device = next(merged.parameters()).device
        # older versions of transformers take sdpa for Gemma 2, which leaves out its soft cap
        attention = "eager" if loaded.attention == "eager" else None
        del model, merged, loaded  # make room for the second copy
        learnt = _learnt(base, adapter_folder, trained, ids, any_base) if trained else None
        plain = AutoModelForCausalLM.from_pretrained(
            new,
            dtype=torch.float32 if dtype == "fp32" else torch.bfloat16,
            attn_implementation=attention,
            local_files_only=True,
        )
        if plain.config.model_type == "recurrent_gemma":
            recurrent.install(plain)
        got = logits(plain.to(device), ids)
        difference = compare(expected, got, bound or BOUNDS[dtype])
        if learnt:
            difference = replace(difference, trained=compare(learnt, got, math.inf))
        if not difference.kl <= difference.bound:
            less = ". --dtype fp32 rounds less, and takes twice the room" * (dtype != "fp32")
            raise UserError(f"merged and adapter differ, {difference}. Nothing was written{less}.")
    return difference


def _check_dtype(dtype: str) -> None:
    if dtype not in {"auto", *BOUNDS}:
        raise UserError(
            f"dtype {dtype!r}: a merged model is stored as auto, {' or '.join(BOUNDS)}, "
            "never in 4 bits." + nearest(dtype, BOUNDS)
        )


def _check_mergeable(model: Any, adapter: Path) -> None:
    """Raise ``UserError`` for an adapter that no weight of its base can hold.

    On one of two layers that share a weight: merged, both would change. With a bias, which Gemma's layers lack.
    """
    if model.active_peft_config.lora_bias:
        raise UserError(
            f"{adapter} has lora_bias, and the layers of a Gemma have no bias that it could be merged into. Use it "
            "unmerged."
        )
    names = [name for name, module in model.named_modules() if hasattr(module, "lora_B")]
    on = [name for name in names if name.endswith("embed_tokens")]
    if on and model.config.get_text_config().tie_word_embeddings:
        raise UserError(
            f"{adapter} has LoRA on {on[0]}, whose weight is the head's too: merged, both would change. Use it "
            "unmerged, or train one without that layer."
        )


def _merged(model: Any, adapter: Path, expected: Sequence["Float[Tensor, '_ v']"]) -> Any:
    """The model with its adapter in its weights. Raises ``UserError`` where these or its logits are not finite."""
    base = model.get_base_model().name_or_path
    try:
        if not all(rows.isfinite().all() for rows in expected):
            raise ValueError("the logits are NaN or infinite")
        with lora.quiet():
            return model.merge_and_unload(safe_merge=True)
    except ValueError as error:  # PEFT's, of a layer that no text reaches
        raise UserError(
            f"{adapter} on {base} cannot be merged, the weights of one of the two are damaged: {error}. "
            "Nothing was written."
        ) from None


def _base_of(adapter: Path) -> str:
    """The base that an adapter names. Raises ``UserError`` where it names none."""
    file = adapter / "adapter_config.json"
    if not file.is_file():
        raise UserError(f"{adapter} is not an adapter: it has no adapter_config.json.")
    config = files.read_json(file)
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(
            f"{file} does not say which base it belongs to: write its Hub id or folder there, "
            "as base_model_name_or_path."
        )
    on_hub = config.get("revision") and not Path(base).is_absolute()
    return f"{base}@{config['revision']}" if on_hub else base


def _learnt(
    base: str, adapter: Path, precision: str, ids: Sequence[Any], any_base: bool
) -> list[Any] | None:
    """Logits of base + adapter in the precision that it learnt in; none where that is not possible here."""
    from ft.models.load import load

    try:
        loaded = load(base, precision=precision, backend="transformers", text_only=False)
    except UserError:  # no bitsandbytes here
        return None
    return logits(lora.load(loaded, adapter, any_base=any_base), ids)


def _ends(model: Any, tokenizer: Any, template: Template) -> list[int]:
    """The ids that end an answer, and those of tokens that hold one of the template's stop strings."""
    pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))]) if template.stop else []
    holding = {i for i, piece in enumerate(pieces) if any(stop in piece for stop in template.stop)}
    return sorted(draft.end_ids(model, tokenizer, template.end, *template.stop) | holding)


def logits(model: Any, ids: Sequence["Int[Tensor, '1 _']"]) -> list["Float[Tensor, '_ v']"]:
    """Next-token logits of each row of ``ids``, in float32 on the CPU."""
    import torch

    model.eval()
    device = next(model.parameters()).device
    with torch.no_grad():
        return [model(row.to(device), use_cache=False).logits[0].float().cpu() for row in ids]


def compare(
    expected: Sequence["Float[Tensor, '_ v']"],
    got: Sequence["Float[Tensor, '_ v']"],
    bound: float,
) -> Difference:
    """The difference of two results of ``logits``."""
    tokens = sum(len(rows) for rows in expected)
    kl, largest, agreeing = 0.0, 0.0, 0
    for a, b in zip(expected, got, strict=True):
        p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
        kl += (p.exp() * (p - q)).sum().item()
        largest = max(largest, (a - b).abs().max().item())
        agreeing += int((a.argmax(-1) == b.argmax(-1)).sum())
    return Difference(tokens, kl / tokens, largest, agreeing / tokens, bound)
