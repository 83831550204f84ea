"""Steps with keys and values at fixed places: those of a growing cache, as a graph or launched one by one."""

import functools
import re

import pytest
import torch
from support import tiny

from ft.generate import answers, search, static, together
from ft.generate.decoding import Decoder
from ft.generate.samplers import Beam, Greedy, Sample

FIXED = [k for k in tiny.KINDS if not static.refusal(tiny.build(k))]


class Replayed:
    """A graph as a GPU has it, but for time: capturing runs nothing, replaying runs everything."""

    replays = 0

    def capture(self, work) -> None:
        self.work = work

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
    for step in range(14):
        for decoder in both:
            if step == 5:
                decoder.select(torch.tensor([len(lengths) - 1, 0, 0]))
            if step == 9:
                decoder.select(torch.tensor([1]))
            decoder.step(torch.arange(len(decoder.logits)) + 40 + step)
        torch.testing.assert_close(both[1].logits, both[0].logits, rtol=1e-4, atol=1e-4)
    assert Replayed.replays == 14 - 3  # all but the first step of each batch, captured anew


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
