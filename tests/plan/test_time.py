"""The time of steps on a card: what was measured, what a run's own settings change, and rates that fit the numbers."""

import pytest

from ft.data.rows import Rows
from ft.plan import check_model, devices, settings, time
from ft.plan.case import Case
from ft.plan.moments import GIB
from ft.text.tokens import IGNORE, Encoded

GIVEN = {
    "model_name_or_path": "google/gemma-2-2b",
    "precision": "bf16",
    "lora_r": 16,
    "optim": "adamw",
    "per_device_train_batch_size": 8,
    "max_length": 512,
    "gradient_checkpointing": False,
    "gradient_accumulation_steps": 1,
}


def plan(device="h100", **changes):
    options = {"device": "cuda", "bf16": device not in devices.NO_BF16}
    return settings.of(GIVEN | changes, **options)


@pytest.mark.parametrize(
    ("tokens", "share", "precision", "milliseconds"),
    [
        (571, 0.23, "bf16", 40),
        (571, 0.23, "nf4", 47),
        (287, 0.47, "bf16", 35),
        (287, 0.47, "nf4", 42),
    ],
)
def test_what_an_h100_took_is_what_is_told(tokens, share, precision, milliseconds):
    told = time.on_card(plan(precision=precision), "h100", tokens, supervised=share)
    assert 1000 * told == pytest.approx(milliseconds, rel=0.15)


def test_without_room_for_a_graph_kernels_are_what_takes_time():
    wide = plan(packing=False)
    assert plan().graphed(80 * GIB) == plan().tokens
    assert not wide.graphed(80 * GIB)
    told = time.on_card(wide, "h100", 571)
    assert 0.273 < told < 0.410  # of the two that were measured, launched one by one


@pytest.mark.parametrize("card", devices.CARDS)
def test_a_step_of_few_tokens_is_not_told_by_its_products(card):
    made = plan(card, model_name_or_path="google/gemma-3-270m", precision="auto")
    few, many = (time.on_card(made, card, n) for n in (100, 8000))
    assert few >= made.layers * time.GRAPHED
    assert few < many < 80 * few


def test_a_card_without_bfloat16_has_its_float32_where_nothing_is_in_4_bits():
    slow, fast = (time.rates(plan("t4", precision=kind), "t4") for kind in ("fp32", "nf4"))
    assert slow == (8.1e12, 8.1e12)
    assert fast == (65e12, 8.1e12)
    assert time.rates(plan(precision="fp32"), "h100") == pytest.approx((66.9e12, 66.9e12))


def case(rows: int, **changes) -> Case:
    """A run on rows of 100 tokens, of which 50 are learnt, as many to validate with as it trains on."""
    example = {"input_ids": [1] * 100, "labels": [IGNORE] * 50 + [1] * 50}
    sample = min(rows, 40)
    splits = {name: Rows([{}] * rows, "", "") for name in ("train", "valid")}
    found = Case(
        GIVEN | {"num_train_epochs": 1.0} | changes,
        dict,
        None,
        None,
        device=devices.named("h100", "--gpu"),
    )
    found.splits, found.sample = splits, {name: each.head(sample) for name, each in splits.items()}
    found.encoded = {name: Encoded([example] * sample, [], [100] * sample, 0, 0) for name in splits}
    return found


def seconds(monkeypatch, rows: int, **changes) -> tuple[str, float]:
    monkeypatch.setattr(time, "duration", lambda found: f"[{found}]")
    looked = case(rows, **changes)
    said = check_model._time(looked, plan(), "h100")
    return said.partition(" ")[0], float(said.partition("[")[2].partition("]")[0])


def test_steps_passes_and_validations_are_counted(monkeypatch):
    each = time.on_card(plan(), "h100", 800)
    assert seconds(monkeypatch, 80_000) == ("10,000", pytest.approx(10_000 * each))
    assert seconds(monkeypatch, 80_000, num_train_epochs=0.5)[0] == "5,000"
    assert seconds(monkeypatch, 80_000, max_steps=7_000)[1] == pytest.approx(7_000 * each)
    twice = seconds(monkeypatch, 80_000, gradient_accumulation_steps=2)
    assert twice == ("5,000", pytest.approx(10_000 * each))
    watched = seconds(monkeypatch, 80_000, eval_steps=5_000)[1]
    assert watched == pytest.approx(10_000 * each * (1 + 4 / 2))  # before, twice, and at the end
    assert seconds(monkeypatch, 80_000, max_length=50, length_policy="truncate")[1] < 10_000 * each


def test_a_run_of_seconds_is_told_as_less_than_a_minute():
    assert check_model._time(case(800), plan(), "h100") == "100 steps in under a minute on an h100"
    assert check_model._time(case(800), plan("t4"), "t4").endswith(" on a t4")


def test_cards_that_train_together_share_an_epoch(monkeypatch):
    monkeypatch.setattr(time, "duration", lambda found: f"[{found}]")
    rows = [{"text": "a" * 400}] * 80

    def epoch(processes: int) -> float:
        said = time.told(plan(), GIVEN, "h100", lambda: rows, True, processes)
        return float(said.partition("[")[2].partition("]")[0])

    assert epoch(1) == pytest.approx(10 * time.on_card(plan(), "h100", 800))
    assert epoch(4) == pytest.approx(epoch(1) / 4)
