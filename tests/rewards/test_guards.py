"""Guards against arithmetic, and each of them tripped."""

import math

import pytest
import torch
from support import learner

from ft.errors import UserError
from ft.rewards import guards, policy
from ft.rewards.guards import Guards, Vitals
from ft.runs import opened
from ft.text.tokens import prompt_ids

START = Vitals(kl=0.0, distinct=0.8, tokens=20.0)


def test_distinct_pairs():
    assert guards.distinct(["a b c", "a b"]) == 2 / 3
    assert guards.distinct(["a", ""]) == 1.0
    assert guards.distinct(["non " * 50]) == 1 / 49


@pytest.mark.parametrize(
    ("now", "message"),
    [
        (Vitals(0.6, 0.8, 20), "KL to the start 0.600 nats a token is over 0.5"),
        (Vitals(math.nan, 0.8, 20), "KL to the start nan"),
        (Vitals(0.1, 0.4, 20), "distinct-2 fell from 0.80 to 0.40, under 0.6 of it"),
        (Vitals(0.1, 0.8, 31), "answers went from 20.0 to 31.0 tokens"),
        (Vitals(0.1, 0.8, 10), "answers went from 20.0 to 10.0 tokens"),
        (Vitals(0.1, 0.8, 0), "answers went from 20.0 to 0.0 tokens"),
    ],
)
def test_a_run_gone_bad(now, message):
    with pytest.raises(UserError, match=f"stopped at step 7, as the model has gone bad: {message}"):
        Guards().check(now, START, "at step 7")


def test_a_run_that_is_well():
    Guards().check(START, START, "")
    Guards().check(Vitals(0.49, 0.49, 29), START, "")
    Guards().check_kept(0.1, "")


def test_too_little_is_kept():
    with pytest.raises(UserError, match="in round 2: of 5.0% of the prompts.*--min-kept 0.1"):
        Guards().check_kept(0.05, "in round 2")


def test_the_distance_from_the_start(tmp_path):
    finished = opened.finished(learner.finished(tmp_path / "run"))
    base = policy.load(finished)
    assert base.precision == ("fp32" if not torch.cuda.is_available() else base.precision)
    prompts = [
        prompt_ids(finished.template, {"source": f"cat {i}"}, base.tokenizer) for i in range(40)
    ]

    def look():
        return guards.look(
            base.model, base.tokenizer, finished.template, prompts, max_new_tokens=12
        )

    same = look()
    assert same.kl == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if "lora_B.default" in name:
                parameter.normal_(std=0.03, generator=torch.Generator().manual_seed(0))
    moved = look()
    assert moved.kl == pytest.approx(exact(base, finished, prompts), rel=0.25)
    with policy.as_it_began(base.model):
        assert look() == same
    assert base.model.active_adapters == ["default"]
    trains = {n for n, p in base.model.named_parameters() if p.requires_grad}
    assert trains
    assert all(".default." in name for name in trains)


def exact(base, finished, prompts) -> float:
    """The KL divergence of whole distributions, over tokens that the model drew."""
    from ft.generate.answers import generate
    from ft.generate.samplers import Sample

    found = generate(
        base.model, base.tokenizer, prompts, Sample(), max_new_tokens=12, template=finished.template
    )
    total = count = 0
    for prompt, (answer,) in zip(prompts, found, strict=True):
        ids = torch.tensor([[*prompt, *answer.ids]])
        part = slice(len(prompt) - 1, -1)
        with torch.no_grad():
            now = base.model(ids, use_cache=False).logits[0, part].log_softmax(-1)
            with policy.as_it_began(base.model):
                start = base.model(ids, use_cache=False).logits[0, part].log_softmax(-1)
        total += (now.exp() * (now - start)).sum().item()
        count += len(answer.ids)
    return total / count
