"""Searches that look at several continuations at once: beam search, and contrastive search."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ft.generate.decoding import Decoder
from ft.generate.draft import Draft
from ft.generate.logits import check_finite, likeliest
from ft.generate.samplers import Beam, Contrastive


def search(
    model: Any,
    drafts: Sequence[Draft],
    beam: Beam,
    *,
    pad: int = 0,
    use_cache: bool = True,
    room: float = math.inf,
    advance: Callable[[int], Any] = int,
) -> list[list[Draft]]:
    """Each prompt's ``beam.width`` best answers, best first: what ``transformers`` finds with ``num_beams``.

    They compete by the sum of their log-probabilities over length ** ``length_penalty``. A prompt's
    search ends, and leaves the batch, when the best answer still growing could not, at its present
    length, enter a full list. Each step looks at more continuations than ``width``, so that those
    which end leave enough.

    As many prompts are searched together, in their order, as ``room`` tokens allow. Where a fourth of them have ended the
    next ones take their places, for a step of few rows takes as long as one of many; where they cannot (``Decoder.joins``),
    they wait for the last. ``advance`` is told how many have ended.
    """
    import torch

    beams = [_Beam(draft, beam) for draft in drafts]
    waiting, going, full = list(beams), list[_Beam](), 0
    decoder: Any = None
    while True:
        many, longest = 0, 0
        if 4 * len(going) <= 3 * full or not going:
            many, longest = _fitting(
                going, waiting, decoder.width if going else 0, room / beam.width
            )
        if many and (not going or decoder.joins(longest)):
            fresh, waiting = waiting[:many], waiting[many:]
            prompts, most = [each.prompt for each in fresh], max(each.left for each in fresh)
            new = Decoder(model, prompts, pad, use_cache=use_cache, room=most)
            if going:
                decoder.join(new)
            else:
                decoder = new
            going, full = going + fresh, len(going) + many
        check_finite(decoder.logits)
        banned = [each.banned(draft) for each in going for _, draft in each.growing]
        values, ids = likeliest(decoder.logits, max(each.many for each in going), banned)
        found = list(zip(values.tolist(), ids.tolist(), strict=True))
        rows, tokens, at = [], [], 0
        for each in going:
            many = len(each.growing)
            for row, token in each.step(found[at : at + many]):
                rows.append(at + row)
                tokens.append(token)
            at += many
        if ended := sum(not each.growing for each in going):
            advance(ended)
            going = [each for each in going if each.growing]
        if not going:
            decoder.end()
        if not going and not waiting:
            return [[draft for _, draft in each.done] for each in beams]
        if not going:
            continue
        device = decoder.logits.device
        decoder.select(torch.tensor(rows, device=device))
        decoder.step(torch.tensor(tokens, device=device))


def _fitting(
    going: Sequence["_Beam"], waiting: Sequence["_Beam"], width: int, room: float
) -> tuple[int, int]:
    """How many of those that wait have room beside others, one at least, and the tokens that the longest may come to.

    ``width`` is of those that grow, with padding: all end at the same place.
    """
    left, longest, many = max((each.left for each in going), default=0), 0, 0
    for each in waiting:
        wide, more = max(width, len(each.prompt)), max(left, each.left)
        if many + len(going) and (len(going) + many + 1) * (wide + more) > room:
            break
        width, left, longest, many = wide, more, wide + more, many + 1
    return many, longest


class _Beam:
    """One prompt's search: the answers that grow, and those that ended, with their scores, best first."""

    def __init__(self, draft: Draft, beam: Beam) -> None:
        self.growing, self._beam = [(0.0, draft)], beam
        self.done: list[tuple[float, Draft]] = []
        self.prompt = draft.prompt
        self.many = (1 + max(1, len(draft.end.ids))) * beam.width

    @property
    def left(self) -> int:
        """Tokens that its answers may still have."""
        draft = self.growing[0][1]
        return draft.end.most - len(draft.ids)

    def step(self, likeliest: Sequence[tuple[list[float], list[int]]]) -> list[tuple[int, int]]:
        """Go on from the likeliest next ids of each growing answer, with their log-probabilities.

        Returns which answer each new one continues, and by which id.
        """
        width, penalty = self._beam.width, self._beam.length_penalty
        options = [
            (total + logprob, row, token, logprob)
            for row, ((total, _), best) in enumerate(zip(self.growing, likeliest, strict=True))
            for logprob, token in zip(*best, strict=True)
        ]
        options = sorted(options, key=lambda option: -option[0])[: self.many]
        growing: list[tuple[float, Draft]] = []
        chosen = []
        for rank, (total, row, token, logprob) in enumerate(options):
            if rank >= width and len(growing) == width:
                break
            new = self.growing[row][1].extended(token, logprob)
            if new.reason and rank < width:
                self.done.append((total / len(new.ids) ** penalty, new))
            elif not new.reason and len(growing) < width:
                growing.append((total, new))
                chosen.append((row, token))
        self.done = sorted(self.done, key=lambda found: -found[0])[:width]
        if growing and len(self.done) == width:
            total, best = growing[0]
            if total / len(best.ids) ** penalty <= self.done[-1][0]:
                growing, chosen = [], []
        self.growing = growing
        return chosen

    def banned(self, draft: Draft) -> list[int]:
        """The ids that would make an n-gram of the answer come again."""
        n, ids = self._beam.no_repeat_ngram_size, draft.ids
        if not n or len(ids) < n:
            return []
        last = ids[len(ids) - n + 1 :]
        return [ids[i + n - 1] for i in range(len(ids) - n + 1) if ids[i : i + n - 1] == last]


def contrastive(
    model: Any, draft: Draft, sampler: Contrastive, *, use_cache: bool = True
) -> Iterator[None]:
    """Let ``draft`` grow by one id between two yields (Su et al. 2022, equation 5).

    Of the k most likely tokens v the one with the largest (1 - alpha) p(v) - alpha max_j cos(h_v, h_j),
    where h_v is the last layer's activation at v and h_j those at all tokens before it.
    """
    import torch

    decoder = Decoder(model, [draft.prompt], 0, use_cache=use_cache, keep_hidden=True)
    assert decoder.hidden is not None
    seen = _unit(decoder.hidden[0, -len(draft.prompt) :])  # [T, D], without padding
    while not draft.reason:
        check_finite(decoder.logits)
        chances = decoder.logits[0].float().log_softmax(-1)
        top = chances.topk(min(sampler.k, len(chances)))
        decoder.select(torch.zeros(len(top.indices), dtype=torch.long, device=seen.device))
        decoder.step(top.indices)
        unit = _unit(decoder.hidden[:, -1])  # [K, D]
        likeness = (unit @ seen.T).amax(-1)
        scores = (1 - sampler.alpha) * top.values.exp() - sampler.alpha * likeness
        best = scores.argmax()[None]
        decoder.select(best)
        seen = torch.cat([seen, unit[best]])
        draft.add(int(top.indices[best]), float(top.values[best]))
        yield


def _unit(rows: Any) -> Any:
    import torch

    return torch.nn.functional.normalize(rows.float(), dim=-1)
