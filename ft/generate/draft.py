"""An answer while it grows: what ends it, and its text in whole characters up to there."""

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ft.errors import UserError
from ft.models.load import context_of
from ft.models.vision import ImagePrompt
from ft.text import forms
from ft.text.template import Template

Prompt = str | Sequence[int]


# what a tokenizer writes for the first bytes of a character
UNFINISHED = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Answer:
    """What a model wrote after a prompt.

    ``ids`` are all that it wrote, with the one that ended it; ``logprobs`` are their log-probabilities
    by the model itself, whatever the sampler made of them; ``text`` ends before an end token and
    before a stop string; ``thought`` is what it thought before, where the chat template keeps that
    apart. ``reason``: ``"end"`` for an end token, ``"stop"`` for a stop string,
    ``"length"`` for as many tokens as were asked for or as the context holds.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Literal["end", "stop", "length"]
    thought: str = ""


@dataclass(frozen=True)
class End:
    """What ends an answer: an id of ``ids``, a string of ``strings``, or ``most`` tokens."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    most: int
    thought: tuple[int, int, str] | None = (
        None  # ids around a thought, and the label that it begins with
    )


class Draft:
    """An answer while it grows by ids.

    ``piece`` is the text that became certain with the last id: whole characters, and nothing of a
    stop string. What may be the beginning of one is held back until it is known not to be.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], end: End, generator: Any = None) -> None:
        self.prompt, self.end, self.generator = prompt, end, generator
        self.ids: list[int] = []
        self.shown: list[int] = []  # those that are no thought
        self.thoughts: list[int] = []
        self._thinks = False
        self.logprobs: list[float] = []
        self.text = self.piece = ""
        self.reason: Literal["end", "stop", "length"] | None = None
        self._tokenizer = tokenizer
        self._held = ""  # text that may be the beginning of a stop string
        self._known = self._fresh = (
            0  # the text is known of ids before `_fresh`, in part from `_known`
        )

    def add(self, token: int, logprob: float = 0.0) -> None:
        """One more id; ``reason`` says whether it was the last one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        last = token in self.end.ids or len(self.ids) >= self.end.most
        if self._keeps(token):
            self.shown.append(token)
        upto = len(self.shown) - (self.shown[-1:] == [token] and token in self.end.ids)
        before = self._decode(self._known, self._fresh)
        now = self._decode(self._known, upto)
        text = self._held
        if last or not now.endswith(UNFINISHED):
            text += now[len(before) :]
            self._known, self._fresh = self._fresh, upto
        found = [at for stop in self.end.strings if (at := text.find(stop)) >= 0]
        cut = min(found, default=len(text))
        if not found and not last:
            cut -= max((_overlap(text, stop) for stop in self.end.strings), default=0)
        self.piece, self._held = text[:cut], text[cut:]
        self.text += self.piece
        if found:
            self.reason = "stop"
        elif last:
            self.reason = "end" if token in self.end.ids else "length"

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may come to."""
        return len(self.prompt) + self.end.most

    def extended(self, token: int, logprob: float) -> "Draft":
        """A copy with one more id."""
        new = copy.copy(self)
        new.ids, new.logprobs = self.ids.copy(), self.logprobs.copy()
        new.shown, new.thoughts = self.shown.copy(), self.thoughts.copy()
        new.add(token, logprob)
        return new

    def answer(self) -> Answer:
        """The answer, which must have come to its end."""
        assert self.reason is not None
        label = self.end.thought[2] if self.end.thought else ""
        thought = self._tokenizer.decode(self.thoughts, skip_special_tokens=True) if label else ""
        thought = thought.removeprefix(label).strip()
        return Answer(self.text, tuple(self.ids), tuple(self.logprobs), self.reason, thought)

    def _keeps(self, token: int) -> bool:
        """Whether the next id is part of the answer, and not of a thought, which is kept apart."""
        if self.end.thought is None:
            return True
        opens, closes, _ = self.end.thought
        if self._thinks or token == opens:
            self._thinks = token != closes and token not in self.end.ids
            self.thoughts.append(token)
            return False
        return True

    def _decode(self, start: int, end: int) -> str:
        if start == end:
            return ""
        return self._tokenizer.decode(
            self.shown[start:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


def drafts_for(
    model: Any,
    tokenizer: Any,
    template: Template | None,
    stop: Sequence[str],
    max_new_tokens: int,
    seed: int,
) -> Callable[[list[int], int], Draft]:
    """A function from a prompt's ids and the number of an answer to it to an empty draft.

    Its generator depends on these two and ``seed``.
    """
    import torch

    strings = (*stop_strings(template), *((stop,) if isinstance(stop, str) else stop))
    ends, context = end_ids(model, tokenizer, *strings), context_of(model.config)
    thought = forms.thought_ids(template, tokenizer)
    device = model.get_input_embeddings().weight.device
    device = "cpu" if device.type == "mps" else device  # Apple's GPU has no 64-bit numbers

    def make(ids: list[int], number: int) -> Draft:
        most = min(max_new_tokens, context - len(ids)) if context else max_new_tokens
        key = hashlib.sha256(repr((seed, number, ids)).encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
        return Draft(tokenizer, ids, End(ends, strings, most, thought), generator)

    return make


def encode(model: Any, tokenizer: Any, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Ids of each prompt. Raises ``UserError`` for one that cannot be gone on from."""
    if isinstance(prompts, str):
        raise UserError("prompts is a single string; put it into a list")
    encoded, context = [], context_of(model.config)
    size = model.get_input_embeddings().weight.shape[0]
    bos = tokenizer.bos_token_id
    for number, prompt in enumerate(prompts, 1):
        if isinstance(prompt, str):
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            if ids and bos is not None and ids[0] != bos:
                ids = [bos, *ids]
        else:
            ids = prompt if isinstance(prompt, ImagePrompt) else [int(i) for i in prompt]
        if not ids:
            raise UserError(f"prompt {number} is empty: there is nothing to go on from")
        if wrong := [i for i in ids if not 0 <= i < size]:
            raise UserError(f"prompt {number}: id {wrong[0]}; the model's go from 0 to {size - 1}")
        if context and len(ids) >= context:
            raise UserError(
                f"prompt {number} has {len(ids)} tokens, and the model's context of {context} leaves "
                "no room for an answer: shorten it"
            )
        encoded.append(ids)
    return encoded


def stop_strings(template: Template | None) -> tuple[str, ...]:
    """What ends an answer by a template: its stop strings, and its end token's text."""
    if template is None:
        return ()
    return (*template.stop, template.end) if template.end else template.stop


def end_ids(model: Any, tokenizer: Any, *texts: str) -> frozenset[int]:
    """Ids that end an answer: the tokenizer's EOS, what the model's generation config names, and
    every one of ``texts`` that is a control token, such as ``<end_of_turn>``: no text shows it.
    """
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    control = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return frozenset(
        {i for i in ids if i is not None} | {control[t] for t in texts if t in control}
    )


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with, fewer than all of it."""
    return next(n for n in range(min(len(text), len(stop) - 1), -1, -1) if text.endswith(stop[:n]))
