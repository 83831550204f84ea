"""DPO, GRPO and RLOO through TRL on a tiny model: what is drawn, what is learnt, and what must stop them."""

import contextlib

import pytest
import torch
from support import learner
from support.replayed import Replayed

from ft.errors import UserError
from ft.kernels import lora_copies
from ft.rewards import drawn, learning, policy
from ft.runs import folder, opened, record
from ft.score.rewards import Reward
from ft.text.tokens import prompt_ids
from ft.train import optim

pytestmark = learner.needs_trl
ROWS = [{"source": f"the cat sleeps {i}", "target": f"le chat dort {i}"} for i in range(6)]
# every answer has one of its own: random weights seldom write what a reward for letters looks for
EARLY = Reward("early", lambda text, _: sum(ord(c) % 97 for c in text) / (97 * (1 + len(text))))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return opened.finished(learner.finished(tmp_path_factory.mktemp("start") / "run"))


@pytest.fixture
def base(finished):
    return policy.load(finished, "fp32")


@pytest.fixture
def r(tmp_path):
    return record.begin(
        folder.Target(tmp_path / "out"), recipe=__file__, config_yaml="{}\n", seed=0
    )


def trainer(base, r, finished, reward=EARLY, method="grpo", **options):
    settings = {
        "prompts": 2,
        "n": 4,
        "per_device_train_batch_size": 4,
        "max_new_tokens": 8,
        "learning_rate": 1e-2,
    }
    settings |= {"beta": 0.0, "max_steps": 2, "seed": 0} | options
    return learning.grpo(
        base.model,
        base.tokenizer,
        finished.template,
        ROWS,
        reward,
        run=r,
        method=method,
        **settings,
    )


def adapter(model, name="default"):
    return {k: v.detach().clone() for k, v in model.named_parameters() if f".{name}." in k}


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_the_probabilities_of_what_was_drawn_are_the_trainers(method, base, r, finished):
    made = trainer(base, r, finished, method=method)
    prompts = [finished.template.prompt_for(row) for row in ROWS[:2] for _ in range(2)]
    ids, _, _ = made._tokenize_prompts(prompts)
    assert ids[0] == prompt_ids(finished.template, ROWS[0], base.tokenizer)
    answers = made.draw(ids)
    assert answers[0].ids != answers[1].ids
    width = max(map(len, ids))
    longest = max(len(a.ids) for a in answers)
    rows = [
        [0] * (width - len(i)) + i + [*a.ids] + [0] * (longest - len(a.ids))
        for i, a in zip(ids, answers, strict=True)
    ]
    mask = [
        [0] * (width - len(i)) + [1] * (len(i) + len(a.ids)) + [0] * (longest - len(a.ids))
        for i, a in zip(ids, answers, strict=True)
    ]
    values, *_ = made._get_per_token_logps_and_entropies(
        made.model, torch.tensor(rows), torch.tensor(mask), longest
    )
    for row, answer in zip(values.detach(), answers, strict=True):
        assert torch.allclose(row[: len(answer.ids)], torch.tensor(answer.logprobs), atol=1e-4)
        assert not row[len(answer.ids) :].any()


def test_our_log_probabilities_are_those_of_trls_own_head(base, r, finished):
    from trl.trainer.utils import add_fused_lm_head

    made = trainer(base, r, finished)
    ids = torch.randint(6, 60, (3, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[1, 12:] = 0
    ours = made._get_per_token_logps_and_entropies(made.model, ids, mask, 6)[0]
    inner = made.model.get_base_model()
    del inner.forward
    add_fused_lm_head(inner, outputs=("log_probs", "entropy"))
    theirs = made._get_per_token_logps_and_entropies(made.model, ids, mask, 6)[0]
    kept = mask[:, -6:].bool()
    assert torch.allclose(ours[kept], theirs[kept], atol=1e-4)


def moved(base):
    """With a start that is not its base."""
    torch.manual_seed(1)
    for name, parameter in base.model.named_parameters():
        if "lora_B.default" in name:
            parameter.data.normal_(std=0.3)
            start = base.model.get_parameter(name.replace("default", policy.START))
            start.data.copy_(parameter.data)
    return base


SHOWN = ("loss", "grad_norm", "rewards/chosen", "rewards/rejected", "logps/chosen", "kl")


def learnt(made, r) -> tuple[list, list]:
    """Losses, their gradients and rewards of each step, and the adapter."""
    learn(made, r)
    lines = [[line[k] for k in SHOWN if k in line] for line in r.metrics() if "loss" in line]
    assert len(lines) == 4
    assert len(lines[0]) > 2
    return [x for line in lines for x in line], [*adapter(made.model).values()]


def kto(base, r, finished, **options):
    answers = [
        {"prompt_ids": [2, 5 + i], "completion_ids": [6, 7 + i, 1], "label": i % 2 == 0}
        for i in range(4)
    ]
    settings = {"learning_rate": 1e-2, "beta": 0.1, "per_device_train_batch_size": 2} | options
    return learning.kto(base.model, base.tokenizer, answers, run=r, **settings)


def begun(method, base, r, finished):
    """A trainer of four steps."""
    if method == "dpo":
        return dpo(base, r, finished, PAIRS, num_train_epochs=2)
    if method == "kto":
        return kto(base, r, finished, num_train_epochs=2)
    return trainer(base, r, finished, method=method, beta=0.1, max_steps=4)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_what_is_learnt_is_what_trls_own_trainer_learns(method, r, finished, monkeypatch):
    """Whose reference is a copy of the adapter, and whose log-probabilities are those of its own head."""
    from trl.trainer.dpo_trainer import DPOTrainer
    from trl.trainer.kto_trainer import KTOTrainer

    from ft.rewards import trl_trainers

    ours, _ = learnt(begun(method, moved(policy.load(finished, "fp32")), r, finished), r)
    kept = {
        "_prepare_dataset": lambda self, data, *_, **__: data,
        "adopt": lambda *_: None,
        "beside_graphs": lambda self, look: look(),
        "made_room": (),
    }
    base = {"dpo": DPOTrainer, "kto": KTOTrainer}[method]
    name = method.capitalize()
    monkeypatch.setattr(trl_trainers, name, type(name, (base,), kept))
    theirs, _ = learnt(begun(method, moved(policy.load(finished, "fp32")), r, finished), r)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("method", ["dpo", "kto", "grpo", "rloo"])
def test_rows_as_graphs_learn_what_plain_ones_do(method, r, finished, monkeypatch):
    monkeypatch.setattr(Replayed, "made", [])
    plain = learnt(begun(method, moved(policy.load(finished, "fp32")), r, finished), r)
    made = begun(method, moved(policy.load(finished, "fp32")), r, finished)
    made.use_graphs(Replayed)
    made.try_largest(contextlib.ExitStack())
    graphs = learnt(made, r)
    assert graphs[0] == pytest.approx(plain[0], rel=1e-4, abs=1e-5)
    for a, b in zip(graphs[1], plain[1], strict=True):
        assert torch.allclose(a, b, atol=1e-4)
    # of four steps the policy's rows both ways, and the start's or TRL's copy's
    assert sum(g.replays for g in Replayed.made) >= 12
    assert not made.graphs.rows


def test_a_checkpoint_of_another_optimizer_is_refused(base, r, finished, monkeypatch):
    """Of earlier versions, which had a state for each matrix of the adapter."""
    plain = optim.create
    with monkeypatch.context() as m:
        m.setattr(optim, "create", lambda *given, joint, **more: plain(*given, **more))
        learn(dpo(base, r, finished, PAIRS, max_steps=1, save_steps=1), r)
    again = dpo(policy.load(finished, "fp32"), r, finished, PAIRS, max_steps=2, save_steps=1)
    with pytest.raises(
        UserError, match=r"checkpoint-1: the optimizer's state does not fit .*without --resume"
    ):
        learn(again, r, resume="last")


def learn(made, r, watch=lambda step: None, **options):
    return learning.learn(made, run=r, watch=watch, **{"watch_steps": 100} | options)


def dpo(base, r, finished, rows, **options):
    found = drawn.encode_pairs(rows, finished.template, base.tokenizer)
    settings = {"learning_rate": 1e-2, "beta": 0.1, "per_device_train_batch_size": 2} | options
    return learning.dpo(base.model, base.tokenizer, found, run=r, **settings)


@pytest.mark.parametrize(("method", "beta"), [("grpo", 0.0), ("grpo", 0.02), ("rloo", 0.02)])
def test_the_adapter_moves_and_its_start_stays(method, beta, base, r, finished):
    before, looked = adapter(base.model), []
    made = trainer(
        base,
        r,
        finished,
        method=method,
        learning_rate=3e-2,
        beta=beta,
        n=16,
        per_device_train_batch_size=16,
        max_new_tokens=2,
        max_steps=10,
    )
    assert learn(made, r, looked.append, watch_steps=4).steps == 10
    assert looked == [4, 8, 10]
    assert len([line for line in r.metrics() if "reward" in line]) == 10
    after = adapter(base.model)
    assert any(not torch.equal(after[k], before[k]) for k in after)
    assert list(adapter(base.model, "start").values())[0].equal(list(before.values())[0])
    assert "ref" not in base.model.peft_config


@pytest.mark.parametrize(("method", "beta"), [("grpo", 0.0), ("rloo", 0.02)])
def test_the_reward_rises(method, beta, base, r, finished):
    def first_half(text, _):
        return sum("a" <= letter <= "m" for letter in text) / (1 + len(text))

    options = {"n": 16, "per_device_train_batch_size": 32, "learning_rate": 3e-2, "max_steps": 14}
    made = trainer(
        base, r, finished, Reward("first half", first_half), method, beta=beta, **options
    )
    learning.learn(made, run=r, watch=lambda step: None, watch_steps=100)
    rewards = [line["reward"] for line in r.metrics() if "reward" in line]
    assert sum(rewards[-3:]) > 2.5 * sum(rewards[:3])


def test_chosen_answers_become_more_likely_than_rejected_ones(base, r, finished):
    rows = [row | {"chosen": "le chat", "rejected": "the cat"} for row in ROWS]
    learn(dpo(base, r, finished, rows, per_device_train_batch_size=3, num_train_epochs=3), r)
    lines = [line for line in r.metrics() if "rewards/margins" in line]
    margins = [line["rewards/margins"] for line in lines]
    assert len(margins) == 6
    assert margins[0] == pytest.approx(0, abs=1e-5)
    assert margins[-1] > 0.1
    assert not any("logits" in key for key in lines[0])


PAIR = [ROWS[0] | {"chosen": "a", "rejected": "b"}] * 4
PAIRS = [row | {"chosen": f"le chat {i}", "rejected": f"cat {i}"} for i, row in enumerate(ROWS)][:4]


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_checkpointing": True, "per_device_train_batch_size": 4},
    ],
)
def test_what_saves_memory_changes_nothing(options, r, finished):
    """But for rounding, which AdamW's first steps make larger in what is learnt than in losses and norms."""
    found = []
    for more in ({"per_device_train_batch_size": 4}, options):
        base = policy.load(finished, "fp32")
        made = dpo(base, r, finished, PAIRS, num_train_epochs=3, **more)
        assert learn(made, r).steps == 3
        assert made.model.is_gradient_checkpointing == ("gradient_checkpointing" in more)
        lines = [line for line in r.metrics() if "grad_norm" in line]
        found.append([line[name] for line in lines for name in ("loss", "grad_norm")])
    assert len(found[0]) == 6
    assert found[1] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("asked", [None, True, False])
@pytest.mark.parametrize("planned", [True, False])
def test_activations_are_computed_again_where_the_plan_says_so(planned, asked, base, r, finished):
    r.note(plan={"checkpointing": planned})
    made = dpo(base, r, finished, PAIRS, gradient_checkpointing=asked)
    assert made.args.gradient_checkpointing == (planned if asked is None else asked)


@pytest.mark.parametrize("aside", [0, 10**6])
def test_their_inputs_wait_in_the_processors_memory_where_the_plan_says_so(
    aside, base, r, finished, fetched
):
    r.note(plan={"checkpointing": True, "aside": aside})
    made = dpo(base, r, finished, PAIRS, per_device_train_batch_size=2)
    learning.learn(made, run=r, watch=lambda _: None, watch_steps=9)
    assert bool(fetched) == bool(made.offloading) == bool(aside)


def test_the_largest_batch_is_tried_and_leaves_nothing(base, r, finished, capsys):
    long = ROWS[0] | {"chosen": "le chat " * 9, "rejected": "the cat " * 9}
    made = dpo(base, r, finished, [*PAIRS, long], per_device_train_batch_size=2)
    whole = drawn.encode_pairs([long], finished.template, base.tokenizer)[0]
    for name in ("chosen_ids", "rejected_ids"):
        assert drawn.example(whole["prompt_ids"], whole[name]) in made.largest
    assert len(made.largest) == 4
    before, state = adapter(base.model), torch.get_rng_state()
    made.try_largest(contextlib.ExitStack())
    tokens = sum(len(example["input_ids"]) for example in made.largest)
    assert f"a batch of {tokens:,} tokens, as large as they may be, was tried: " in (
        capsys.readouterr().out
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in base.model.parameters())
    after = adapter(base.model)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_largest_batch_of_drawn_answers_has_all_tokens_that_they_may_have(base, r, finished):
    made = trainer(base, r, finished, per_device_train_batch_size=4)
    prompts = {len(ids) for ids in made.known.values()}
    assert len(made.largest) == 4
    assert {len(e["input_ids"]) for e in made.largest} <= {n + 8 for n in prompts}
    assert all(sum(label != -100 for label in e["labels"]) == 8 for e in made.largest)


@pytest.mark.parametrize("method", ["dpo", "grpo", "rloo"])
def test_a_process_takes_one_gpu_of_several(method, base, r, finished, monkeypatch, capsys):
    from transformers import TrainingArguments

    made = TrainingArguments.__post_init__

    def beside_another(self) -> None:
        made(self)
        self._n_gpu = 2

    monkeypatch.setattr(TrainingArguments, "__post_init__", beside_another)
    said = "accelerate launch --num_processes 2"
    if method == "rloo":
        monkeypatch.setenv("FT_COMMAND", "ft run mtnt_grpo")
        said = "ft run mtnt_grpo --processes 2"
    if method == "dpo":
        rows = [{"prompt_ids": [2, 5], "chosen_ids": [6, 1], "rejected_ids": [7, 1]}] * 2
        options = {"learning_rate": 1e-2, "beta": 0.1, "per_device_train_batch_size": 2}
        found = learning.dpo(base.model, base.tokenizer, rows, run=r, **options)
    else:
        found = trainer(base, r, finished, method=method)
    assert found.args.n_gpu == 1
    assert f"one of 2 GPUs is used; all of them: {said}" in capsys.readouterr().out


def test_time_is_over(base, r, finished):
    looked = []
    made = dpo(base, r, finished, PAIR, per_device_train_batch_size=1)
    assert learn(made, r, looked.append, seconds=0).steps == 1
    assert looked == [1]


def test_a_constant_reward_stops_the_run(base, r, finished):
    same = Reward("same", lambda *_: 1.0)
    with pytest.raises(UserError, match="reward 'same' is 1 for all 8 answers of a batch"):
        trainer(base, r, finished, same).train()


def test_a_reward_that_raises_stops_the_run(base, r, finished):
    with pytest.raises(UserError, match="reward 'bad' raised KeyError: 'nothing'"):
        trainer(base, r, finished, Reward("bad", lambda _, row: row["nothing"])).train()


def test_a_loss_that_is_not_finite_stops_the_run(base, r, finished):
    made = dpo(base, r, finished, PAIR, learning_rate=1e30)
    with pytest.raises(UserError, match="the loss became nan at step 2.*lower --learning-rate"):
        learn(made, r)


def test_numbers_that_do_not_fit(base, r, finished):
    with pytest.raises(UserError, match="the 8 answers of a step must be a multiple"):
        trainer(base, r, finished, per_device_train_batch_size=3)
    with pytest.raises(UserError, match="n must be 2 or more"):
        trainer(base, r, finished, n=1)


def test_an_old_trl(monkeypatch):
    import trl

    monkeypatch.setattr(trl, "__version__", "1.15.0")
    with pytest.raises(UserError, match="needs TRL 1.16 or later, and this is 1.15.0"):
        learning.require_trl()


def test_an_adapter_on_4_bits_is_trained_in_fp32(finished, r):
    """In bf16, which TRL makes of it, such small steps would change no weight."""
    base = policy.load(finished, "nf4")
    before = adapter(base.model)
    made = dpo(base, r, finished, PAIRS, learning_rate=1e-6, max_steps=1)
    parameters = dict(made.model.named_parameters())
    for name, start in before.items():
        assert parameters[name].dtype == torch.float32
        assert torch.equal(parameters[name], start), name
        reference = parameters[name.replace(".default.", f".{policy.START}.")]
        assert torch.equal(reference, start), name
    learning.learn(made, run=r, watch=lambda _: None, watch_steps=9)
    moved = [(x - before[name]).abs().max() for name, x in adapter(base.model).items()]
    assert 0 < max(moved) < 1e-5


def test_copies_in_the_bases_precision_follow_each_step(finished, tmp_path, monkeypatch):
    found = []
    for copied in (False, True):
        base = policy.load(finished, "bf16")
        place = tmp_path / str(copied)
        to = record.begin(folder.Target(place), recipe=__file__, config_yaml="{}\n", seed=0)
        made = dpo(base, to, finished, PAIRS, learning_rate=1e-2, num_train_epochs=3.0)
        with monkeypatch.context() as m:
            if not copied:
                m.setattr(lora_copies, "refresh", lambda *_: 0)
            learning.learn(made, run=to, watch=lambda _: None, watch_steps=99)
        lines = [line for line in to.metrics() if "grad_norm" in line]
        found.append([line[name] for line in lines for name in ("loss", "grad_norm")])
        copies = {n: getattr(p, lora_copies.LOW, None) for n, p in made.model.named_parameters()}
        there = {name for name, copy in copies.items() if copy}
        assert bool(there) == copied
    for name in there:
        low, _, place = copies[name]
        parameter = made.model.get_parameter(name)
        assert torch.equal(low, parameter.to(torch.bfloat16)), name
        assert place == parameter.data_ptr()
    assert {".default." in name for name in there} == {True, False}
    assert len(found[0]) > 4
    assert found[0] == found[1]
