"""What goes on from a run is planned by that run's adapter, its copies, and the answers that are in a batch at once."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
from support import learner, tiny
from support.allocations import allocated
from support.recipe_runs import RECIPES, load

from ft import config
from ft.models import lora
from ft.plan import devices, fitting, moments, parts, peak, rewards, settings, shapes, time
from ft.plan.autograd import Mode
from ft.plan.moments import GIB
from ft.rewards.drawn import Preferences
from ft.score import likelihood
from ft.text.tokens import IGNORE

STEMS = ("mtnt_reject", "mtnt_dpo", "mtnt_grpo", "preference")


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return learner.finished(tmp_path_factory.mktemp("start") / "run")


def asked(stem: str, start, *flags: str) -> dict:
    """A recipe's settings, as a plan takes them."""
    module = load(next(path for path in RECIPES if path.stem == stem))
    c = module.resolved(config.parse(module.Config, ["--run", str(start), *flags]))
    return rewards.completed(config.to_dict(c))


def pairs(*lengths: tuple[int, int]) -> Preferences:
    """Preferences whose prompts have 10 tokens, and their answers so many."""
    made = [
        {"prompt_ids": [5] * 10, "chosen_ids": [6] * a, "rejected_ids": [7] * b} for a, b in lengths
    ]
    return Preferences(made, [*range(len(made))], [10 + max(pair) for pair in lengths], 0)


def test_recipes_that_go_on_from_a_run_are_known_by_a_setting_and_no_others():
    for path in RECIPES:
        module = load(path)
        names = set(config.to_dict(module.Config())) & {*rewards.KINDS}
        assert len(names) == (path.stem in STEMS), path.stem


@pytest.mark.parametrize("stem", STEMS)
def test_all_that_a_plan_depends_on_is_of_the_recipe_or_of_the_run(stem, start):
    found = asked(stem, start)
    assert {*settings.NEEDED} <= {*found}
    assert found["lora_r"] == 8
    assert found["lora_target_modules"] == tuple(sorted(set(found["lora_target_modules"])))
    plan = settings.of(found)
    shape = shapes.of(found["model_name_or_path"])
    assert plan.trained == parts.adapter(shape, Mode(rank=8))
    named, before = dict(plan.most), dict(settings.of({**found, "copies": 0}).most)
    assert named["adapter as it began"] == found["copies"] * plan.trained * 4
    assert named == before | {"adapter as it began": named["adapter as it began"]}
    gpu = dict(settings.of(found, device="cuda").most)  # where each has a copy in bf16
    assert gpu["adapter as it began"] == found["copies"] * plan.trained * 6


def test_a_batch_is_planned_with_both_answers_of_its_rows(start):
    pair, one = asked("preference", start), asked("mtnt_reject", start)
    rows = {"per_device_train_batch_size": 4, "max_length": 300}
    assert settings.of(pair | rows).tokens == 2 * 4 * 300
    # the best of its answers are learnt as any example is, a row after the other
    assert settings.of(one | rows).tokens == 300
    assert rewards.groups(pair, pairs((3, 9), (1, 1))) == [[13, 19], [11, 11]]
    known = SimpleNamespace(examples=[{"input_ids": [1] * 7, "labels": [IGNORE] * 5 + [3, 3]}])
    for stem, each in (("mtnt_dpo", 2), ("mtnt_grpo", 1)):  # answers that are still to come
        assert rewards.groups(asked(stem, start), known) == [[5 + 80] * each]


def test_a_run_of_preferences_is_planned_by_its_likely_largest_batch(start, monkeypatch, capsys):
    found = {**asked("preference", start), "per_device_train_batch_size": 2}
    found |= {"answer_rows": 1, "watch_rows": 1, "max_new_tokens": 1}
    encoded = pairs(*[(200, 100)] * 2, *[(20, 10)] * 40)
    base = SimpleNamespace(precision="fp32", path=found["model_name_or_path"])
    shown = {name: value for name, value in found.items() if name not in found["implied"]}
    gpu = devices.Device("cuda", 80 * GIB, True, here="a GPU")
    monkeypatch.setattr(devices, "here", lambda: gpu)
    plan = settings.of_run(shown, base, encoded)
    usual, largest = 2 * (20 + 20 + 10), 2 * (200 + 100 + 20)
    assert usual < plan.tokens <= largest
    assert not plan.checkpointing
    assert plan.passing  # its rows are graphs, and those by the start beside them
    assert dict(plan.most)[moments.APART]
    small = replace(gpu, room=plan.peak - 1)
    monkeypatch.setattr(devices, "here", lambda: small)
    again = settings.of_run(shown, base, encoded)
    assert again.checkpointing
    assert again.peak < plan.peak
    assert "gradient checkpointing: on, as the run takes" in capsys.readouterr().out
    assert json.dumps(again.to_dict())


@pytest.mark.parametrize(
    ("stem", "flags", "forwards"),
    [
        ("preference", (), 1),  # by the start
        ("mtnt_dpo", (), 1),
        ("mtnt_reject", (), 0),
        ("mtnt_grpo", (), 0),
        ("mtnt_grpo", ("--beta", "0.1"), 1),
        ("mtnt_grpo", ("--method", "rloo", "--beta", "0.1"), 2),  # and by itself
    ],
)
def test_forwards_without_gradients_take_time_and_graphs(stem, flags, forwards, start):
    """Only where there are some have they graphs; each is half of what learning from a row takes."""
    found = asked(stem, start, *flags)
    made = settings.of(found, device="cuda")
    assert made.forwards == forwards
    assert (moments.APART in dict(made.most)) == (forwards > 0)
    none = replace(made, forwards=0)
    learning, both = (time.on_card(each, "h100", 1e6) for each in (none, made))
    assert both == pytest.approx((1 + forwards / 2) * learning)
    assert bool(rewards.draws(found)) == (stem != "preference")


def test_an_epoch_of_preferences_counts_each_answer_with_its_prompt(start):
    row = {"instruction": "a" * 400, "chosen": "b" * 400, "rejected": "c" * 800}
    found = asked("preference", start, "--per-device-train-batch-size", "4")
    made = settings.of(found, device="cuda")
    said = time.told(made, found, "t4", lambda: [row] * 80, True)
    assert "an epoch of 80 rows, about 40,000 tokens" in said  # 200 and 300 for each
    single = {"instruction": "a" * 400, "completion": "b" * 400, "label": True}
    told = time.told(made, found, "t4", lambda: [single] * 80, True)
    assert "an epoch of 80 rows, about 16,000 tokens" in told


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3_text"])
def test_all_answers_of_a_batch_are_there_until_its_backward(kind):
    """Within a sixth of what PyTorch allocates, where single rows would be less than half of it."""
    model = lora.attach(tiny.build(kind, hidden_size=64, intermediate_size=256), r=4, alpha=8)
    model.train()
    examples = [
        {"input_ids": [*range(6, 6 + n)], "labels": [IGNORE] * 9 + [*range(15, 6 + n)]}
        for n in (200, 210, 220, 230, 240, 250, 180, 190)
    ]

    def learn() -> None:
        sum(values.sum() for values in likelihood.logprobs(model, examples)).backward()

    learn()  # gradients are there from the second batch on
    shape = shapes.from_config(model.config.to_dict())
    options = {"precision": "fp32", "lora_r": 4, "optim": "adamw", "batch": 8, "max_length": 250}
    options |= {"lengths": [len(e["input_ids"]) for e in examples], "supervised": 0.96}
    passing = {"activations", "attention masks", "backward of one layer", "loss of the head"}

    def of(**more: bool) -> int:
        named = dict(peak.plan_of(shape, **options, **more).parts)
        return sum(size for name, size in named.items() if name in passing)

    taken = allocated(learn)
    assert of(together=True) == pytest.approx(taken, rel=0.17)
    assert of() < taken / 2


def test_what_would_fit_are_flags_that_the_recipe_has(start):
    for stem in STEMS:
        found = {**asked(stem, start), "model_name_or_path": "google/gemma-2b"}
        plan = settings.of(found, device="cuda")
        said = fitting.ways(found, plan.peak - 1, {"device": "cuda"})
        module = load(next(path for path in RECIPES if path.stem == stem))
        flags = [word for word in said.split() if word.startswith("--")]
        assert flags
        known = config.to_dict(module.Config())
        for flag in flags:
            assert flag.strip("-").replace("-", "_").removeprefix("no_") in known, (stem, flag)
    found = asked("mtnt_grpo", start)  # 32 answers of a step, in batches of one size
    least = settings.of({**found, "per_device_train_batch_size": 1}, device="cuda").peak
    for more in (1, 2**18, 2**20, 2**22):
        chosen, _ = fitting.fitting(found, least + more, {"device": "cuda"})
        assert 32 % chosen["per_device_train_batch_size"] == 0


def test_other_recipes_are_as_they_were():
    module = load(next(path for path in RECIPES if path.stem == "mtnt_lora"))
    c = module.Config()
    assert rewards.completed(config.to_dict(c)) == config.to_dict(c)
    assert asdict(c)["lora_r"] == rewards.completed(config.to_dict(c))["lora_r"]
