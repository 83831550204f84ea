"""Beam search beside brute force, contrastive search worked by hand, on a model of tables."""

import itertools
import types

import pytest
import torch
from support import tiny

from ft.generate import decoding, search
from ft.generate.draft import Draft, End
from ft.generate.samplers import Beam, Contrastive

HIDDEN = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.6, 0.8]])
CHANCES = torch.tensor(
    [
        [0.0, 0.5, 0.3, 0.2],
        [0.1, 0.2, 0.3, 0.4],
        [0.45, 0.35, 0.0, 0.2],
        [0.7, 0.1, 0.1, 0.1],
    ]
)


class Trunk(torch.nn.Embedding):
    """What transformers calls a decoder: its output's first part are the hidden states."""

    def forward(self, input):
        return (super().forward(input),)


class Tables(torch.nn.Module):
    """Hidden states and next-token probabilities that depend on a token alone."""

    def __init__(self, chances: torch.Tensor = CHANCES) -> None:
        super().__init__()
        self.trunk, self.head = Trunk.from_pretrained(HIDDEN), torch.nn.Linear(2, 4, bias=False)
        self.logits = chances.clamp(min=1e-9).log()

    def get_input_embeddings(self):
        return self.trunk

    def get_output_embeddings(self):
        return self.head

    def get_decoder(self):
        return self.trunk

    def forward(self, input_ids, **_):
        self.trunk(input_ids)
        return types.SimpleNamespace(logits=self.logits[input_ids[:, -1:]])


def draft(most: int, ends: tuple[int, ...] = (), prompt: tuple[int, ...] = (0,)) -> Draft:
    return Draft(tiny.tokenizer(), list(prompt), End(frozenset(ends), (), most))


def continued(sampler: Contrastive, most: int = 3) -> list[int]:
    found = draft(most)
    for _ in search.contrastive(Tables(), found, sampler, use_cache=False):
        pass
    return found.ids


def test_contrastive_search_worked_by_hand():
    """With alpha 1/2 and k 3, after token 0, whose direction token 1 shares:

    0.5 * 0.5 - 0.5 * 1 = -0.25 for 1, 0.15 - 0 = 0.15 for 2, 0.1 - 0.5 * 0.6 = -0.2 for 3: take 2.
    0.225 - 0.5 = -0.275 for 0, 0.175 - 0.5 = -0.325 for 1, 0.1 - 0.5 * 0.8 = -0.3 for 3: take 0.
    -0.25 for 1, 0.15 - 0.5 = -0.35 for 2, 0.1 - 0.4 = -0.3 for 3: take 1.
    """
    assert continued(Contrastive(3, 0.5)) == [2, 0, 1]


def test_contrastive_search_without_its_penalty_or_choice_is_greedy():
    greedy = [1, 3, 0]
    assert continued(Contrastive(3, 0.0)) == greedy
    assert continued(Contrastive(1, 0.9)) == greedy


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("ends", [(), (3,)])
def test_a_wide_beam_finds_the_best_of_all_answers(penalty, ends):
    most, chances = 3, torch.randn(4, 4, generator=torch.Generator().manual_seed(1)).softmax(-1)

    def score(ids: tuple[int, ...]) -> float:
        steps = zip((0, *ids), ids, strict=False)
        return sum(float(chances[a, b].log()) for a, b in steps) / len(ids) ** penalty

    every = [
        ids
        for length in range(1, most + 1)
        for ids in itertools.product(range(4), repeat=length)
        if not any(i in ends for i in ids[:-1]) and (length == most or ids[-1] in ends)
    ]
    best = sorted(every, key=score, reverse=True)
    (found,) = search.search(
        Tables(chances), [draft(most, ends)], Beam(64, penalty), use_cache=False
    )
    assert [tuple(d.ids) for d in found[:5]] == best[:5]
    assert all(d.reason == ("end" if d.ids[-1] in ends else "length") for d in found)


def test_a_beam_of_one_is_greedy():
    ((found,),) = search.search(Tables(), [draft(3)], Beam(1), use_cache=False)
    assert found.ids == [1, 3, 0]


def test_no_ngram_comes_twice_in_an_answer():
    """After 1 comes 3, after 3 comes 0 and after 0 comes 1, over and over, where it may."""

    def searched(size: int, most: int) -> list[int]:
        beam = Beam(1, no_repeat_ngram_size=size)
        ((found,),) = search.search(Tables(), [draft(most)], beam, use_cache=False)
        return found.ids

    assert searched(0, 6) == [1, 3, 0, 1, 3, 0]
    assert searched(1, 4) == [1, 3, 0, 2]
    pairs = list(itertools.pairwise(searched(2, 6)))
    assert len(set(pairs)) == len(pairs) == 5


@pytest.mark.parametrize(
    ("kind", "room"),
    [("gemma3_text", 1), ("gemma3_text", 400), ("gemma2", 400), ("gemma3n", 400), ("gemma4", 400)],
)
def test_prompts_that_take_the_place_of_others_get_the_answers_that_they_get_alone(kind, room):
    """Of other lengths, whose answers end at other times; where there is room for one, they come one by one."""
    model, sizes = tiny.build(kind, sliding_window=64), [4, 20, 9, 13, 30, 5]
    prompts = [tuple(range(10 + i, 10 + i + size)) for i, size in enumerate(sizes)]
    ends = tuple(range(0, 2048, 7))

    def drafts() -> list[Draft]:
        return [draft(2 + 5 * i % 9, ends, prompt) for i, prompt in enumerate(prompts)]

    beam, ended, joined = Beam(3, no_repeat_ngram_size=2), [], []
    join = decoding.Decoder.join
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding.Decoder, "join", lambda *both: joined.append(1) or join(*both))
        found = search.search(model, drafts(), beam, room=room, advance=ended.append)
    alone = [search.search(model, [each], beam)[0] for each in drafts()]
    for several, one in zip(found, alone, strict=True):
        assert [d.ids for d in several] == [d.ids for d in one]
        for a, b in zip(several, one, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
    assert sum(ended) == len(prompts)
    assert bool(joined) == (room > 1)


def test_none_joins_where_a_window_would_lose_what_it_has_read():
    model = tiny.build("gemma3_text", sliding_window=16)
    decoder = decoding.Decoder(model, [[2, 5, 6]], pad=0)
    assert decoder.joins(15)
    assert not decoder.joins(16)
    assert not decoding.Decoder(model, [[2, 5, 6]], pad=0, use_cache=False).joins(15)
