"""Answers that grow together: prompts of like length in a batch, until each answer has a reason to stop."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from ft.generate import search, static
from ft.generate.decoding import Decoder
from ft.generate.draft import Draft
from ft.generate.logits import logprobs, read
from ft.generate.room import batches, room_for
from ft.generate.samplers import Beam, Contrastive, choose


def grow(
    model: Any,
    tokenizer: Any,
    drafts: Sequence[Draft],
    sampler: Any,
    *,
    use_cache: bool = True,
    scored: bool = True,
) -> Iterator[None]:
    """Let drafts grow by one id between two yields, until each has a reason to stop.

    Those that have stopped leave the batch, cache and all, once they are a fourth of it:
    transformers' ``generate`` would compute them until the last one stops.
    """
    import torch

    if isinstance(sampler, Contrastive):
        for draft in drafts:
            yield from search.contrastive(model, draft, sampler, use_cache=use_cache)
        return
    prompts = {id(draft.prompt): draft.prompt for draft in drafts}  # answers to one prompt share it
    places = {key: at for at, key in enumerate(prompts)}
    pad = tokenizer.pad_token_id
    room = max(draft.longest - len(draft.prompt) for draft in drafts)
    decoder = Decoder(
        *(model, list(prompts.values()), 0 if pad is None else pad), use_cache=use_cache, room=room
    )
    if len(prompts) < len(drafts):
        chosen = [places[id(draft.prompt)] for draft in drafts]
        decoder.select(torch.tensor(chosen, device=decoder.logits.device))
    try:
        yield from _grow(decoder, list(drafts), sampler, scored)
    finally:
        decoder.end()


def _grow(decoder: Decoder, alive: list[Draft], sampler: Any, scored: bool) -> Iterator[None]:
    import torch

    device = decoder.logits.device
    while True:
        chosen, checks = choose(
            sampler,
            decoder.logits,
            [draft.generator for draft in alive],
            [draft.prompt for draft in alive],
            [draft.ids for draft in alive],
        )
        columns = [chosen, *([logprobs(decoder.logits, chosen)] if scored else [])]
        ids, *chances = read(checks, *columns)
        for draft, token, chance in zip(alive, ids, *chances or [[0.0] * len(alive)], strict=True):
            if not draft.reason:
                draft.add(int(token), chance)
        yield
        going = [i for i, draft in enumerate(alive) if not draft.reason]
        if not going:
            return
        if 4 * (len(alive) - len(going)) >= len(alive):
            keep = torch.tensor(going, device=device)
            decoder.select(keep)
            chosen, alive = chosen[keep], [alive[i] for i in going]
        decoder.step(chosen)


def fitting(model: Any, drafts: Sequence[Draft]) -> list[list[int]]:
    """Indices of ``drafts`` in batches that there is room for."""
    return batches([draft.longest for draft in drafts], room_for(model))


def beams(
    model: Any,
    tokenizer: Any,
    drafts: Sequence[Draft],
    beam: Beam,
    use_cache: bool = True,
    progress: bool = False,
) -> list[list[Draft]]:
    """Each draft's best answers, best first; the longest are looked for first, so that there is room for those behind."""
    from tqdm import tqdm

    order = sorted(range(len(drafts)), key=lambda i: -drafts[i].longest)
    hidden = not progress or len(drafts) < 2
    with tqdm(total=len(drafts), desc="beams", disable=hidden, leave=False) as bar:
        found = search.search(
            model,
            [drafts[i] for i in order],
            beam,
            pad=tokenizer.pad_token_id or 0,
            use_cache=use_cache,
            room=room_for(model),
            advance=bar.update,
        )
    placed = dict(zip(order, found, strict=True))
    return [placed[i] for i in range(len(drafts))]


def shares(model: Any, groups: Sequence[Sequence[Draft]]) -> list[list[Draft]]:
    """The answers to each prompt, as many as there is room for, with those of prompts of like length."""
    units, room = [], room_for(model)
    for group in groups:
        many = max(1, room // group[0].longest)
        units += [group[i : i + many] for i in range(0, len(group), many)]
    sizes = [len(unit) * unit[0].longest for unit in units]
    return [[draft for i in batch for draft in units[i]] for batch in batches(sizes, room)]


def bar(shares: Sequence[Any], progress: bool) -> Any:
    """The same, with a progress bar where there is more than one."""
    from tqdm import tqdm

    hidden = not progress or len(shares) < 2
    return tqdm(shares, desc="generate", unit="batch", disable=hidden, leave=False)


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode and fast products while this lasts."""
    from ft.kernels import few_rows, joined

    was_training = model.training
    model.eval()
    try:
        with few_rows.fast(model), joined.fast(model), static.kept(model):
            yield
    finally:
        model.train(was_training)
