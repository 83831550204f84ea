"""A recipe's settings as a plan, and the training of all parameters that is refused before weights are read."""

import math

import pytest
from support import tiny

from ft import machine
from ft.errors import UserError
from ft.models import parameters, precision
from ft.plan import fitting, settings
from ft.plan.moments import CONTEXT, GIB
from ft.text import batches
from ft.train import optim

FULL = {
    "precision": "fp32",
    "lora_r": 0,
    "optim": "adamw",
    "max_length": 64,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "gradient_checkpointing": False,
}


@pytest.fixture
def check(tmp_path, monkeypatch):
    def checked(room: int, kind: str = "gemma", sizes=(), **changed):
        tiny.config(kind, **dict(sizes)).save_pretrained(tmp_path)
        monkeypatch.setattr(machine, "free_memory", lambda: (room, "a GPU"))
        return settings.check_memory(FULL | {"model_name_or_path": str(tmp_path)} | changed)

    return checked


@pytest.mark.parametrize("kind", [k for k in tiny.KINDS if k not in tiny.MULTIMODAL])
def test_the_estimate_is_what_a_step_leaves_behind(kind, check):
    model = tiny.build(kind)
    trained = [p for n, p in model.named_parameters() if parameters.in_language_model(n)]
    optimizer = optim.create(model, "adamw", learning_rate=1e-3)
    for p in trained:
        p.grad = p.detach().clone()
    optimizer.step()
    states = [s for p in trained for k, s in optimizer.state[p].items() if k != "step"]
    head = model.get_input_embeddings().weight
    weights = sum(p.nbytes for p in model.parameters())
    least = weights + sum(p.grad.nbytes for p in trained) + head.nbytes
    least += sum(s.nbytes for s in states)
    assert f"memory: {sum(p.numel() for p in model.parameters()):,} parameters" in check(
        least, kind
    )
    with pytest.raises(UserError, match="will not fit"):
        check(least - 1, kind)


LARGE = {"hidden_size": 2048, "intermediate_size": 16384, "num_hidden_layers": 18}


def test_what_will_not_fit_is_refused_with_the_estimate(check, monkeypatch):
    said = r"optim=adamw will not fit: [\d,]+ parameters need 27.1 GiB \(weights 6.8, .* a GPU has 16.0"
    with pytest.raises(UserError, match=said) as error:
        check(16 * GIB, sizes=LARGE)
    assert "Use --optim sgd" in str(error.value)
    assert "16.0 GiB are free" in check(16 * GIB, sizes=LARGE, optim="sgd")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert "16.0 GiB are free" in check(16 * GIB, sizes=LARGE)


def test_less_is_needed_by_sgd_8_bits_and_bf16(check):
    def states(name: str, precision: str = "fp32") -> float:
        said = check(64 * GIB, sizes=LARGE, optim=name, precision=precision)
        return float(said.split("optimizer states ")[1].split(")")[0])

    assert states("sgd") == 0
    assert states("adamw") == pytest.approx(4 * states("adamw_8bit"), abs=0.2)
    assert states("adamw") == pytest.approx(2 * states("adamw", "bf16"), abs=0.1)


def test_the_ways_out_are_those_that_are_left(check):
    with pytest.raises(UserError, match="free. Use --lora-r 16, which"):
        check(10, optim="sgd", precision="bf16")


def test_automatic_precision_is_planned_as_loading_chooses_it():
    asked = {**FULL, "lora_r": 16, "precision": "auto", "model_name_or_path": "google/gemma-7b"}
    weights = 2 * settings.of(asked, device="cuda").parameters
    enough = int(weights / precision.ROOMY) + CONTEXT
    options = {"device": "cuda", "room": enough + 2}
    assert settings.of(asked, **options).precision == "bf16"
    assert settings.of(asked, **options | {"room": enough - 2}).precision == "nf4"
    assert settings.of(asked, **options, bf16=False).precision == "nf4"
    half = options | {"room": enough // 2 + CONTEXT, "processes": 2, "sharded": True}
    assert settings.of(asked, **half).precision == "bf16"


GEMMA = {
    "model_name_or_path": "google/gemma-2-2b",
    "precision": "bf16",
    "lora_r": 16,
    "optim": "adamw",
    "max_length": 1024,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": None,
}


@pytest.mark.parametrize(
    ("gib", "usual", "again"),
    [
        (80, 1.0, False),
        (40, 0.15, False),  # the longest rows fit once, and usual ones twice, as graphs need it
        (40, 1.0, True),
        (24, 0.15, True),
        (4, 0.15, True),  # what does not fit at all is told of the least that it takes
    ],
)
def test_activations_are_computed_again_where_the_memory_needs_it(gib, usual, again):
    plan = settings.of(GEMMA, device="cuda", room=gib * GIB, usual_share=usual)
    asked = settings.of(GEMMA | {"gradient_checkpointing": again}, device="cuda", room=gib * GIB)
    assert plan.checkpointing == again
    assert plan == asked


def test_on_a_processor_too():
    small = GEMMA | {"precision": "fp32"}
    plain = settings.of(small | {"gradient_checkpointing": False}).peak
    assert settings.of(small, room=plain - 1).checkpointing
    assert not settings.of(small, room=plain).checkpointing


def test_who_says_yes_or_no_is_heard():
    for asked in (True, False):
        plan = settings.of(GEMMA | {"gradient_checkpointing": asked}, device="cuda", room=GIB)
        assert plan.checkpointing == asked
    assert not settings.of(GEMMA, device="cuda").checkpointing  # of no known memory


def test_what_is_computed_again_begins_in_the_processors_memory_where_the_gpus_is_full():
    again = GEMMA | {"gradient_checkpointing": True}
    alone = settings.of(again, device="cuda", room=GIB, ram=0)
    assert settings.of(again, device="cuda", room=alone.peak) == alone
    less = settings.of(GEMMA, device="cuda", room=alone.peak - 1)
    assert less == settings.of(again, device="cuda", room=alone.peak - 1)
    asked = GEMMA | {"gradient_checkpointing": "offload"}
    assert less == settings.of(asked, device="cuda", room=alone.peak - 1)
    layers, tokens, width = 26, 8 * 1024, 2304
    assert alone.aside == 0
    assert less.aside == layers * tokens * width * 2  # bf16
    assert (
        alone.peak - less.peak == less.aside * (layers - 2) // layers
    )  # this layer's and the next's


@pytest.mark.parametrize(
    ("also", "options"),
    [
        ({}, {"ram": GIB // 2}),
        ({}, {"sharded": True, "processes": 2}),
        ({"gradient_checkpointing": False}, {}),
    ],
)
def test_nothing_is_offloaded_where_that_cannot_be_or_is_not_wanted(also, options):
    assert settings.of(GEMMA | also, device="cuda", room=GIB, **options).aside == 0


def test_all_rows_of_a_batch_that_is_learnt_from_at_once_wait_there():
    asked = GEMMA | {"gradient_checkpointing": "offload"}
    row = settings.of(asked, device="cuda")
    both = settings.of(asked | {"together": True, "answers_each": 2}, device="cuda")
    assert both.tokens == 2 * row.tokens
    assert both.aside == 2 * row.aside


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "cpu"}, "this is for a processor"),
        ({"device": "cuda", "sharded": True}, "does not go with FSDP"),
    ],
)
def test_offloading_that_cannot_be_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        settings.of(GEMMA | {"gradient_checkpointing": "offload"}, **options)


def test_a_plan_is_of_the_largest_batch_that_there_is():
    lengths = [1024] * 50 + [100] * 950
    order = batches.Order(lengths, seed=7)
    largest = [lengths[i] for i in batches.largest(order, 8, epochs=2)]
    sums = []
    for order.epoch in (0, 1):
        drawn = [lengths[i] for i in order]
        sums += [sum(drawn[at : at + 8]) for at in range(0, 1000, 8)]
    assert 1024 < sum(largest) == max(sums) < 8 * 1024
    options = {"device": "cuda", "room": 24 * GIB, "lengths": lengths}
    assert settings.of(GEMMA, **options).checkpointing
    usual = settings.usual_of(lengths, largest)
    plan = settings.of(GEMMA, **options, largest=largest, usual_share=usual)
    assert not plan.checkpointing
    assert plan.tokens == sum(largest)


def test_what_fills_up_a_last_batch_is_in_none():
    order = batches.Order([1, 2, 3, 4, 5], seed=0, multiple=4)
    order.epoch = 3
    found = batches.largest(order, 4, epochs=1)
    assert order.epoch == 3
    order.epoch = 0
    assert found == [*order][:4]


def test_a_sample_tells_the_largest_batch_that_is_likely():
    lengths = [[1024]] * 5 + [[100]] * 95
    few, many = (settings.likely_largest(GEMMA, lengths, rows) for rows in (8, 10_000))
    assert len(few) == len(many) == 8
    assert 8 * 100 <= sum(few) <= sum(many) < 8 * 1024
    assert settings.likely_largest(GEMMA, lengths, 10_000) == many
    for padded in ({"backend": "unsloth"}, {"train_vision": False}):
        assert settings.likely_largest(GEMMA | padded, lengths, 100) is None


def test_what_would_fit_is_told_of_the_same_batches():
    largest = [1024] * 2 + [100] * 6
    plain = GEMMA | {"gradient_checkpointing": False}
    options = {"device": "cuda", "largest": largest}
    peak, room = settings.of(plain, **options).peak, 8 * GIB
    assert room < peak < settings.of(plain, device="cuda").peak
    said = fitting.ways(plain, room, options | {"room": room})
    assert said.startswith("--gradient-checkpointing (")
    assert said.endswith(f"{math.ceil(peak / GIB)} GiB of memory for the settings as they are")
