"""RecurrentGemma beside Google's own numbers, rows packed, padded and cut beside rows alone; the scan beside a loop."""

import copy
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from goldens import make_recurrent as golden
from support import tiny
from transformers import DynamicCache, RecurrentGemmaConfig, RecurrentGemmaForCausalLM
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRglru

from ft.generate import decoding
from ft.kernels import attention, cross_entropy, recurrent
from ft.kernels import cache as caches
from ft.text import batches

EXPECTED = json.loads((Path(golden.__file__).parent / "recurrent.json").read_text())
TOTAL = sum(golden.DOCUMENTS)
WINDOW = golden.CONFIG["attention_window_size"]


def reference(install: bool = True, attn: str = "sdpa") -> RecurrentGemmaForCausalLM:
    """The model whose numbers Google's library computed."""
    torch.set_num_threads(1)
    config = RecurrentGemmaConfig(**golden.CONFIG)
    model = RecurrentGemmaForCausalLM._from_config(config, attn_implementation=attn).eval()
    golden.fill(model)
    if install:
        recurrent.install(model)
    return model


def row(length: int = TOTAL) -> torch.Tensor:
    return torch.from_numpy(golden.ids(length))


@torch.no_grad()
def logits(model, ids: torch.Tensor, **options) -> torch.Tensor:
    return model(input_ids=ids, use_cache=False, **options).logits


def greedy(model, prompts: list[list[int]], new: int) -> list[int]:
    """The ids that follow a prompt."""
    decoder, found = decoding.Decoder(model, prompts, pad=0), []
    for _ in range(new):
        found.append(int(decoder.logits.argmax(-1)))
        decoder.step(decoder.logits.argmax(-1))
    return found


def difference(found: torch.Tensor, expected: list[list[float]]) -> np.ndarray:
    """The largest at each position."""
    return np.abs(found[0, :, golden.COLUMNS].numpy() - np.array(expected)).max(1)


def test_the_goldens_say_what_made_them():
    assert EXPECTED["environment"]["recurrentgemma"] == "1.0.1"
    assert max(golden.DOCUMENTS) > 2 * WINDOW


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_logits_equal_google_beyond_the_window(attn):
    model = reference(attn=attn)
    assert difference(logits(model, row()), EXPECTED["one_document"]).max() < 2e-5
    positions = torch.from_numpy(golden.positions(*golden.DOCUMENTS))
    packed = logits(model, row(), position_ids=positions)
    assert difference(packed, EXPECTED["packed"]).max() < 2e-5


def test_transformers_leaves_google_one_token_early_and_across_documents():
    """Why `install` exists; when this fails, transformers has mended it and so can we."""
    model = reference(install=False)
    found = difference(logits(model, row()), EXPECTED["one_document"])
    assert found[:WINDOW].max() < 2e-5
    assert found[WINDOW] > 1e-3
    positions = torch.from_numpy(golden.positions(*golden.DOCUMENTS))
    packed = difference(logits(model, row(), position_ids=positions), EXPECTED["packed"])
    assert packed[golden.DOCUMENTS[0]] > 1e-3


def test_generation_equals_google():
    ids = row(golden.PROMPT)
    assert greedy(reference(), ids.tolist(), golden.NEW) == EXPECTED["generated"]
    theirs = reference().generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=golden.NEW,
        do_sample=False,
        eos_token_id=[],
    )
    assert theirs[0, golden.PROMPT :].tolist() == EXPECTED["generated"]


@pytest.mark.parametrize("attn", ["eager", "sdpa", attention.NAME])
def test_packed_examples_have_the_loss_of_single_ones(attn):
    model = tiny.build("recurrent_gemma")
    if attn == attention.NAME:
        attention.install(model)
    else:
        model.set_attn_implementation(attn)
    cross_entropy.install(model)
    lengths = (9, 1, 20, 2, 3, 12)  # shorter and longer than the window and the convolution
    ids = torch.randint(6, 300, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    examples = [{"input_ids": e.tolist(), "labels": e.tolist()} for e in ids.split(lengths)]
    with torch.no_grad():
        alone = torch.stack([model(**batches.packed_row([e]))["loss"] for e in examples])
        packed = model(**batches.packed_row(examples))["loss"]
        padded = model(**batches.padded_batch(examples, pad=0))["loss"]
    torch.testing.assert_close(packed, alone.sum(), rtol=1e-6, atol=0)
    torch.testing.assert_close(padded, alone.sum(), rtol=1e-6, atol=0)


def test_left_padded_rows_have_the_logits_of_single_ones():
    """With positions, without them, and with the ones that transformers' `generate` makes up."""
    model = reference()
    lengths = (19, 2, 30)
    rows = [row(30)[0, :n] for n in lengths]
    ids, mask = torch.zeros(3, 30, dtype=torch.long), torch.zeros(3, 30, dtype=torch.long)
    for i, r in enumerate(rows):
        ids[i, -len(r) :], mask[i, -len(r) :] = r, 1
    ours = (mask.cumsum(-1) - 1).clamp(min=0)
    for positions in (ours, None, ours.masked_fill(mask == 0, 1)):
        batch = logits(model, ids, attention_mask=mask, position_ids=positions)
        for i, r in enumerate(rows):
            alone = logits(model, r[None])[0]
            torch.testing.assert_close(batch[i, -len(r) :], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("attn", ["eager", "sdpa", attention.NAME])
@pytest.mark.parametrize("pieces", [(30, *[1] * 10), (1,) * 40, (5, 20, 1, 14), (1, 2, 37)])
def test_a_row_in_pieces_through_the_cache_is_the_row(pieces, attn):
    model = reference(attn="eager" if attn == "eager" else "sdpa")
    expected = logits(model, row())
    if attn == attention.NAME:
        attention.install(model)
    cache, found = DynamicCache(config=model.config), []
    for piece in row().split(pieces, dim=1):
        with torch.no_grad():
            found.append(model(piece, use_cache=True, **{caches.name(): cache}).logits)
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_cache_can_be_selected():
    model = reference()
    ids = torch.cat([row(30), row(30).flip(1), row(30).roll(5, 1)])
    alone = logits(model, ids)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids[:, :25], use_cache=True, **{caches.name(): cache})
        cache.reorder_cache(torch.tensor([2, 0]))
        found = model(ids[[2, 0], 25:], use_cache=True, **{caches.name(): cache}).logits
    torch.testing.assert_close(found, alone[[2, 0], 25:], rtol=1e-5, atol=1e-5)


def test_one_batch_leaves_nothing_for_the_next():
    model = reference()
    before = logits(model, row())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    greedy(model, row(12).tolist(), 4)
    model(row(12), use_cache=True)
    assert torch.equal(logits(model, row()), before)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not any(b.rg_lru.recurrent_states for b in model.modules() if hasattr(b, "rg_lru"))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
def test_gradient_checkpointing_changes_nothing():
    found = []
    for checkpointing in (False, True):
        model = tiny.build("recurrent_gemma").train()
        cross_entropy.install(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = [2, *range(10, 40)]
        model(**batches.packed_row([{"input_ids": ids, "labels": ids}] * 2))["loss"].backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=0, atol=0, msg=name)


def test_what_is_saved_is_what_transformers_would_save(tmp_path):
    plain = tiny.build("recurrent_gemma", plain=True)
    plain.save_pretrained(tmp_path / "plain")
    model = tiny.build("recurrent_gemma")
    assert recurrent.installed(model)
    assert not recurrent.installed(plain)
    recurrent.install(model)  # once more changes nothing
    assert type(model.config) is RecurrentGemmaConfig
    model.save_pretrained(tmp_path / "ours")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "plain" / file).read_bytes()


def test_a_copy_is_mended_too():
    model = reference()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert difference(logits(other, row()), EXPECTED["one_document"]).max() < 2e-5


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
    monkeypatch.setitem(recurrent.PART, "cpu", request.param)


@pytest.mark.usefixtures("part")
def test_value_and_gradients_equal_a_loop_in_double_precision():
    check(run(recurrent.rg_lru), run(loop), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("part")
def test_gradients_equal_finite_differences():
    *given, state = inputs()
    assert torch.autograd.gradcheck(
        lambda *leaves: recurrent.rg_lru(*leaves[:4], STARTS, leaves[4]), [*given, state]
    )


def test_single_precision_accumulates_no_more_than_rounding():
    expected = [x.float() for x in run(loop)]
    decay = {"check_dtype": False, "rtol": 2e-5, "atol": 2e-6}
    check(run(recurrent.rg_lru, torch.float32), expected, **decay)


def test_bfloat16_is_computed_in_single_precision():
    """Rounded where it enters and leaves; the states between are not."""
    *given, state = inputs(torch.bfloat16)
    given[3], state = given[3].detach().float().requires_grad_(), state.detach().float()
    result, last = recurrent.rg_lru(*given, STARTS, state)
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
    whole, last = recurrent.rg_lru(*given, STARTS, state)
    for cut in (1, 4, 10):
        now, pieces = state, []
        for piece in (slice(0, cut), slice(cut, None)):
            tokens = [x[:, piece] for x in given[:3]]
            out, now = recurrent.rg_lru(*tokens, given[3], STARTS[:, piece], now)
            pieces.append(out)
        check([torch.cat(pieces, 1), now], [whole, last], rtol=1e-12, atol=1e-12)


def test_documents_do_not_see_each_other():
    given = [x.detach()[:1] for x in inputs()[:3]]
    decay = inputs()[3].detach()
    packed, _ = recurrent.rg_lru(*given, decay, STARTS[:1])
    bounds = [0, 4, 5, LENGTH]
    for begin, end in itertools.pairwise(bounds):
        first = torch.zeros(
            1, end - begin, dtype=torch.bool
        )  # without a state, it is a start anyway
        first[0, 0] = True
        alone, _ = recurrent.rg_lru(*(x[:, begin:end] for x in given), decay, first)
        assert torch.equal(packed[:, begin:end], alone)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 13])
def test_doubling_equals_step_by_step(length, reverse):
    """The way that a GPU takes; here its arithmetic alone is looked at."""
    generator = torch.Generator().manual_seed(length)
    values, gates = torch.rand(2, 2, length, 5, generator=generator, dtype=torch.float64)
    gates[:, length // 2] = 0  # a document starts
    one, other, kept = values.clone(), values.clone(), gates.clone()
    recurrent.advance(one, gates, reverse=reverse)
    recurrent.advance_by_doubling(other, gates, reverse=reverse)
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
        found.__class__ = recurrent.RgLru
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
        recurrent.rg_lru(*leaves[:4], STARTS, leaves[4])
    row = leaves[0].untyped_storage().nbytes()
    assert sum(kept.values()) < 4.5 * row  # x, two gates, states
