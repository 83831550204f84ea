"""How likely a model finds texts, token by token, and what it finds likelier."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ft.errors import UserError

BATCH = 2048  # tokens, padding included, that run through the model at once


@dataclass(frozen=True)
class Scored:
    """A text and the log-probability of each of its tokens, in nats."""

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    logprobs: tuple[float, ...]
    likeliest: tuple[tuple[tuple[str, float], ...], ...]  # in each token's place

    @property
    def perplexity(self) -> float:
        """The exponential of the mean loss of a token; infinite beyond what a float holds."""
        mean = -sum(self.logprobs) / len(self.logprobs)
        return math.exp(mean) if mean < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits of all tokens over the text's bytes in UTF-8: comparable between tokenizers."""
        return -sum(self.logprobs) / math.log(2) / len(self.text.encode())


def score_texts(
    model: Any, tokenizer: Any, rows: Sequence[tuple[str, str]], *, top: int = 0
) -> list[Scored]:
    """Score pairs of prompt and text, encoded apart behind a BOS, in their order.

    Raises ``UserError`` for a text without tokens and one that is longer than the context.
    """
    import torch
    from tqdm import tqdm

    from ft.models.load import context_of
    from ft.score import logits

    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    texts: list[tuple[list[int], list[int]]] = []
    for number, (prompt, text) in enumerate(rows, 1):
        before, ids = tokenizer([prompt, text], add_special_tokens=False)["input_ids"]
        if not ids:
            raise UserError(f"text {number} is empty: there is nothing to score")
        if not start and not before:
            raise UserError(
                "the tokenizer has no token to begin a text with, so its first one cannot be scored: "
                "give a --prompt"
            )
        texts.append(([*start, *before], ids))
    lengths = [len(before) + len(ids) for before, ids in texts]
    context = context_of(model.config)
    longest = max(range(len(rows)), key=lambda i: lengths[i])
    if context and lengths[longest] > context:
        raise UserError(
            f"text {longest + 1} has {lengths[longest]:,} tokens with its prompt, more than the "
            f"model's context of {context:,}"
        )
    order = sorted(range(len(rows)), key=lambda i: -lengths[i])
    device = model.get_input_embeddings().weight.device
    found: dict[int, Scored] = {}
    with tqdm(total=len(rows), desc="score", unit="text", disable=len(rows) < 9) as bar:
        while order:
            width = lengths[order[0]]
            batch = order[: max(1, BATCH // width)]
            order = order[len(batch) :]
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(batch):
                ids[row, : lengths[i]] = torch.tensor([*texts[i][0], *texts[i][1]])
                mask[row, : lengths[i]] = 1
            best = logits.top(model, ids.to(device), mask.to(device), max(top, 1))
            for row, i in enumerate(batch):
                part = slice(len(texts[i][0]) - 1, lengths[i] - 1)  # a token's predecessors
                expected = zip(best.ids[row, part], best.logprobs[row, part], strict=True)
                likeliest = [
                    tuple(zip(pieces(tokenizer, which.tolist()), p.tolist(), strict=True))
                    for which, p in expected
                    if top
                ]
                found[i] = Scored(
                    rows[i][1],
                    tuple(texts[i][1]),
                    pieces(tokenizer, texts[i][1]),
                    tuple(best.target_logprobs[row, part].tolist()),
                    tuple(likeliest),
                )
            bar.update(len(batch))
    return [found[i] for i in range(len(rows))]


def pieces(tokenizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """The text of each token; the tokenizer's own name for a part of a character."""
    found = []
    for i in ids:
        text = tokenizer.decode([i], skip_special_tokens=False)
        whole = text and "\ufffd" not in text
        # an embedding may have more rows than the tokenizer has tokens
        found.append(text if whole else tokenizer.convert_ids_to_tokens(i) or f"<{i}>")
    return tuple(found)
