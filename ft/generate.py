"""Generation for evaluation and for use: greedy, batched by length, cached, stopped where the template ends."""

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from ft.errors import UserError
from ft.prompts import Template

CACHE_BYTES = {"cpu": 2**28, "cuda": 2**31}  # of keys and values that one batch may hold
BLOCK = 512  # ids whose maximum is taken together


def stop_ids(tokenizer: Any, template: Template) -> list[int]:
    """Token ids after which text can hold nothing that the template wants.

    The end token, and every token whose text begins with a stop string or holds it behind white
    space or text of its own: what stands before the stop inside that token is kept by ``trim``.
    """
    return [tokenizer.eos_token_id, *_holding(tokenizer, template.stop)]


def greedy(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    *,
    max_new_tokens: int,
    max_ratio: float | None = None,
    progress: bool = False,
) -> list[str]:
    """The model's most likely answer to each row's prompt, in the order of ``rows``.

    With ``max_ratio``, an answer has at most that many tokens for each of its prompt, and 16 more: a
    model that repeats itself would otherwise take most of an evaluation's time. Prompts of like
    length share a batch, padded on the left. The answer ends before the template's stop strings.
    Several processes share the work, each gets all answers; where they share the parameters (FSDP),
    all run the same batches, for a forward needs every one of them.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import DistributedType, gather_object
    from tqdm import tqdm

    state = PartialState()
    prompts = [template.prompt_for(row) for row in rows]
    if empty := [i + 1 for i, row in enumerate(rows) if not any(v.strip() for v in row.values())]:
        raise UserError(f"row {empty[0]} is empty: there is nothing to translate")
    encoded = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ids = [[tokenizer.bos_token_id, *prompt] for prompt in encoded]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if context and len(ids[longest]) + max_new_tokens > context:
        raise UserError(
            f"row {longest + 1} has {len(ids[longest])} tokens; with {max_new_tokens} new ones that is "
            f"more than the model's context of {context}"
        )
    most = [
        min(max_new_tokens, int(max_ratio * len(prompt)) + 16) if max_ratio else max_new_tokens
        for prompt in ids
    ]
    kind = model.get_input_embeddings().weight.device.type
    room = CACHE_BYTES.get(kind, 2**28) // _cache_bytes(model)  # tokens
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches: list[list[int]] = []
    for i in order:  # the first of a batch is its longest
        first = batches[-1][0] if batches else i
        if batches and (len(batches[-1]) + 1) * (len(ids[first]) + most[first]) <= room:
            batches[-1].append(i)
        else:
            batches.append([i])
    stops = stop_ids(tokenizer, template)
    pad = tokenizer.pad_token_id
    mine: list[tuple[int, str]] = []
    was_training = model.training
    model.eval()
    apart = state.num_processes > 1 and state.distributed_type != DistributedType.FSDP
    share = batches[state.process_index :: state.num_processes] if apart else batches
    with (
        torch.inference_mode(),
        _contiguous_head(model),
        tqdm(
            total=sum(map(len, share)),
            desc="generate",
            unit="line",
            disable=not (progress and state.is_main_process),
            leave=False,
        ) as bar,
    ):
        for batch in share:
            limits = [most[i] for i in batch]
            answers = _answers(model, [ids[i] for i in batch], stops, pad, limits)
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            mine += [(i, template.trim(text)) for i, text in zip(batch, texts, strict=True)]
            bar.update(len(batch))
    model.train(was_training)
    found = gather_object(mine) if apart else mine
    answers_by_row = dict(found)
    return [answers_by_row[i] for i in range(len(rows))]


def _answers(
    model: Any, prompts: list[list[int]], stops: list[int], pad: int, most: list[int]
) -> list[list[int]]:
    """At most ``most`` new ids for each prompt, up to the first stop and with it: it may begin with wanted text.

    Prompts are padded on the left. Rows that have stopped leave the batch, cache and all, once they
    are a fourth of it: transformers' ``generate`` would compute them until the last one stops.
    """
    import torch
    from transformers import DynamicCache

    device = model.get_input_embeddings().weight.device
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
    lengths = [len(p) for p in prompts]
    mask = torch.tensor([[0] * (width - n) + [1] * n for n in lengths], device=device)
    cache = DynamicCache(config=model.config)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # the prompt that each row of the batch belongs to
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    stop_tensor = torch.tensor(stops, device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    limits = torch.tensor(most, device=device)
    for step in range(max(most)):
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        chosen = _argmax(output.logits[:, -1])
        for prompt, token, stopped in zip(alive, chosen.tolist(), done.tolist(), strict=True):
            if not stopped:
                answers[prompt].append(token)
        done |= torch.isin(chosen, stop_tensor) | (limits <= step + 1)
        if bool(done.all()):
            break
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        ids, positions = chosen[:, None], positions[:, -1:] + 1
        if 4 * int(done.sum()) >= len(done):
            keep = (~done).nonzero().flatten()
            cache.reorder_cache(keep)  # pyright: ignore[reportArgumentType]  # selects in every layer
            ids, positions, mask, done = ids[keep], positions[keep], mask[keep], done[keep]
            limits = limits[keep]
            alive = [alive[i] for i in keep.tolist()]
    return answers


def _cache_bytes(model: Any) -> int:
    """Bytes of keys and values that a token leaves in all layers (at most: some layers share them)."""
    widths = [
        module.out_features
        for name, module in model.named_modules()
        if name.endswith((".k_proj", ".v_proj")) and hasattr(module, "out_features")
    ]
    return sum(widths) * model.get_input_embeddings().weight.element_size()


def _argmax(logits: Any) -> Any:
    """The first id of the highest logit, [B, V] to [B]: by blocks, a tenth of ``argmax``'s time in bf16."""
    import torch

    if logits.shape[1] % BLOCK:
        return logits.argmax(-1)
    blocks = logits.reshape(len(logits), -1, BLOCK)
    best = blocks.amax(-1).argmax(-1)  # [B]
    within = blocks[torch.arange(len(blocks), device=logits.device), best].argmax(-1)
    return best * BLOCK + within


@contextlib.contextmanager
def _contiguous_head(model: Any) -> Iterator[None]:
    """Give the head contiguous rows while this lasts.

    The last position of each prompt is a strided slice, for which PyTorch multiplies a frozen head
    as one copy of it for every row: 16 GB and a minute for 48 prompts of Gemma 3 270M.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()


@functools.lru_cache(maxsize=8)
def _holding(tokenizer: Any, stops: tuple[str, ...]) -> list[int]:
    """Ids of single tokens that hold a stop string."""
    if not stops:
        return []
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if any(stop in text for stop in stops)]
