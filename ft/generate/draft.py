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
    apart, and ``calls`` are those of tools, where they were to be kept apart too. ``reason``: ``"end"``
    for an end token, ``"stop"`` for a stop string, ``"length"`` for as many tokens as were asked for or
    as the context holds.
    """

    text: str
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    reason: Literal["end", "stop", "length"]
    thought: str = ""
    calls: tuple[str, ...] = ()
    shown: tuple[int, ...] = ()  # places in ``ids`` of those that ``text`` was read from


@dataclass(frozen=True)
class End:
    """What ends an answer: an id of ``ids``, a string of ``strings``, or ``most`` tokens."""

    ids: frozenset[int]
    strings: tuple[str, ...]
    most: int
    thought: tuple[int, int, str] | None = (
        None  # ids around a thought, and the label that it begins with
    )
    call: tuple[int, int] | None = None  # ids around a call that is kept apart


class Draft:
    """An answer while it grows by ids.

    ``piece`` is the text that became certain with the last id: whole characters, and nothing of a
    stop string. What may be the beginning of one is held back until it is known not to be.
    ``thought_piece`` is that of the thought before.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], end: End, generator: Any = None) -> None:
        self.prompt, self.end, self.generator = prompt, end, generator
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.text = self.piece = self.thought = self.thought_piece = ""
        self.reason: Literal["end", "stop", "length"] | None = None
        self._tokenizer = tokenizer
        self._shown, self._thoughts = _Reader(tokenizer), _Reader(tokenizer)
        self._places: list[int] = []
        self._calls: list[list[int]] = []
        self._within: str = "text"  # or "thought", "call"
        self._held = ""  # text that may be the beginning of a stop string
        self._said = ""  # of the thought, with its label

    def add(self, token: int, logprob: float = 0.0) -> None:
        """One more id; ``reason`` says whether it was the last one."""
        self.ids.append(token)
        self.logprobs.append(logprob)
        ends = token in self.end.ids
        last = ends or len(self.ids) >= self.end.most
        within = self._place(token, ends)
        shown = [token] if within == "text" and not ends else []
        self._places += [len(self.ids) - 1] * len(shown)
        text = self._held + self._shown.add(shown, last)
        found = [at for stop in self.end.strings if (at := text.find(stop)) >= 0]
        cut = min(found, default=len(text))
        if not found and not last:
            cut -= max((_overlap(text, stop) for stop in self.end.strings), default=0)
        self.piece, self._held = text[:cut], text[cut:]
        self.text += self.piece
        self._think([token] if within == "thought" else [], last)
        if found:
            self.reason = "stop"
        elif last:
            self.reason = "end" if ends else "length"

    @property
    def longest(self) -> int:
        """Tokens that prompt and answer may come to."""
        return len(self.prompt) + self.end.most

    def extended(self, token: int, logprob: float) -> "Draft":
        """A copy with one more id."""
        new = copy.copy(self)
        new.ids, new.logprobs = self.ids.copy(), self.logprobs.copy()
        new._shown, new._thoughts = self._shown.copy(), self._thoughts.copy()
        new._places, new._calls = self._places.copy(), [call.copy() for call in self._calls]
        new.add(token, logprob)
        return new

    def answer(self) -> Answer:
        """The answer, which must have come to its end."""
        assert self.reason is not None
        calls = [self._tokenizer.decode(call, skip_special_tokens=False) for call in self._calls]
        return Answer(
            *(self.text, tuple(self.ids), tuple(self.logprobs), self.reason, self.thought.strip()),
            tuple(calls),
            tuple(self._places),
        )

    def _place(self, token: int, ends: bool) -> str:
        """What the next id is part of; the ids around a thought or a call are of it."""
        around = {"thought": self.end.thought, "call": self.end.call}
        within = self._within
        if within == "text":
            within = next((name for name, ids in around.items() if ids and token == ids[0]), within)
            if within == "call":
                self._calls.append([])
        elif within == "call" and token != around["call"][1] and not ends:
            self._calls[-1].append(token)
        closes = within != "text" and (ends or token == around[within][1])
        self._within = "text" if closes else within
        return within

    def _think(self, ids: list[int], last: bool) -> None:
        """More of a thought, whose label is not part of it."""
        self.thought_piece = ""
        if self.end.thought is None or not (ids or last):
            return
        self._said += self._thoughts.add(ids, last)
        label = self.end.thought[2]
        if last or len(self._said) >= len(label):
            before, self.thought = self.thought, self._said.removeprefix(label)
            self.thought_piece = self.thought[len(before) :]


class _Reader:
    """Ids that come one after the other, as text in whole characters."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._known = self._fresh = (
            0  # the text is known of ids before `_fresh`, in part from `_known`
        )

    def add(self, ids: list[int], last: bool) -> str:
        """The text that became certain; with ``last`` all of it."""
        if not (ids or last):
            return ""
        before = self._decode(self._fresh)
        self._ids += ids
        now = self._decode(len(self._ids))
        if not last and now.endswith(UNFINISHED):
            return ""
        self._known, self._fresh = self._fresh, len(self._ids)
        return now[len(before) :]

    def copy(self) -> "_Reader":
        new = copy.copy(self)
        new._ids = self._ids.copy()
        return new

    def _decode(self, end: int) -> str:
        if self._known == end:
            return ""
        return self._tokenizer.decode(
            self._ids[self._known : end],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )


def drafts_for(
    model: Any,
    tokenizer: Any,
    template: Template | None,
    stop: Sequence[str],
    max_new_tokens: int,
    seed: int,
    calls: bool = False,
    max_ratio: float | None = None,
) -> Callable[[list[int], int], Draft]:
    """A function from a prompt's ids and the number of an answer to it to an empty draft.

    Its generator depends on these two and ``seed``. With ``calls`` those of tools are kept apart from
    the text. ``max_ratio``: see ``limit``.
    """
    import torch

    strings = (*stop_strings(template), *((stop,) if isinstance(stop, str) else stop))
    form = forms.own_form(template, tokenizer)
    results = form.result[:1] if form and form.result else ()  # a tool's turn to speak
    ends, context = end_ids(model, tokenizer, *strings, *results), context_of(model.config)
    thought = forms.thought_ids(template, tokenizer)
    call = form.call if form and calls else None
    around = tuple(tokenizer.convert_tokens_to_ids(list(call))) if call else None
    device = model.get_input_embeddings().weight.device

    def make(ids: list[int], number: int) -> Draft:
        most = limit(ids, max_new_tokens, max_ratio)
        most = min(most, context - len(ids)) if context else most
        key = hashlib.sha256(repr((seed, number, ids)).encode()).digest()
        generator = torch.Generator(device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
        return Draft(tokenizer, ids, End(ends, strings, most, thought, around), generator)

    return make


def limit(prompt: Sequence[int], max_new_tokens: int, max_ratio: float | None = None) -> int:
    """Tokens that an answer may have: with ``max_ratio`` that many for each of its prompt, and 16 more.

    A model that repeats itself would otherwise take most of an evaluation's time.
    """
    return min(max_new_tokens, int(max_ratio * len(prompt)) + 16) if max_ratio else max_new_tokens


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
