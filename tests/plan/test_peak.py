"""The parts of a plan against a real model's, and how they move with the settings."""

import json

import pytest
import torch
from support import tiny

from ft.models import lora, parameters
from ft.plan import moments, parts, peak, shapes
from ft.plan.autograd import Mode
from ft.train import graph_room, optim

QLORA = {
    "precision": "nf4",
    "lora_r": 16,
    "optim": "paged_adamw_8bit",
    "batch": 4,
    "max_length": 512,
    "device": "cuda",
}
LAPTOP = {"precision": "fp32", "lora_r": 16, "optim": "adamw", "batch": 4, "max_length": 128}


def planned(name: str = "google/gemma-2b", **settings) -> peak.Plan:
    return peak.plan_of(shapes.of(name), **QLORA | settings)


def laptop(**settings) -> peak.Plan:
    return peak.plan_of(shapes.of("embedded"), **LAPTOP | settings)


def part(plan: peak.Plan, name: str) -> int:
    return dict(plan.parts).get(name, 0)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_adapter_and_the_flops_are_those_of_the_model(kind):
    model = tiny.build(kind)
    shape = shapes.from_config(model.config.to_dict())
    if kind != "gemma4_moe":  # ft.models.parameters sees linear layers, and experts are none
        count = pytest.approx(parameters.training_flops(full_model(kind)), rel=1e-9)
        assert parts.flops(shape, Mode(full=True)) == count
    mode = Mode(rank=4)
    adapted = lora.attach(model, r=4, alpha=8)
    assert parts.adapter(shape, mode) == parameters.count(adapted)[0]


def full_model(kind: str):
    model = tiny.build(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameters.in_language_model(name))
    return model


@pytest.mark.parametrize("kind", ["gemma", "gemma3n", "gemma4_text", "recurrent_gemma"])
def test_weights_and_states_are_those_of_a_trained_model(kind):
    model = full_model(kind)
    optimizer = optim.create(model, "adamw", learning_rate=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = [s.nbytes for p in optimizer.state.values() for k, s in p.items() if k != "step"]
    shape, mode = shapes.from_config(model.config.to_dict()), Mode(full=True)
    assert parts.states(shape, mode, "adamw") == sum(held)
    weights = sum(parts.weights(shape, mode, towers=False).values())
    assert weights == sum(p.nbytes for p in model.parameters())


def test_a_4_bit_weight_takes_what_bitsandbytes_takes():
    from bitsandbytes.functional import quantize_4bit

    weight = torch.randn(512, 1024)
    packed, state = quantize_4bit(weight, quant_type="nf4", compress_statistics=True)
    taken = packed.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert weight.numel() * parts.NF4_BYTES == taken


def test_embeddings_and_what_bitsandbytes_skips_stay_in_16_bits():
    shape = shapes.of("google/gemma-3n-E2B")
    mode = Mode(rank=16, width=2, product=2, quantized=True)
    found = parts.weights(shape, mode, towers=False)
    tables = 262_400 * 2048 + 262_144 * 256 * 30
    assert found["base, embeddings and head"] == 2 * tables


def test_parts_add_up_and_can_be_recorded():
    plan = planned()
    record = json.loads(json.dumps(plan.to_dict()))
    assert sum(record["parts"].values()) == record["peak"] == plan.peak
    assert "base, linear layers" in str(plan)
    assert f"{plan.peak / 2**30:.3f}" in str(plan).splitlines()[-1]
    assert all(dict(plan.most)[name] >= size for name, size in plan.parts)
    assert 0 < plan.allocated < plan.peak


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({}, {"precision": "bf16"}),
        ({"precision": "bf16"}, {"precision": "fp32"}),
        ({"checkpointing": True}, {}),
        ({"packing": False}, {"packing": False, "batch": 8}),
        ({}, {"max_length": 1024}),
        ({}, {"optim": "adamw"}),
        ({}, {"lora_r": 64}),
        ({"targets": ("q_proj", "v_proj")}, {}),
        ({}, {"lora_dropout": 0.1}),
        ({"packing": False}, {"packing": False, "processes": 4}),  # graphs take more than buckets
        ({"precision": "bf16", "lora_r": 0, "optim": "sgd"}, {"precision": "bf16", "lora_r": 0}),
        (
            {"precision": "bf16", "lora_r": 0, "processes": 8, "sharded": True},
            {"precision": "bf16", "lora_r": 0, "processes": 8},
        ),
    ],
)
def test_settings_move_the_peak_the_right_way(less, more):
    assert planned(**less).peak < planned(**more).peak


def test_processes_share_out_4_bit_weights_but_for_their_scales():
    whole, shared = (part(planned(processes=8, sharded=s), parts.BASE[0]) for s in (False, True))
    scales = whole * (1 - 0.5 / parameters.NF4_BYTES)
    assert shared == pytest.approx((whole - scales) / 8 + scales, rel=1e-6)


def test_a_graph_takes_the_activations_again_by_the_rule_of_the_training():
    plan = planned()
    held = plan.allocated - plan.passing
    room = peak.CONTEXT + held
    assert part(plan, "activations") < plan.passing < plan.allocated
    assert (
        plan.graphed(room + int((graph_room.LAUNCHED + graph_room.POOL) * plan.passing) + 1)
        == plan.graphed(room + 9 * plan.passing)
        == plan.tokens
    )
    quarter = plan.tokens / 4 / graph_room.POOL
    beside = int((graph_room.LAUNCHED + 0.25) * plan.passing)
    assert plan.graphed(room + beside) == pytest.approx(quarter, abs=1)
    assert plan.graphed(room + plan.passing) == plan.graphed(room) == 0
    for without in ({"processes": 2}, {"packing": False}, {"device": "cpu", "optim": "adamw"}):
        assert planned(**without).passing == 0
    assert planned(checkpointing=True, lora_dropout=0.1).passing == 0
    several = planned(processes=2, optim="adamw")  # which average one tensor's gradient themselves
    assert several.passing > 0
    assert "DDP buckets" not in dict(several.parts)


def test_fewer_supervised_tokens_make_a_smaller_tile():
    assert part(laptop(supervised=0.05), "loss of the head") < part(laptop(), "loss of the head")


def test_a_packed_row_bounds_what_a_batch_takes():
    assert laptop(batch=4).tokens == laptop(batch=400).tokens == 512
    assert laptop(batch=400).peak == laptop(batch=40).peak
    assert laptop(batch=2, max_length=2000).tokens == 2000  # a longer one has a row of its own


def test_known_lengths_take_the_place_of_the_longest():
    assert laptop(batch=2, lengths=[30, 100, 7, 50]).tokens == 150
    assert laptop(lengths=[30, 100, 7, 50], batch=2).peak < laptop(batch=2).peak


def test_rows_of_many_lengths_keep_kernels_on_a_cpu_in_bf16():
    alike, varied = [100, 100, 100], [100, 50, 100]
    for precision, more in (("bf16", moments.KERNELS), ("fp32", 0)):
        one, many = (
            dict(laptop(precision=precision, batch=1, lengths=each).most)
            for each in (alike, varied)
        )
        assert sum(many.values()) - sum(one.values()) == more


def test_a_packed_row_has_no_block_mask_but_where_attention_is_eager():
    for name in ("google/gemma-2b", "google/gemma-2-2b"):
        assert part(planned(name), "attention masks") == 0
    assert part(laptop(), "attention masks") == 0
    name, options = "google/gemma-2-2b", {"device": "cpu", "batch": 1, "checkpointing": False}
    plans = [planned(name, max_length=length, **options) for length in (256, 512)]
    masks = [dict(plan.most)["attention masks"] for plan in plans]
    assert masks[1] == 4 * masks[0] > 0


def test_scores_with_a_soft_cap_grow_with_the_length_of_a_row_on_a_gpu():
    old = {"batch": 1, "bf16": False}  # without a flash kernel
    short, long = (planned("google/gemma-2-2b", max_length=n, **old) for n in (2048, 4096))
    name = "attention scores in flight"
    assert part(long, name) == 2 * part(short, name) > 0
    assert part(planned(), name) == 0


# GB that PyTorch's allocator held in a step, what CUDA graphs keep included: benchmarks/gpu_memory.py
HELD = (
    ("gemma-2-2b", {"batch": 2}, 5.87),
    ("gemma-2-2b", {"batch": 2, "checkpointing": True}, 3.52),
    ("gemma-2-2b", {"batch": 2, "precision": "bf16"}, 8.82),
    ("gemma-2-2b", {"batch": 2, "lora_dropout": 0.05}, 6.86),
    ("gemma-2-2b", {"max_length": 256, "packing": False}, 5.88),
    ("gemma-2b", {}, 8.42),
    ("gemma-2-9b", {"batch": 8, "max_length": 1024, "checkpointing": True}, 13.04),
    (
        "gemma-2-9b",
        {"batch": 8, "max_length": 1024, "checkpointing": True, "offloading": True},
        10.63,
    ),
    ("gemma-3-1b", {}, 5.90),
    ("gemma-3-270m", {"batch": 8, "max_length": 256, "precision": "bf16"}, 2.58),
    ("gemma-2b", {"batch": 2, "precision": "bf16", "lora_r": 0, "checkpointing": True}, 23.74),
)


@pytest.mark.parametrize(("name", "settings", "held"), HELD)
def test_a_plan_is_what_a_gpu_held(name, settings, held):
    plan = planned(f"google/{name}", optim="adamw", supervised=0.5, **settings)
    assert (plan.peak - peak.CONTEXT) / 1e9 == pytest.approx(held, rel=0.1)


# GB that it allocated where graphs had no room: the same with STAND_IN_GIB=10 and the like
LAUNCHED = (
    ("gemma-2-2b", {"batch": 2}, 5.50),
    ("gemma-2-2b", {"batch": 2, "precision": "bf16"}, 8.51),
    ("gemma-2-2b", {"batch": 8, "max_length": 1024, "checkpointing": True}, 4.78),
    (
        "gemma-2-2b",
        {"batch": 8, "max_length": 1024, "checkpointing": True, "offloading": True},
        3.96,
    ),
    ("gemma-2b", {}, 7.88),
    ("gemma-2-9b", {"batch": 8, "max_length": 1024, "checkpointing": True}, 11.44),
    (
        "gemma-2-9b",
        {"batch": 8, "max_length": 1024, "checkpointing": True, "offloading": True},
        9.30,
    ),
)


@pytest.mark.parametrize(("name", "settings", "allocated"), LAUNCHED)
def test_where_graphs_have_no_room_a_plan_is_of_rows_without(name, settings, allocated):
    options = settings | {"optim": "adamw", "supervised": 0.5}
    graphs_too = planned(f"google/{name}", **options)
    plan = planned(f"google/{name}", **options, room=int(allocated * 1e9))
    assert plan.peak < graphs_too.peak
    assert plan.passing == graphs_too.passing  # shorter rows may be graphs
    holes = part(plan, "fragmentation")
    assert (plan.peak - peak.CONTEXT - holes) / 1e9 == pytest.approx(allocated, rel=0.03)


def test_loading_is_the_peak_where_the_file_has_another_precision():
    plan = laptop(precision="bf16", batch=1, max_length=64)
    assert plan.moment == "while it loads"
    assert part(plan, "checkpoint, mapped") == 4 * 268_098_176
    assert laptop(batch=1, max_length=64).moment == "in the loss"


def test_all_parameters_and_adamw_take_16_bytes_each_and_more():
    plan = laptop(lora_r=0, batch=1, max_length=64)
    assert plan.trained == plan.parameters == 268_098_176
    assert plan.peak > 16 * 268_098_176
    assert part(plan, "optimizer states, adamw") == 8 * 268_098_176


@pytest.mark.parametrize("name", ["gemma-3n-E4B", "gemma-4-26B-A4B", "recurrentgemma-9b"])
def test_every_generation_has_a_plan(name):
    qlora = planned(f"google/{name}", checkpointing=True)
    everything = planned(f"google/{name}", precision="bf16", lora_r=0, optim="sgd")
    assert qlora.peak < everything.peak
    assert qlora.flops[0] > 0
