"""Searches that look at several continuations at once: beam search, and contrastive search."""

from collections.abc import Iterator
from typing import Any

from ft.generate.decoding import Decoder, check_finite
from ft.generate.draft import Draft
from ft.generate.samplers import Beam, Contrastive


def search(model: Any, draft: Draft, beam: Beam, *, use_cache: bool = True) -> list[Draft]:
    """The ``beam.width`` best answers, best first: what ``transformers`` finds with ``num_beams``.

    They compete by the sum of their log-probabilities over length ** ``length_penalty``. The search
    ends when the best one still growing could not, at its present length, enter a full list. Each
    step looks at more continuations than ``width``, so that those which end leave enough.
    """
    import torch

    decoder = Decoder(model, [draft.prompt], 0, use_cache=use_cache)
    growing, done = [draft], []
    sums = torch.zeros(1, device=decoder.logits.device)  # of the log-probabilities of each one
    many = (1 + max(1, len(draft.end.ids))) * beam.width
    while growing:
        check_finite(decoder.logits)
        chances = decoder.logits.float().log_softmax(-1)  # [W, V]
        totals = (chances + sums[:, None]).flatten()
        best = totals.topk(min(many, len(totals)))
        tokens = best.indices % chances.shape[1]
        rows = best.indices // chances.shape[1]  # the text that each one continues
        before, growing, kept = growing, [], []
        logprobs = chances[rows, tokens].tolist()
        for rank, (row, token) in enumerate(zip(rows.tolist(), tokens.tolist(), strict=True)):
            new = before[row].extended(token, logprobs[rank])
            score = float(best.values[rank]) / len(new.ids) ** beam.length_penalty
            if new.reason and rank < beam.width:
                done.append((score, new))
            elif not new.reason and len(growing) < beam.width:
                growing.append(new)
                kept.append(rank)
        done = sorted(done, key=lambda found: -found[0])[: beam.width]
        if growing and len(done) == beam.width:
            possible = float(best.values[kept[0]]) / len(growing[0].ids) ** beam.length_penalty
            if possible <= done[-1][0]:
                break
        if growing:
            sums = best.values[kept]
            decoder.select(rows[kept])
            decoder.step(tokens[kept])
    return [found for _, found in done]


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
