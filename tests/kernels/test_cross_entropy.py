"""The loss against PyTorch's on full logits, in value and gradient, for every Gemma generation."""

import weakref

import pytest
import torch
from support import tiny
from torch.utils._python_dispatch import TorchDispatchMode

from ft.kernels import cross_entropy, recurrent
from ft.text import batches, tokens


def reference(hidden, weight, targets, softcap):
    logits = hidden @ weight.T
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.nn.functional.cross_entropy(logits, targets, reduction="sum")


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("tile", "piece"), [(2**25, 4096), (100, 25), (200, 7), (1, 1)])
def test_value_and_gradients_equal_full_logits(softcap, tile, piece, monkeypatch):
    monkeypatch.setattr(batches, "TILE", tile)
    monkeypatch.setattr(cross_entropy, "PIECE", piece)
    torch.manual_seed(0)
    hidden = torch.randn(17, 8, dtype=torch.float64)
    weight = torch.randn(50, 8, dtype=torch.float64) * 3
    targets = torch.randint(50, (17,))
    found = []
    for function in (cross_entropy.cross_entropy, reference):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        value = function(h, w, targets, softcap)
        (value / 3).backward()
        found.append((value.double(), h.grad, w.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=2e-6)


def test_a_frozen_head_gets_no_gradient_and_no_work():
    hidden = torch.randn(3, 4, requires_grad=True)
    weight = torch.randn(9, 4)
    cross_entropy.cross_entropy(hidden, weight, torch.tensor([1, 2, 3])).backward()
    assert hidden.grad is not None
    assert weight.grad is None


class Products(TorchDispatchMode):
    """Counts products, and the most numbers of their results that lived at once."""

    def __init__(self):
        super().__init__()
        self.made, self.most = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.mm.default:
            self.made.append(weakref.ref(out))
            alive = [x() for x in self.made]
            self.most = max(self.most, sum(x.numel() for x in alive if x is not None))
        return out


@pytest.mark.parametrize(
    ("trained", "products", "most"), [(True, 8, 2 * 50), (False, 2 * 2, 2 * 4 * 25)]
)
def test_no_more_logits_than_a_tile_or_two_pieces_live_at_once(
    trained, products, most, monkeypatch
):
    """Of a head that trains a tile, whose logits are gone when the next are made; of a frozen one pieces."""
    monkeypatch.setattr(batches, "TILE", 100)
    monkeypatch.setattr(batches, "ROWS", 3)
    monkeypatch.setattr(cross_entropy, "PIECE", 25)
    hidden = torch.randn(7, 4, requires_grad=True)
    weight = torch.randn(50, 4, requires_grad=trained)
    with Products() as seen:
        cross_entropy.cross_entropy(hidden, weight, torch.arange(7)).backward()
    assert len(seen.made) == products
    assert seen.most <= most


def test_without_gradients_the_value_is_the_same():
    hidden, weight, targets = torch.randn(5, 4), torch.randn(9, 4), torch.tensor([1, 2, 3, 4, 0])
    with torch.no_grad():
        alone = cross_entropy.cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(
        alone, cross_entropy.cross_entropy(hidden.requires_grad_(), weight, targets)
    )


def test_a_target_that_is_all_but_impossible_has_a_finite_loss():
    hidden, weight = torch.tensor([[1000.0]]), torch.tensor([[1.0], [-1.0]])
    value = cross_entropy.cross_entropy(hidden.requires_grad_(), weight, torch.tensor([1]))
    torch.testing.assert_close(value, torch.tensor(2000.0))


def test_a_large_vocabulary_costs_no_precision():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator) for n in (4, 262_144))
    targets = torch.tensor([1, 2, 3, 4])
    exact = reference(hidden.double(), weight.double(), targets, None)
    ours = cross_entropy.cross_entropy(hidden, weight, targets).double()
    theirs = reference(hidden, weight, targets, None).double()
    assert abs(ours - exact) / exact < 1e-6
    assert abs(ours - exact) <= abs(theirs - exact)


def test_nothing_supervised_is_a_zero_that_can_be_differentiated():
    hidden = torch.randn(1, 4, 3, requires_grad=True)
    value = cross_entropy.supervised_loss(hidden, torch.randn(5, 3), torch.full((1, 4), -100))
    value.backward()
    assert value == 0
    assert hidden.grad.abs().sum() == 0


def example(length, seed):
    generator = torch.Generator().manual_seed(seed)
    ids = [2, *torch.randint(6, 380, (length - 1,), generator=generator).tolist()]
    return {"input_ids": ids, "labels": [-100] * (length // 2) + ids[length // 2 :]}


EXAMPLES = [example(n, n) for n in (5, 23, 12, 9)]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_generation_answers_with_the_loss_of_its_own_logits(kind):
    model = tiny.build(kind)
    batch = batches.padded_batch([EXAMPLES[1]], 0)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"]).logits[0, :-1].float()
        labels = batch["labels"][0, 1:]
        expected = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        cross_entropy.install(model)
        torch.testing.assert_close(model(**batch)["loss"], expected, rtol=1e-6, atol=1e-5)


def summed(model, rows):
    return sum(model(**batch)["loss"] for batch in rows)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_packed_and_padded_equal_one_by_one(kind):
    """In value (1e-6) and in the gradient of a weight of the first layer."""
    model = tiny.build(kind)
    cross_entropy.install(model)
    weight = next(
        p
        for name, p in model.named_parameters()
        if ".layers.0." in name and p.dim() == 2 and "tower" not in name
    )
    layouts = {
        "alone": [batches.packed_row([e]) for e in EXAMPLES],
        "padded": batches.layout(EXAMPLES, packing=False, capacity=64, pad=0),
        "packed": batches.layout(EXAMPLES, packing=True, capacity=64, pad=0),
    }
    found = {}
    for name, rows in layouts.items():
        model.zero_grad()
        value = summed(model, rows)
        value.backward()
        found[name] = (value.detach(), weight.grad.clone())
    for name in layouts:
        torch.testing.assert_close(found[name][0], found["alone"][0], rtol=1e-6, atol=0, msg=name)
        difference = (found[name][1] - found["alone"][1]).norm() / found["alone"][1].norm()
        assert difference < 1e-4, name  # a leak makes it 0.1


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_equals_one_by_one_with_each_attention(attention):
    model = tiny.build("gemma3_text")
    model.set_attn_implementation(attention)
    cross_entropy.install(model)
    with torch.no_grad():
        alone = summed(model, [batches.packed_row([e]) for e in EXAMPLES])
        torch.testing.assert_close(
            summed(model, [batches.packed_row(EXAMPLES)]), alone, rtol=1e-6, atol=0
        )


def test_a_two_dimensional_mask_would_let_examples_see_each_other():
    """Why rows carry none: this is the fault that ``packed_row`` avoids."""
    model = tiny.build("gemma3_text")
    cross_entropy.install(model)
    row = batches.packed_row(EXAMPLES)
    assert "attention_mask" not in row
    with torch.no_grad():
        right = summed(model, [row])
        wrong = model(**row, attention_mask=torch.ones_like(row["input_ids"]))["loss"]
    assert abs(wrong - right) > 1e-3 * right


def test_transformers_recurrent_gemma_would_leak():
    model = tiny.build("recurrent_gemma", plain=True)
    assert not recurrent.packs_exactly(model)
    assert recurrent.packs_exactly(tiny.build("recurrent_gemma"))
    cross_entropy.install(model)
    with torch.no_grad():
        alone = summed(model, [batches.packed_row([e]) for e in EXAMPLES])
        packed = summed(model, [batches.packed_row(EXAMPLES)])
        assert abs(packed - alone) > 1e-5 * alone


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_without_gradients_it_also_counts_the_most_likely_tokens(softcap, monkeypatch):
    monkeypatch.setattr(batches, "TILE", 2 * 50)  # two rows a tile
    monkeypatch.setattr(cross_entropy, "PIECE", 20)
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 4), torch.randn(50, 4)
    labels = torch.randint(0, 50, (2, 9))
    labels[:, ::3] = -100
    best = (hidden[:, :-1] @ weight.T).argmax(-1)
    labels[:, 1:][:, ::4] = best[:, ::4]
    wanted = ((labels[:, 1:] == best) & (labels[:, 1:] != -100)).sum()
    total, correct = cross_entropy.supervised_score(hidden, weight, labels, softcap)
    assert correct == wanted > 0
    torch.testing.assert_close(
        total, cross_entropy.supervised_loss(hidden, weight, labels, softcap)
    )


def test_of_n_tokens_that_are_the_most_likely_each_counts_as_a_nth():
    hidden, weight = torch.ones(1, 3, 2), torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    _, correct = cross_entropy.supervised_score(hidden, weight, torch.tensor([[0, 1, 2]]))
    assert correct == 0.5


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_rows_that_are_not_supervised_add_nothing_so_that_rows_can_be_padded(softcap):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 4), torch.randn(50, 4)
    targets = torch.randint(50, (7,))
    targets[[0, 3]] = tokens.IGNORE
    kept = targets != tokens.IGNORE
    found = []
    for h, t in ((hidden, targets), (hidden[kept], targets[kept])):
        h, w = h.clone().requires_grad_(), weight.clone().requires_grad_()
        value = cross_entropy.cross_entropy(h, w, t, softcap)
        value.backward()
        found.append((value.detach(), h.grad, w.grad))
    assert not found[0][1][~kept].any()
    torch.testing.assert_close((found[0][0], found[0][1][kept], found[0][2]), found[1])
    assert not cross_entropy.token_losses(hidden, weight, targets, softcap)[~kept].any()


def test_hidden_states_stay_in_the_models_dtype_where_accelerate_mixes_precisions():
    """It makes float32 of a forward's outputs, of twice the bytes between a row's graphs."""
    from accelerate.utils import convert_outputs_to_fp32

    model = tiny.build("gemma").bfloat16()
    cross_entropy.install(model)
    ids = torch.arange(6)[None]
    forward = convert_outputs_to_fp32(model.forward)
    assert forward(input_ids=ids).logits.dtype == torch.float32
    assert forward(input_ids=ids, hidden_only=True).hidden.dtype == torch.bfloat16
