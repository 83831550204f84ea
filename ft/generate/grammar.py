"""Answers that are JSON of a schema: a filter of the next token by a grammar, with the library llguidance."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ft.errors import UserError
from ft.generate.samplers import Filter, Ids

if TYPE_CHECKING:
    from torch import Tensor

SPACE: Any = {"whitespace_pattern": r"[ \n\t]{0,16}"}  # between two tokens of JSON: an end is near


@dataclass(frozen=True)
class Grammar(Filter):
    """Tokens that an answer may go on with so that it becomes what a grammar describes."""

    matcher: Any = field(repr=False)  # llguidance's
    ends: tuple[int, ...]  # ids that end an answer
    _seen: list[int] = field(default_factory=list, repr=False)  # the ids that it has consumed

    def filter(self, logits: "Tensor", prompts: Ids = (), answers: Ids = ()) -> "Tensor":
        import torch

        allowed = torch.zeros(logits.shape, dtype=torch.bool)
        for row, answer in enumerate(answers):
            if answer and answer[-1] in self.ends:  # it waits for the rest of its batch
                allowed[row] = True
                continue
            self._go_to(list(answer))
            words = torch.frombuffer(bytearray(self.matcher.compute_bitmask()), dtype=torch.int32)
            bits = (words[:, None] >> torch.arange(32, dtype=torch.int32) & 1).flatten()
            allowed[row, : len(bits)] = bits[: logits.shape[1]].bool()
        return logits.masked_fill(~allowed.to(logits.device), -math.inf)

    def _go_to(self, ids: list[int]) -> None:
        """Consume ``ids``: the last one alone where the rest is consumed already."""
        seen = self._seen
        if ids[: len(seen)] != seen:
            self.matcher.reset()
            seen.clear()
        fresh = ids[len(seen) :]
        if not self.matcher.consume_tokens(fresh):
            raise UserError(f"the answer left its grammar: {self.matcher.get_error()}")
        seen += fresh


def of_schema(schema: dict[str, Any], tokenizer: Any, ends: Sequence[int]) -> Grammar:
    """The grammar of the JSON values that fit a schema; one of ``ends`` follows.

    Raises ``UserError`` where llguidance is not installed, and for a schema that it cannot follow.
    """
    try:
        import llguidance
        from llguidance import hf
    except ModuleNotFoundError:
        raise UserError(
            'answers by a JSON schema need the package llguidance: pip install "gemma-ft[serve]"'
        ) from None
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(schema, overrides=SPACE)
        matcher = llguidance.LLMatcher(_reader(hf, tokenizer, tuple(ends)), grammar)
        fault = matcher.get_error()
    except ValueError as error:
        fault = str(error)
    if fault:
        raise UserError(f"the JSON schema cannot be followed: {' '.join(fault.split())[:300]}")
    return Grammar(matcher, tuple(ends))


def _reader(hf: Any, tokenizer: Any, ends: tuple[int, ...]) -> Any:
    """llguidance's view of a tokenizer, which takes it a second to make: kept with the tokenizer."""
    kept = tokenizer.__dict__.setdefault("_ft_grammar", {})
    if ends not in kept:
        kept[ends] = hf.from_tokenizer(tokenizer, eos_token=list(ends))
    return kept[ends]
