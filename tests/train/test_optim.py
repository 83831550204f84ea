"""Which parameters decay, by name, in every generation; optimizers that cannot be had here."""

import re

import pytest
import torch
from support import tiny

from ft.errors import UserError
from ft.models import lora, parameters
from ft.train import optim

ATTENTION = {f"model.layers.N.self_attn.{x}_proj.weight" for x in "qkvo"}
MLP = {f"model.layers.N.mlp.{x}_proj.weight" for x in ("gate", "up", "down")}
TWO_NORMS = {
    "model.norm.weight",
    "model.layers.N.input_layernorm.weight",
    "model.layers.N.post_attention_layernorm.weight",
}
FOUR_NORMS = TWO_NORMS | {
    "model.layers.N.pre_feedforward_layernorm.weight",
    "model.layers.N.post_feedforward_layernorm.weight",
}
QK_NORMS = {f"model.layers.N.self_attn.{x}_norm.weight" for x in "qk"}
EMBEDDING = {"model.embed_tokens.weight"}
BY_LAYER = {
    "model.layers.N.per_layer_input_gate.weight",
    "model.layers.N.per_layer_projection.weight",
    "model.per_layer_model_projection.weight",
}
BY_LAYER_SPARED = {
    "model.embed_tokens_per_layer.weight",
    "model.per_layer_projection_norm.weight",
    "model.layers.N.post_per_layer_input_norm.weight",
}
RECURRENT = [f"model.layers.N.temporal_block.linear_{x}" for x in ("x", "y", "out")]
RECURRENT += ["model.layers.N.temporal_block.conv_1d", "model.layers.N.temporal_block.o_proj"]
RECURRENT += [f"model.layers.N.mlp_block.{x}_proj" for x in ("gate", "up", "down")]
RG_LRU = "model.layers.N.temporal_block.rg_lru."

GEMMA3 = (ATTENTION | MLP, EMBEDDING | FOUR_NORMS | QK_NORMS)
GEMMA4 = (GEMMA3[0] | BY_LAYER, GEMMA3[1] | BY_LAYER_SPARED)
DECAYED_AND_SPARED = {
    "gemma": (ATTENTION | MLP, EMBEDDING | TWO_NORMS),
    "gemma2": (ATTENTION | MLP, EMBEDDING | FOUR_NORMS),
    "gemma3_text": GEMMA3,
    "gemma3": GEMMA3,
    "gemma3n": (
        GEMMA4[0]
        | {
            "model.layers.N.altup.correction_coefs.weight",
            "model.layers.N.altup.prediction_coefs.weight",
            "model.layers.N.altup.modality_router.weight",
            "model.layers.N.laurel.linear_left.weight",
            "model.layers.N.laurel.linear_right.weight",
            "model.altup_projections.N.weight",
            "model.altup_unembed_projections.N.weight",
        },
        GEMMA4[1]
        | {
            "model.layers.N.altup.correct_output_scale",
            "model.layers.N.altup.router_norm.weight",
            "model.layers.N.laurel.post_laurel_norm.weight",
        },
    ),
    "gemma4_text": GEMMA4,
    "gemma4": GEMMA4,
    "gemma4_moe": (
        GEMMA3[0]
        | {
            "model.layers.N.router.proj.weight",
            "model.layers.N.experts.gate_up_proj",
            "model.layers.N.experts.down_proj",
        },
        GEMMA3[1]
        | {
            "model.layers.N.router.scale",
            "model.layers.N.router.per_expert_scale",
            "model.layers.N.post_feedforward_layernorm_N.weight",
            "model.layers.N.pre_feedforward_layernorm_N.weight",
        },
    ),
    "recurrent_gemma": (
        {f"{name}.weight" for name in RECURRENT}
        | {f"model.layers.N.temporal_block.{x}_proj.weight" for x in "qkv"},
        EMBEDDING
        | {f"{name}.bias" for name in RECURRENT}
        | {RG_LRU + "recurrent_param"}
        | {
            RG_LRU + f"{gate}_gate_{x}"
            for gate in ("input", "recurrent")
            for x in ("weight", "bias")
        }
        | {
            "model.final_norm.weight",
            "model.layers.N.temporal_pre_norm.weight",
            "model.layers.N.channel_pre_norm.weight",
        },
    ),
}


def names(model: torch.nn.Module, group: dict) -> set[str]:
    """The parameters of a group, with N for a number, and multimodal models' prefix left out."""
    by_id = {id(p): name for name, p in model.named_parameters()}
    found = {by_id[id(p)].replace("language_model.", "") for p in group["params"]}
    return {re.sub(r"(?<=[._])\d+(?=\.)", "N", name) for name in found}


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_what_decays_and_what_does_not(kind):
    model = tiny.build(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameters.in_language_model(name))
    decayed, spared = optim.groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert names(model, decayed) == DECAYED_AND_SPARED[kind][0]
    assert names(model, spared) == DECAYED_AND_SPARED[kind][1]


def test_the_matrices_of_an_adapter_decay_and_doras_magnitudes_do_not():
    model = lora.attach(tiny.build("gemma"), r=2, alpha=4, dropout=0.0, variant="dora")
    decayed, spared = (names(model, group) for group in optim.groups(model, 0.1))
    assert decayed
    assert all("lora_A" in name or "lora_B" in name for name in decayed)
    assert spared
    assert all("lora_magnitude_vector" in name for name in spared)


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(UserError, match=r"rule 'embedder' .* matches no parameter.*embed_tokens"):
        optim.groups(tiny.build("gemma"), 0.1, rules=["norm", "embedder"])
    model = tiny.build("gemma")
    model.config.model_type = "recurrent_gemma"  # whose RG-LRU this model lacks
    with pytest.raises(UserError, match="rg_lru"):
        optim.create(model, "adamw", learning_rate=0.1, weight_decay=0.1)


def test_decay_moves_only_what_decays():
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rules = (optim.NORMS, optim.BIASES)
    optimizer = optim.create(model, "adamw", learning_rate=0.1, weight_decay=0.5, rules=rules)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        expected = before[name] * (1 - 0.1 * 0.5) if name == "proj.weight" else before[name]
        torch.testing.assert_close(p.detach(), expected)


def test_betas_reach_adamw():
    model = tiny.build("gemma")
    optimizer = optim.create(model, "adamw", learning_rate=0.1, betas=(0.9, 0.96))
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.96)}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_joint_parameters_take_the_steps_of_single_ones(name):
    """To the bit; their gradients keep their places, and decay spares what it spared."""
    sides = []
    for joint in (False, True):
        model = lora.attach(tiny.build("gemma"), r=3, alpha=4, variant="dora")
        options = {"learning_rate": 0.1, "weight_decay": 0.1, "joint": joint}
        sides.append((model, optim.create(model, name, **options)))
    trained = [[p for p in m.parameters() if p.requires_grad] for m, _ in sides]
    for one, other in zip(*trained, strict=True):
        one.data.copy_(other.data)
    places = [p.grad.data_ptr() for p in trained[1]]
    for seed in range(3):
        torch.manual_seed(seed)
        for one, other in zip(*trained, strict=True):
            one.grad = torch.randn_like(one)
            other.grad += one.grad
        for _, optimizer in sides:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
    assert [len(group["params"]) for group in sides[1][1].param_groups] == [1, 1]
    assert [p.grad.data_ptr() for p in trained[1]] == places
    assert all(torch.equal(one, other) for one, other in zip(*trained, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_states_to_come_are_those_that_the_first_step_makes(name, dtype):
    model = lora.attach(tiny.build("gemma"), r=4, alpha=8).to(dtype)
    made = optim.create(model, name, learning_rate=1e-3)
    expected = optim.to_come(made, name)
    for p in model.parameters():
        p.grad = torch.ones_like(p) if p.requires_grad else None
    made.step()
    states = [x for state in made.state.values() for x in state.values() if torch.is_tensor(x)]
    assert expected == sum(x.nbytes for x in states if x.dim())
    assert optim.to_come(made, name) == 0 or name == "sgd"


def test_a_model_with_nothing_to_train_is_an_error():
    model = torch.nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(UserError, match="no trainable parameter"):
        optim.create(model, "sgd", learning_rate=0.1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="8-bit states work on a GPU")
def test_eight_bit_states_without_a_gpu_are_refused_by_name():
    with pytest.raises(UserError, match="'paged_adamw_8bit'.*use adamw or sgd"):
        optim.create(tiny.build("gemma"), "paged_adamw_8bit", learning_rate=0.1)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sgd_8bit", "optim 'sgd_8bit': plain SGD keeps no states"),
        ("paged_sgd8bit", "optim 'paged_sgd8bit': plain SGD keeps no states"),
        ("adam", "optim 'adam': must be one of adamw, sgd, .* Did you mean 'adamw'"),
    ],
)
def test_optimizers_that_do_not_exist(name, said):
    with pytest.raises(UserError, match=said):
        optim.create(tiny.build("gemma"), name, learning_rate=0.1)


def test_known_optimizers_pass():
    assert not [wrong for name in optim.STATE_BYTES for wrong in optim.check(name)]
