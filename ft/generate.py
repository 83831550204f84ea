"""Generation for evaluation and for use: greedy, batched by length, cached, stopped where the template ends."""

import functools
from collections.abc import Sequence
from typing import Any

from ft.errors import UserError
from ft.prompts import Template

BATCH_TOKENS = 4096  # prompt and answer tokens of one batch; bounds the key-value cache


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
    progress: bool = False,
) -> list[str]:
    """The model's most likely answer to each row's prompt, in the order of ``rows``.

    Prompts of like length share a batch, padded on the left. The answer ends before the template's
    stop strings. Several processes share the work; each gets all answers.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import gather_object
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
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    batches: list[list[int]] = []
    for i in order:  # the first of a batch is its longest
        if (
            batches
            and (len(batches[-1]) + 1) * (len(ids[batches[-1][0]]) + max_new_tokens) <= BATCH_TOKENS
        ):
            batches[-1].append(i)
        else:
            batches.append([i])
    stops = stop_ids(tokenizer, template)
    pad = tokenizer.pad_token_id
    mine: list[tuple[int, str]] = []
    was_training = model.training
    model.eval()
    share = batches[state.process_index :: state.num_processes]
    with (
        torch.inference_mode(),
        tqdm(
            total=sum(map(len, share)),
            desc="generate",
            unit="line",
            disable=not progress,
            leave=False,
        ) as bar,
    ):
        for batch in share:
            width = len(ids[batch[0]])
            padded = [[pad] * (width - len(ids[i])) + ids[i] for i in batch]
            tokens = torch.tensor(padded, device=state.device)
            answers = model.generate(
                input_ids=tokens,
                attention_mask=tokens != pad,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                top_k=None,
                top_p=None,
                eos_token_id=stops,
                pad_token_id=pad,
                use_cache=True,
            )
            texts = tokenizer.batch_decode(answers[:, width:], skip_special_tokens=True)
            mine += [(i, template.trim(text)) for i, text in zip(batch, texts, strict=True)]
            bar.update(len(batch))
    model.train(was_training)
    found = gather_object(mine) if state.num_processes > 1 else mine
    answers_by_row = dict(found)
    return [answers_by_row[i] for i in range(len(rows))]


@functools.lru_cache(maxsize=8)
def _holding(tokenizer: Any, stops: tuple[str, ...]) -> list[int]:
    """Ids of single tokens that hold a stop string."""
    if not stops:
        return []
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    return [i for i, text in enumerate(texts) if any(stop in text for stop in stops)]
