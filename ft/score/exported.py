"""A GGUF file beside the model that it holds: llama.cpp's greedy answers and perplexity, and ours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.text.examples import IGNORE, Example

if TYPE_CHECKING:
    from ft.generate.draft import Draft
    from ft.models import llama
    from ft.text.template import Template

SHOWN = 3  # answers that differ


@dataclass(frozen=True)
class Parting:
    """An answer of llama.cpp's that is not ours, from the first token on that differs."""

    prompt: str
    ours: str
    theirs: str
    after: int  # tokens that are the same
    rest: int  # tokens of ours from there on
    margin: float  # by how much our logit of our token there is above that of theirs


@dataclass(frozen=True)
class Agreement:
    """How far llama.cpp with a file answers as the model does."""

    answers: int
    alike: int  # prompts whose text llama.cpp encodes as we do
    tokens: int  # of our answers
    partings: tuple[Parting, ...]
    perplexity: float  # of the file
    ours: float  # perplexity of the model

    @property
    def share(self) -> float:
        """Of answers that are the same, token by token."""
        return 1 - len(self.partings) / self.answers

    @property
    def common(self) -> float:
        """Part of the tokens of our answers that come before the first difference."""
        return 1 - sum(parting.rest for parting in self.partings) / self.tokens

    @property
    def worse(self) -> float:
        """By what part the file's perplexity is above the model's."""
        return self.perplexity / self.ours - 1

    def __str__(self) -> str:
        equal = self.answers - len(self.partings)
        lines = [
            f"prompts encoded alike    {self.alike} of {self.answers}",
            f"greedy answers equal     {equal} of {self.answers} ({self.share:.1%}); {self.common:.1%} of the "
            "tokens come before a difference",
            f"perplexity               {self.perplexity:.3f} of the file, {self.ours:.3f} of the model "
            f"({self.worse:+.1%})",
        ]
        widest = sorted(self.partings, key=lambda parting: -parting.margin)
        if widest:
            middle = widest[len(widest) // 2].margin
            lines += [
                f"where answers part       our logits of the two tokens are {middle:.3f} apart in the "
                f"middle, {widest[0].margin:.3f} at most"
            ]
        for parting in widest[:SHOWN]:
            lines += [
                f"  {parting.margin:.3f} after {parting.after} tokens of {parting.prompt[-60:]!r}",
                f"    ours       {parting.ours[:80]!r}",
                f"    llama.cpp  {parting.theirs[:80]!r}",
            ]
        return "\n".join(lines)


def compare(
    file: Path,
    model: Any,
    tokenizer: Any,
    template: "Template",
    examples: Sequence[Example],
    *,
    max_new_tokens: int,
) -> Agreement:
    """Both on ``examples``: greedy answers to their last prompts, and the perplexity of what is supervised.

    llama.cpp is given the prompt's text, as a program would, and its answer ends where ours does.
    """
    from tqdm import tqdm

    from ft.generate.answers import begun, generate
    from ft.models import llama
    from ft.score import likelihood

    if not examples:
        raise UserError("there is no row to compare answers on")
    prompts = [prompt_of(example) for example in examples]
    options = {"template": template, "max_new_tokens": max_new_tokens}
    ours = [found.ids for (found,) in generate(model, tokenizer, prompts, **options, progress=True)]
    drafts = begun(model, tokenizer, prompts, template, (), max_new_tokens, 0)
    nats, alike, partings = 0.0, 0, []
    room = max(len(example["input_ids"]) for example in examples) + max_new_tokens + 8
    with llama.File(file, room) as opened:
        every = list(zip(examples, drafts, ours, strict=True))
        for example, (draft,), own in tqdm(every, desc="llama.cpp", leave=False):
            nats += _nats(opened, example)
            text = tokenizer.decode(draft.prompt[1:], skip_special_tokens=False)
            ids = opened.encode(text)
            alike += ids == draft.prompt
            theirs = _answer(opened, ids, draft)
            if theirs != own:
                partings.append(_parting(model, tokenizer, draft.prompt, own, theirs))
    seen = likelihood.of_examples(model, examples)
    return Agreement(
        *(len(examples), alike, sum(map(len, ours)), tuple(partings)),
        math.exp(nats / seen.tokens),
        seen.perplexity,
    )


def prompt_of(example: Example) -> list[int]:
    """The ids before an example's last answer."""
    labels = example["labels"]
    last = max((i for i, label in enumerate(labels) if label != IGNORE), default=0)
    while last and labels[last - 1] != IGNORE:
        last -= 1
    return list(example["input_ids"][:last])


def _nats(file: "llama.File", example: Example) -> float:
    """Cross-entropy of an example's supervised tokens, summed."""
    import numpy as np

    ids, labels = list(example["input_ids"]), example["labels"]
    places = [i for i in range(1, len(ids)) if labels[i] != IGNORE]
    file.begin()
    total = 0.0
    for i, logits in zip(places, file.read(ids, [i - 1 for i in places]), strict=True):
        highest = float(logits.max())
        total += highest + math.log(np.exp(logits.astype(float) - highest).sum()) - logits[ids[i]]
    return float(total)


def _answer(file: "llama.File", ids: list[int], draft: "Draft") -> tuple[int, ...]:
    file.begin()
    while draft.reason is None:
        draft.add(int(file.read(ids)[0].argmax()))
        ids = draft.ids[-1:]
    return tuple(draft.ids)


def _parting(
    model: Any, tokenizer: Any, prompt: list[int], ours: Sequence[int], theirs: Sequence[int]
) -> Parting:
    """Where two answers, that both came to an end, are no longer the same."""
    import torch

    from ft.score.logits import following

    at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b)
    device = model.get_input_embeddings().weight.device
    logits = following(model, torch.tensor([[*prompt, *ours[:at]]], device=device))[0]
    return Parting(
        tokenizer.decode(prompt[1:]),
        tokenizer.decode(ours[at:]),
        tokenizer.decode(theirs[at:]),
        at,
        len(ours) - at,
        float(logits[ours[at]] - logits[theirs[at]]),
    )
