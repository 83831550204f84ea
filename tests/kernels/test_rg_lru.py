"""The scan: a float64 loop and autograd, transformers' own loop, documents, parts, and both ways to go through time."""

import itertools

import pytest
import torch
from transformers import RecurrentGemmaConfig
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

from ft.kernels import recurrent, rg_lru

BATCH, LENGTH, WIDTH = 2, 11, 6
STARTS = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
STARTS[0, [0, 4, 5]] = True  # one of them has a single token
STARTS[1, 7] = True  # this row goes on from a state


def inputs(dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """x, both gates, decay, state."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, LENGTH, WIDTH)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    found.append(-8 * torch.rand(WIDTH, generator=generator, dtype=torch.float64))
    found.append(torch.randn(BATCH, WIDTH, generator=generator, dtype=torch.float64))
    return [x.to(dtype).requires_grad_() for x in found]


def loop(x, input_gate, recurrence_gate, decay, starts, state):
    """The equations, one token after the other."""
    outputs = []
    for t in range(x.shape[1]):
        a = torch.exp(decay * torch.sigmoid(recurrence_gate[:, t]))
        gated = x[:, t] * torch.sigmoid(input_gate[:, t])
        start = starts[:, t, None]
        state = torch.where(start, gated, a * state + torch.sqrt(1 - a**2) * gated)
        outputs.append(state)
    return torch.stack(outputs, dim=1), state


def run(function, dtype=torch.float64, starts=STARTS):
    """Outputs, and the gradient of a weighted sum of both by every input."""
    *given, state = leaves = inputs(dtype)
    result, last = function(*given, starts, state)
    generator = torch.Generator().manual_seed(1)
    weights = (
        torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in (result, last)
    )
    total = sum((o * w).sum() for o, w in zip((result, last), weights, strict=True))
    return [result, last, *torch.autograd.grad(total, leaves)]


def check(found, expected, **tolerance):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.fixture(params=[1, 30, 10**6], ids=lambda n: f"{n} elements at once")
def part(request, monkeypatch):
    monkeypatch.setitem(rg_lru.PART, "cpu", request.param)


@pytest.mark.usefixtures("part")
def test_value_and_gradients_equal_a_loop_in_double_precision():
    check(run(rg_lru.rg_lru), run(loop), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("part")
def test_gradients_equal_finite_differences():
    *given, state = inputs()
    assert torch.autograd.gradcheck(
        lambda *leaves: rg_lru.rg_lru(*leaves[:4], STARTS, leaves[4]), [*given, state]
    )


def test_single_precision_accumulates_no_more_than_rounding():
    expected = [x.float() for x in run(loop)]
    decay = {"check_dtype": False, "rtol": 2e-5, "atol": 2e-6}
    check(run(rg_lru.rg_lru, torch.float32), expected, **decay)


def test_bfloat16_is_computed_in_single_precision():
    """Rounded where it enters and leaves; the states between are not."""
    *given, state = inputs(torch.bfloat16)
    given[3], state = given[3].detach().float().requires_grad_(), state.detach().float()
    result, last = rg_lru.rg_lru(*given, STARTS, state)
    assert (result.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    exact = [x.detach().double().requires_grad_() for x in given]
    expected, end = loop(*exact, STARTS, state.double())
    torch.testing.assert_close(last.double(), end, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(result, expected.to(torch.bfloat16), rtol=0.008, atol=0)
    found = torch.autograd.grad(result.sum(), given)
    wanted = torch.autograd.grad(expected.sum(), exact)
    check(found, [w.to(f.dtype) for f, w in zip(found, wanted, strict=True)], rtol=0.008, atol=1e-6)


def test_a_row_in_pieces_is_the_row():
    *given, state = (x.detach() for x in inputs())
    whole, last = rg_lru.rg_lru(*given, STARTS, state)
    for cut in (1, 4, 10):
        now, pieces = state, []
        for piece in (slice(0, cut), slice(cut, None)):
            tokens = [x[:, piece] for x in given[:3]]
            out, now = rg_lru.rg_lru(*tokens, given[3], STARTS[:, piece], now)
            pieces.append(out)
        check([torch.cat(pieces, 1), now], [whole, last], rtol=1e-12, atol=1e-12)


def test_documents_do_not_see_each_other():
    given = [x.detach()[:1] for x in inputs()[:3]]
    decay = inputs()[3].detach()
    packed, _ = rg_lru.rg_lru(*given, decay, STARTS[:1])
    bounds = [0, 4, 5, LENGTH]
    for begin, end in itertools.pairwise(bounds):
        first = torch.zeros(
            1, end - begin, dtype=torch.bool
        )  # without a state, it is a start anyway
        first[0, 0] = True
        alone, _ = rg_lru.rg_lru(*(x[:, begin:end] for x in given), decay, first)
        assert torch.equal(packed[:, begin:end], alone)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_doubling_equals_step_by_step(length, reverse):
    """The way that a GPU takes; here its arithmetic alone is looked at."""
    generator = torch.Generator().manual_seed(length)
    values, gates = torch.rand(2, 2, length, 5, generator=generator, dtype=torch.float64)
    gates[:, length // 2] = 0  # a document starts
    one, other, kept = values.clone(), values.clone(), gates.clone()
    rg_lru.advance(one, gates, reverse=reverse)
    rg_lru.advance_by_doubling(other, gates, reverse=reverse)
    torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12)
    assert torch.equal(gates, kept)
    assert length < 3 or not torch.equal(one, values)


def layer(fast: bool) -> RecurrentGemmaRglru:
    torch.manual_seed(0)
    config = RecurrentGemmaConfig(hidden_size=32, num_attention_heads=2, lru_width=32)
    found = RecurrentGemmaRglru(config)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    if fast:
        found.__class__ = recurrent._classes().RgLru
    return found


def test_the_layer_equals_transformers_loop_with_all_its_gradients():
    positions = torch.tensor([[*range(9), *range(4)], [*range(13)]])
    found = []
    for fast in (True, False):
        x = torch.randn(2, 13, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        module = layer(fast)
        out = module(x, positions)
        result, state = out if fast else (out, module.recurrent_states)
        (result.sin().sum() + state.cos().sum()).backward()
        found.append([result, state, x.grad, *(p.grad for p in module.parameters())])
    check(*found, rtol=1e-5, atol=2e-6)


def test_an_open_gate_with_slow_decay_has_the_bounded_derivative_of_transformers():
    """At a = 1 the root's derivative is infinite: Google bounds it, and so do both."""
    found = []
    for fast in (True, False):
        module = layer(fast)
        with torch.no_grad():
            module.recurrent_param.fill_(-40.0)
        x = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        out = module(x, torch.arange(1, 6)[None])
        (out[0] if fast else out).sum().backward()
        found.append([x.grad, *(p.grad for p in module.parameters())])
        assert all(bool(g.isfinite().all()) for g in found[-1])
    check(*found, rtol=1e-5, atol=1e-6)


def test_backward_keeps_no_more_than_inputs_and_states():
    """transformers' loop keeps a dozen tensors of the row's size, and as many small ones as tokens."""
    kept: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    leaves = inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        rg_lru.rg_lru(*leaves[:4], STARTS, leaves[4])
    row = leaves[0].untyped_storage().nbytes()
    assert sum(kept.values()) < 4.5 * row  # x, two gates, states
