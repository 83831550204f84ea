"""Samplers: known nuclei, limits that are greedy, empirical distributions against exact ones, composition."""

import math

import pytest
import torch

from ft.errors import UserError
from ft.generate import logits as likely
from ft.generate import samplers
from ft.generate.constraints import Banned, Forced, RepetitionPenalty
from ft.generate.samplers import Beam, Chain, Contrastive, Greedy, MinP, Sample, TopK, TopP

KNOWN = torch.tensor([[0.05, 0.4, 0.1, 0.3, 0.15]]).log()
CHI_SQUARE_999 = {
    1: 10.83,
    2: 13.82,
    3: 16.27,
    4: 18.47,
    5: 20.52,
    7: 24.32,
    9: 27.88,
}  # 99.9% quantiles


def chosen(*given) -> torch.Tensor:
    """Ids that fulfil what they must."""
    ids, checks = samplers.choose(*given)
    likely.read(checks, ids)
    return ids


def generators(n: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(n)]


def kept(sampler, logits=KNOWN) -> list[int]:
    return sampler.filter(logits)[0].isfinite().nonzero().flatten().tolist()


def random_logits(rows: int = 8, width: int = 1024) -> torch.Tensor:
    return 4 * torch.randn(rows, width, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (Greedy(), [1]),
        (Sample(), [0, 1, 2, 3, 4]),
        (TopK(1), [1]),
        (TopK(3), [1, 3, 4]),
        (TopK(99), [0, 1, 2, 3, 4]),
        (TopP(0.39), [1]),
        (TopP(0.41), [1, 3]),
        (TopP(0.69), [1, 3]),
        (TopP(0.71), [1, 3, 4]),
        (TopP(0.96), [0, 1, 2, 3, 4]),
        (TopP(1), [0, 1, 2, 3, 4]),
        (MinP(1), [1]),
        (MinP(0.76), [1]),
        (MinP(0.74), [1, 3]),
        (MinP(0.26), [1, 3, 4]),
        (MinP(0.24), [1, 2, 3, 4]),
        (TopP(0.5, temperature=0.1), [1]),  # the temperature comes first
        (TopP(0.5, temperature=100.0), [1, 3, 4]),
        (Chain((TopK(3), TopP(0.9))), [1, 3, 4]),  # 0.4 + 0.3 are 0.82 of the three
        (Chain((TopK(3), TopP(0.8))), [1, 3]),
        (Chain((TopP(0.8), TopK(2))), [1, 3]),
        (Chain((Banned((1,)), TopK(2))), [3, 4]),
        (Chain((Banned((1, 3)), Greedy())), [4]),
    ],
)
def test_what_a_sampler_keeps_of_a_known_distribution(sampler, expected):
    assert kept(sampler) == expected


def test_what_is_kept_has_the_softmax_of_its_own_logits():
    found = samplers.probabilities(TopK(2, temperature=0.5), KNOWN)[0]
    squares = torch.tensor([0, 0.16, 0, 0.09, 0]) / 0.25
    torch.testing.assert_close(found, squares)


@pytest.mark.parametrize("width", [700, 1024, 20_000])
def test_a_nucleus_is_the_same_however_many_are_sorted(width, monkeypatch):
    logits = random_logits(6, width)
    logits[0] = 0  # flat: nearly all are in it
    found = TopP(0.9).filter(logits)
    monkeypatch.setattr(samplers, "FEW", ())
    sorted_all = TopP(0.9).filter(logits)
    assert torch.equal(found[1:], sorted_all[1:])  # equal logits may stand in any order
    assert found[0].isfinite().sum() == sorted_all[0].isfinite().sum()
    mass = logits.softmax(-1).masked_fill(found == -math.inf, 0).sum(-1)
    assert (mass >= 0.9 - 1e-5).all()


@pytest.mark.parametrize(
    "sampler",
    [
        *(TopK(1, temperature=t) for t in (0.0, 1.0, 5.0)),
        *(kind(temperature=t) for kind in (Sample,) for t in (0.0, 1e-4)),
        *(TopP(0.9, temperature=t) for t in (0.0, 1e-4)),
        TopP(1e-9),
        MinP(1.0),
        MinP(0.1, temperature=0.0),
        TopK(50, temperature=1e-4),
        Chain((TopK(50), Sample(0.0))),
        Chain((TopK(50), Greedy())),
        lambda logits, _: logits.argmax(-1),
    ],
)
def test_the_limit_of_every_sampler_is_greedy(sampler):
    logits = random_logits()
    best = chosen(Greedy(), logits, generators(8))
    assert torch.equal(best, logits.argmax(-1))
    assert torch.equal(chosen(sampler, logits, generators(8)), best)


@pytest.mark.parametrize(
    "sampler",
    [Sample(), Sample(0.7), TopK(5), TopP(0.8), MinP(0.1), Chain((TopK(7), TopP(0.9)))],
)
def test_a_hundred_thousand_draws_pass_a_chi_square_test(sampler):
    logits = torch.tensor([[1.5, 0.2, -1.0, 0.9, 2.0, -0.3, 0.0, 1.1, -2.0, 0.5]])
    exact = samplers.probabilities(sampler, logits)[0].double()
    n, generator = 100_000, torch.Generator().manual_seed(3)
    drawn = sampler(logits.expand(n, -1), generator)
    counts = torch.bincount(drawn, minlength=10)
    inside = exact > 0
    assert counts[~inside].sum() == 0
    expected = n * exact[inside]
    statistic = float(((counts[inside] - expected) ** 2 / expected).sum())
    assert statistic < CHI_SQUARE_999[int(inside.sum()) - 1]


def test_that_the_chi_square_test_can_fail():
    drawn = Sample(1.1)(torch.tensor([[1.0, 0.0, 0.0]]).expand(100_000, -1), generators(1)[0])
    expected = 100_000 * torch.tensor([1.0, 0, 0]).softmax(-1)
    statistic = ((torch.bincount(drawn) - expected) ** 2 / expected).sum()
    assert statistic > CHI_SQUARE_999[2]


def test_a_row_is_drawn_as_it_is_alone():
    logits, seeds = random_logits(), generators(8)
    together = chosen(TopP(0.95), logits, seeds)
    alone = [chosen(TopP(0.95), logits[i : i + 1], generators(8)[i : i + 1]) for i in range(8)]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.equal(together, chosen(TopP(0.95), logits, generators(8, seed=50)))


def test_a_function_of_ones_own_gets_each_row_alone_after_the_filters():
    seen = []

    def second(logits, generator):
        seen.append((logits.shape, int(logits.isfinite().sum())))
        logits[0, 0] = 9.0  # may write into what it is given
        return logits.topk(2).indices[:, 1]

    found = chosen(Chain((TopK(3), second)), KNOWN.repeat(2, 1), generators(2))
    assert found.tolist() == [1, 1]
    assert seen == [((1, 5), 3)] * 2


def test_repetition_makes_tokens_of_prompt_and_answer_less_likely():
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0, 1.0]] * 2)
    found = RepetitionPenalty(2.0).filter(logits, prompts=[[0, 0], [3]], answers=[[1], []])
    assert found.tolist() == [[1, -4, 2, -2, 1], [2, -2, 2, -4, 1]]
    assert torch.equal(RepetitionPenalty(1.0).filter(logits, [[0], [1]], [[], []]), logits)


def test_a_forced_beginning_comes_whatever_its_logits():
    logits, forced = KNOWN.repeat(3, 1), Chain((Forced((0, 2)), Sample()))
    found = chosen(forced, logits, generators(3), [[9]] * 3, [[], [0], [0, 2]])
    assert found[:2].tolist() == [0, 2]
    assert torch.equal(forced.filter(logits, [[9]] * 3, [[], [0], [0, 2]])[2], logits[2])


def test_logits_are_not_changed_in_place():
    before = KNOWN.clone()
    for sampler in (TopK(2), TopP(0.5), MinP(0.5), Banned((1,)), Sample(0.0)):
        sampler.filter(KNOWN)
    RepetitionPenalty(2.0).filter(KNOWN, [[1]], [[]])
    Forced((2,)).filter(KNOWN, [[1]], [[]])
    assert torch.equal(KNOWN, before)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "TopK: k = 0; it must be a whole number from 1"),
        (lambda: TopK(2.5), "TopK: k = 2.5"),
        (lambda: TopP(0.0), "TopP: p = 0.0; it must be above 0 and at most 1"),
        (lambda: TopP(1.5), "TopP: p = 1.5"),
        (lambda: TopP(math.nan), "TopP: p = nan"),
        (lambda: MinP(-0.1), "MinP: p = -0.1"),
        (lambda: Sample(-1.0), "Sample: temperature = -1.0"),
        (lambda: TopK(5, temperature=-0.5), "TopK: temperature = -0.5"),
        (lambda: TopP(0.5, temperature=math.inf), "TopP: temperature = inf"),
        (lambda: Beam(0), "Beam: width = 0"),
        (lambda: Beam(2, math.nan), "Beam: length_penalty = nan"),
        (lambda: Contrastive(0, 0.5), "Contrastive: k = 0"),
        (lambda: Contrastive(4, 1.2), "Contrastive: alpha = 1.2"),
        (lambda: RepetitionPenalty(0.0), "RepetitionPenalty: penalty = 0.0"),
        (lambda: Chain(()), "Chain: it has no parts"),
        (lambda: Chain((TopK(2), Beam(2))), "Beam.*cannot be its last part"),
        (lambda: Chain((len, TopK(2))), "len.*cannot be followed"),
        (lambda: Banned((5,)).filter(KNOWN), "Banned: id 5; this model's ids go from 0 to 4"),
        (lambda: Forced((-1,)).filter(KNOWN, [[]], [[]]), "Forced: id -1"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("sampler", [Greedy(), TopK(3), lambda logits, _: logits.argmax(-1)])
def test_logits_that_are_not_finite_are_one_error(sampler, bad):
    for width in (5, 1024):
        logits = torch.zeros(2, width)
        logits[1, 3] = bad
        with pytest.raises(UserError, match="logits are not finite"):
            chosen(sampler, logits, generators(2))


def test_to_forbid_every_token_is_an_error():
    with pytest.raises(UserError, match="no token is left to draw"):
        chosen(Chain((Banned(tuple(range(5))), Sample())), KNOWN, generators(1))
    with pytest.raises(UserError, match="no token is left to draw"):
        chosen(Chain((Banned(tuple(range(5))), Greedy())), KNOWN, generators(1))


@pytest.mark.parametrize("answer", [7, -1, 0.5, [1, 2]])
def test_what_a_function_of_ones_own_answers_is_checked(answer):
    with pytest.raises(UserError, match=r"logits \[1, 5\]; it must answer one id from 0 to 4"):
        chosen(lambda *_: torch.tensor(answer), KNOWN, generators(1))


def test_the_highest_logit_is_the_first_one_also_by_blocks():
    torch.manual_seed(0)
    for width in (2 * likely.BLOCK, 700):
        logits = torch.randn(5, width).bfloat16()
        logits[1, [3, 600]] = logits[2, [40, 41]] = 9.0
        assert likely.argmax(logits).tolist() == [
            max(range(width), key=lambda i, row=row: row[i].item()) for row in logits
        ]
    assert likely.argmax(logits).tolist()[1:3] == [3, 40]
