"""Answers while they grow: in steps that one may stop between, or as a stream of text."""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any

from ft.generate import answers, together
from ft.generate.draft import Answer, Draft, Prompt
from ft.generate.samplers import Beam, Greedy, Sampler
from ft.text.template import Template


def steps(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampler: Sampler = Greedy(),  # noqa: B008
    *,
    max_new_tokens: int = 256,
    template: Template | None = None,
    stop: Sequence[str] = (),
    seed: int = 0,
    n: int = 1,
    calls: bool = False,
) -> Generator[dict[int, Draft], None, list[list[Answer]]]:
    """``answers.generate`` in steps that one may stop between; returns its answers.

    Yields the answers that have just grown by an id, by their number (``n`` to the first prompt, then
    those to the second); those of ``Beam``, which knows them only at the end, as one piece. With ``calls`` those of tools are kept apart from the text. The arguments are
    checked before the first step is asked for. Raises ``UserError`` as ``generate`` does.
    """
    answers.check(sampler, max_new_tokens=max_new_tokens, stop=stop, n=n)
    groups = answers.begun(
        *(model, tokenizer, prompts, template, stop, max_new_tokens, seed, n), calls=calls
    )
    numbers = {id(draft): i for i, draft in enumerate(d for group in groups for d in group)}

    def grown() -> Generator[dict[int, Draft], None, list[list[Answer]]]:
        with together.evaluating(model):
            if isinstance(sampler, Beam):
                for at, (draft, *_) in enumerate(groups):
                    yield {}
                    (found,) = together.beams(model, tokenizer, [draft], sampler)
                    groups[at] = found[:n]
                    for best in groups[at]:  # all of it is certain now, and nothing was before
                        best.piece, best.thought_piece = best.text, best.answer().thought
                    yield {at * n + i: best for i, best in enumerate(groups[at])}
                return [[draft.answer() for draft in group] for group in groups]
            for drafts in together.shares(model, groups):
                growing = {numbers[id(draft)]: draft for draft in drafts}
                for _ in together.grow(model, tokenizer, drafts, sampler):
                    yield growing
                    growing = {i: draft for i, draft in growing.items() if not draft.reason}
        return [[draft.answer() for draft in group] for group in groups]

    return grown()


def stream(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    sampler: Sampler = Greedy(),  # noqa: B008
    **options: Any,
) -> Generator[str, None, Answer]:
    """The text of one answer in pieces, each as soon as it is certain; returns the answer.

    Pieces are whole characters, with nothing of a stop string or after it. The options and errors are
    those of ``steps``.
    """
    growing = steps(model, tokenizer, [prompt], sampler, **options)

    def pieces() -> Generator[str, None, Answer]:
        with contextlib.closing(growing):
            while True:
                try:
                    grown = next(growing)
                except StopIteration as ended:
                    ((answer,),) = ended.value
                    return answer
                for draft in grown.values():
                    if draft.piece:
                        yield draft.piece

    return pieces()
