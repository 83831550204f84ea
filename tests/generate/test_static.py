"""Steps with keys and values at fixed places: those of a growing cache, as a graph or launched one by one."""

import functools
import gc
import re
import weakref

import pytest
import torch
from support import tiny
from support.launches import Kernels, Launches

from ft.generate import answers, search, static, together
from ft.generate.decoding import Decoder
from ft.generate.samplers import Beam, Greedy, Sample
from ft.kernels import attention, cross_entropy, flash_decode, fused, fused_layers, joined
from ft.models import lora

FIXED = [k for k in tiny.KINDS if not static.refusal(tiny.build(k))]


class Replayed:
    """A graph as a GPU has it, but for time: capturing runs nothing, replaying runs everything."""

    replays = captures = 0

    def capture(self, work) -> None:
        self.work = work
        Replayed.captures += 1

    def replay(self) -> None:
        self.work()
        Replayed.replays += 1


class Failing(Replayed):
    def capture(self, work) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")


class Wrong(Replayed):
    """Of other numbers than the kernels that it should hold."""

    def replay(self) -> None:
        self.work()
        self.work.__closure__[0].cell_contents.logits.mul_(2)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Replayed, "replays", 0)
    monkeypatch.setattr(Replayed, "captures", 0)
    monkeypatch.setattr(static, "_said", set())


def texts(lengths) -> list[list[int]]:
    return [torch.arange(20 + i, 20 + i + n).tolist() for i, n in enumerate(lengths)]


def test_all_but_recurrent_models_and_experts_can():
    assert set(tiny.KINDS) - set(FIXED) == {"recurrent_gemma", "gemma4_moe"}


@torch.no_grad()
@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("lengths", [(11, 3), (5, 5), (1,)])
def test_logits_are_those_of_a_growing_cache(kind, lengths):
    """Across the window of 8, with padding on the left, with texts that leave, come twice and change places."""
    model = tiny.build(kind)
    both = [
        Decoder(model, texts(lengths), 0, room=15, make_graph=make) for make in (None, Replayed)
    ]
    more = len(lengths) < 3  # than there were, for which others are captured; fewer keep theirs
    for step in range(14):
        for decoder in both:
            if step == 5:
                decoder.select(torch.tensor([len(lengths) - 1, 0, 0]))
            if step == 9:
                decoder.select(torch.tensor([1]))
            decoder.step(torch.arange(len(decoder.logits)) + 40 + step)
        torch.testing.assert_close(both[1].logits, both[0].logits, rtol=1e-4, atol=1e-4)
    assert Replayed.replays == 14 - 1 - more


@pytest.mark.parametrize("kind", FIXED)
@pytest.mark.parametrize("sampler", [Greedy(), Sample(), Beam(3)])
def test_answers_are_the_same(kind, sampler, monkeypatch):
    model, tokenizer = tiny.build(kind), tiny.tokenizer()
    write = functools.partial(
        answers.generate, model, tokenizer, texts((12, 3, 7)), sampler, max_new_tokens=12
    )
    plain = write(n=1 if isinstance(sampler, Greedy) else 2)
    for module in (together, search):
        monkeypatch.setattr(module, "Decoder", functools.partial(Decoder, make_graph=Replayed))
    fixed = write(n=1 if isinstance(sampler, Greedy) else 2)
    assert Replayed.replays > 8
    assert [[a.ids for a in group] for group in fixed] == [[a.ids for a in g] for g in plain]


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "why"), [(Failing, "not permitted"), (Wrong, "its logits are .* off")]
)
def test_a_graph_that_fails_or_differs_is_not_used_and_a_line_says_so(make, why, capsys):
    model = tiny.build("gemma3_text")
    both = [Decoder(model, texts((4, 6)), 0, room=9, make_graph=m) for m in (None, make)]
    for step in range(8):
        for decoder in both:
            decoder.step(torch.tensor([40, 50]) + step)
        torch.testing.assert_close(both[1].logits, both[0].logits, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert re.search(f"CUDA graphs: off in decoding .*{why}", said[0])


@torch.no_grad()
def test_a_step_looks_at_no_value():
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: list[str] = []

    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    for kind in FIXED:
        decoder = Decoder(tiny.build(kind), texts((9, 3)), 0, room=9, make_graph=Failing)
        for step in range(3):
            decoder.step(torch.tensor([40, 50]) + step)
        with Names():
            decoder.step(torch.tensor([60, 61]))
        waits = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}
        assert waits.isdisjoint(seen) or kind == "gemma3n"  # which checks a quantile
        seen.clear()


def wrote(model, lengths, steps=4) -> list[list[int]]:
    """Likeliest ids of texts, by steps at fixed places."""
    decoder = Decoder(model, texts(lengths), 0, room=steps + 1, make_graph=Replayed)
    found = []
    for _ in range(steps):
        found.append(decoder.logits.argmax(-1).tolist())
        decoder.step(decoder.logits.argmax(-1))
    decoder.end()
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["gemma2", "gemma3n"])
def test_the_next_texts_that_fit_take_the_graph_of_those_before(kind):
    """While the model stays as it is: fewer, shorter, with other padding; larger ones begin another."""
    model = tiny.build(kind)
    batches = [(9, 4, 11), (3, 7), (10,), (5, 6, 7, 8)]
    expected = [wrote(model, lengths) for lengths in batches]
    alone = Replayed.captures
    assert alone == len(batches)
    with static.kept(model):
        assert [wrote(model, lengths) for lengths in batches] == expected
        assert Replayed.captures - alone == 2
        both = [Decoder(model, texts((4,)), 0, room=5, make_graph=Replayed) for _ in range(2)]
        for decoder in both:
            decoder.step(torch.tensor([9]))
        assert both[0]._static is not both[1]._static  # of texts that grow at the same time
    wrote(model, (3,))
    assert Replayed.captures - alone == 3
    static.keep(model)
    for _ in range(2):
        with static.kept(model):
            wrote(model, (3,))
    assert Replayed.captures - alone == 4
    there = weakref.ref(model)
    del model, both, decoder
    gc.collect()
    assert there() is None  # what is kept keeps no model alive


@torch.no_grad()
def test_another_adapter_begins_another_graph():
    model = lora.attach(tiny.build("gemma3_text"), r=4, alpha=8)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    tuned = wrote(model, (5, 3))
    with model.disable_adapter():
        base = wrote(model, (5, 3))
    assert tuned != base
    alone = Replayed.captures
    with static.kept(model):
        assert wrote(model, (5, 3)) == tuned
        with model.disable_adapter():
            assert wrote(model, (5, 3)) == base
        assert wrote(model, (5, 3)) == tuned
    assert Replayed.captures - alone == 3


@torch.no_grad()
def test_a_large_batch_of_which_little_is_left_gets_a_small_graph():
    model = tiny.build("gemma2")
    both = [
        Decoder(model, texts([3] * 40), 0, room=9, make_graph=make) for make in (None, Replayed)
    ]
    for left, captures in ((40, 1), (21, 1), (19, 2), (10, 2)):
        for decoder in both:
            decoder.select(torch.arange(left))
            for step in range(2):
                decoder.step(torch.arange(left) + step)
        torch.testing.assert_close(both[1].logits, both[0].logits, rtol=1e-4, atol=1e-4)
        assert Replayed.captures == captures


@pytest.mark.parametrize("sampler", [Greedy(), Sample()])
def test_a_token_is_waited_for_once(sampler, monkeypatch):
    """Ids, their log-probabilities and what must hold of them are read together."""
    waits: list[str] = []
    for name in ("tolist", "item", "__bool__", "__int__", "__float__"):
        plain = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor,
            name,
            lambda self, plain=plain, name=name: (waits.append(name), plain(self))[1],
        )
    model, seen = tiny.build("gemma2"), []
    monkeypatch.setattr(together, "Decoder", functools.partial(Decoder, make_graph=Replayed))
    plain_step = static.Steps.step

    def step(self, ids, positions):
        seen.append(list(waits))
        waits.clear()
        return plain_step(self, ids, positions)

    monkeypatch.setattr(static.Steps, "step", step)
    answers.generate(model, tiny.tokenizer(), texts((9,)), sampler, max_new_tokens=8)
    assert len(seen) == 7
    assert seen[3:] == [["tolist"]] * 4


def launches(layers: int, monkeypatch) -> int:
    """Of a token of Gemma 2 with as many layers in bf16, as on a GPU."""
    found, kernels = Launches(), Kernels()
    monkeypatch.setattr(fused, "usable", lambda *_: True)
    monkeypatch.setattr(flash_decode, "works", lambda *_: True)
    for module in (fused, flash_decode):
        monkeypatch.setattr(module, "_kernels", lambda: kernels)
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    kinds = {"num_hidden_layers": layers, "layer_types": ["full_attention"] * layers}
    model = tiny.build("gemma2", **kinds).bfloat16().requires_grad_(False)
    attention.install(model)
    cross_entropy.install(model)
    fused_layers.install(model)
    decoder = Decoder(model, texts((9,)), 0, room=9, make_graph=Failing)
    with together.evaluating(model):
        for step in range(3):
            decoder.step(torch.tensor([40]) + step)
        kernels.count = 0
        with found:
            decoder.step(torch.tensor([60]))
    return found.count + kernels.count


def test_a_token_of_gemma_2_2b_starts_few_operations(monkeypatch):
    """Of 26 layers, 15 each: four products, four norms, two sums, five kernels of ours."""
    two, three = (launches(n, monkeypatch) for n in (2, 3))
    assert three - two == 15
    assert two + 24 * (three - two) <= 420


def test_a_token_in_another_dtype_than_the_prefill_has_its_place():
    """Under autocast, as in a training of Gemma 3n that draws answers, keys of one token come in bf16."""
    import types

    made = torch.randn(2, 1, 3, 4)
    at = torch.tensor([3])
    places = static._places()(types.SimpleNamespace(keys=made, values=made), at, 2, 5, False)
    new = torch.randn(2, 1, 1, 4, dtype=torch.bfloat16)
    keys, values = places.update(new, new)
    assert torch.equal(keys[:, :, 3:4], new.float())
    assert torch.equal(values[:, :, 3:4], new.float())
