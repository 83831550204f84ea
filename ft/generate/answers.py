"""Answers to prompts or rows by any sampler, in batches or as a stream, stopped where the template ends."""

from collections.abc import Sequence
from typing import Any

from ft.errors import UserError
from ft.generate import together
from ft.generate.draft import Answer as Answer
from ft.generate.draft import (
    Draft,
    End,
    Prompt,
    drafts_for,
    encode,
    end_ids,
    limit,
    stop_strings,
)
from ft.generate.samplers import Beam, Contrastive, Greedy, Sampler
from ft.machine import apart, state
from ft.models.load import context_of
from ft.text import forms
from ft.text.template import Template

MOST = 10_000  # answers to a prompt


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampler: Sampler = Greedy(),  # noqa: B008  # a frozen value
    *,
    max_new_tokens: int = 256,
    max_ratio: float | None = None,
    template: Template | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    n: int = 1,
    use_cache: bool = True,
    progress: bool = False,
    shared: bool = False,
) -> list[list[Answer]]:
    """``n`` answers to each prompt, the best first where the sampler (``Beam``) ranks them.

    A ``str`` gets BOS in front unless it begins with it, and is otherwise as it is; ids are taken as they are, such as those of
    ``tokens.prompt_ids``. An answer ends at the tokenizer's EOS, at the ids that the model's generation
    config names, at the end token and the stop strings of ``template``, and at those of ``stop``; with
    ``max_ratio`` after that many tokens for each of its prompt and 16 more.

    Draws depend on ``seed``, the prompt and the number of the answer alone, not on what else is in the
    batch; a prompt that occurs a second time gets the answers that follow those of the first. Prompts
    of like length share a batch, and the answers to one prompt share its computation. With ``shared`` several
    processes that ask for the same share the prompts, and each gets all answers.

    Raises ``UserError`` for a prompt that is empty or fills the context, an empty stop string, more
    answers than the sampler has, and logits that are not finite.
    """
    check(sampler, max_new_tokens=max_new_tokens, stop=stop, n=n)
    groups = begun(
        model, tokenizer, prompts, template, stop, max_new_tokens, seed, n, max_ratio=max_ratio
    )
    numbers = range(len(groups))[own_part() if shared else slice(None)]
    groups = [groups[i] for i in numbers]
    with together.evaluating(model):
        if isinstance(sampler, Beam):
            firsts = [group[0] for group in groups]
            found = together.beams(model, tokenizer, firsts, sampler, use_cache, progress)
            groups = [best[:n] for best in found]
        else:
            for drafts in together.bar(together.shares(model, groups), progress):
                for _ in together.grow(model, tokenizer, drafts, sampler, use_cache=use_cache):
                    pass
    found = [[draft.answer() for draft in group] for group in groups]
    return gathered([*zip(numbers, found, strict=True)]) if shared else found


def check(sampler: Sampler, *, max_new_tokens: int, stop: Sequence[str] = (), n: int = 1) -> None:
    """Raise ``UserError`` for what could be done with no model and no prompt."""
    width = sampler.width if isinstance(sampler, Beam) else 1
    if n < 1 or n > width and isinstance(sampler, Beam | Contrastive | Greedy):
        raise UserError(f"n = {n}: {sampler} has {width} answer{'s' * (width > 1)} to a prompt")
    if n > MOST:
        raise UserError(f"n = {n:,}: at most {MOST:,} answers are held at once; ask for fewer")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens = {max_new_tokens}; it must be 1 or more")
    if not all((stop,) if isinstance(stop, str) else stop):
        raise UserError("a stop string is empty: every text holds it; leave it out")


def begun(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    template: Template | None,
    stop: Sequence[str],
    max_new_tokens: int,
    seed: int,
    n: int = 1,
    *,
    calls: bool = False,
    max_ratio: float | None = None,
) -> list[list[Draft]]:
    """``n`` empty drafts of answers to each prompt, which ``generate`` lets grow. Raises as it does."""
    draft = drafts_for(model, tokenizer, template, stop, max_new_tokens, seed, calls, max_ratio)
    counts: dict[tuple[int, ...], int] = {}
    groups: list[list[Draft]] = []
    for ids in encode(model, tokenizer, prompts):
        first = counts.get(tuple(ids), 0)
        counts[tuple(ids)] = first + n
        groups.append([draft(ids, number) for number in range(first, first + n)])
    return groups


def of_rows(
    model: Any,
    tokenizer: Any,
    template: Template,
    rows: Sequence[dict[str, str]],
    sampler: Greedy | Beam = Greedy(),  # noqa: B008
    *,
    max_new_tokens: int,
    max_ratio: float | None = None,
    progress: bool = False,
) -> list[str]:
    """The likeliest answer to each row's prompt that ``sampler`` finds, in the order of ``rows``.

    With ``max_ratio``, an answer has at most that many tokens for each of its prompt, and 16 more.
    Prompts of like length share a batch, padded on the left. The answer ends before the template's stop strings.
    Several processes share the work, each gets all answers; where they share the parameters (FSDP),
    all run the same batches, for a forward needs every one of them.
    """
    prompts = [template.prompt_for(row) for row in rows]
    if empty := [i + 1 for i, row in enumerate(rows) if not any(v.strip() for v in row.values())]:
        raise UserError(f"row {empty[0]} is empty: there is nothing to translate")
    encoded = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    ids = [[tokenizer.bos_token_id, *prompt] for prompt in encoded]
    context = context_of(model.config)
    longest = max(range(len(ids)), key=lambda i: len(ids[i]))
    if context and len(ids[longest]) + max_new_tokens > context:
        raise UserError(
            f"row {longest + 1} has {len(ids[longest])} tokens; with {max_new_tokens} new ones that is "
            f"more than the model's context of {context}"
        )
    strings = stop_strings(template)
    ends, thought = end_ids(model, tokenizer, *strings), forms.thought_ids(template, tokenizer)
    drafts = [
        Draft(
            tokenizer, prompt, End(ends, strings, limit(prompt, max_new_tokens, max_ratio), thought)
        )
        for prompt in ids
    ]
    seen, part = progress and state().is_main_process, own_part()
    with together.evaluating(model):
        if isinstance(sampler, Beam):
            chosen = sorted(range(len(drafts)), key=lambda i: -drafts[i].longest)[part]
            own = [drafts[i] for i in chosen]
            found = together.beams(model, tokenizer, own, sampler, progress=seen)
            texts = [best[0].text for best in found]
        else:
            shares = together.fitting(model, drafts)[part]
            for batch in together.bar(shares, seen):
                own = [drafts[i] for i in batch]
                for _ in together.grow(model, tokenizer, own, sampler, scored=False):
                    pass
            chosen = [i for batch in shares for i in batch]
            texts = [drafts[i].text for i in chosen]
    return gathered([(i, template.trim(text)) for i, text in zip(chosen, texts, strict=True)])


def write(
    model: Any, tokenizer: Any, template: Template, prompts: list[list[int]], **options: Any
) -> list[list[Answer]]:
    """``generate``'s answers to each prompt, which several processes share, with progress in the main one."""
    seen = state().is_main_process
    options |= {"template": template, "progress": seen, "shared": True}
    return generate(model, tokenizer, prompts, **options)


def own_part() -> slice:
    """Which of several things, or of their batches, this process does."""
    return slice(state().process_index, None, state().num_processes) if apart() else slice(None)


def gathered(found: list[tuple[int, Any]]) -> list[Any]:
    """What all processes found, by its number."""
    from accelerate.utils import gather_object

    pairs = gather_object(found) if apart() else found
    return [one for _, one in sorted(pairs, key=lambda pair: pair[0])]
