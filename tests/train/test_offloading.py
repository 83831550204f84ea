"""Inputs of recomputed layers that wait elsewhere: the same numbers, in memory that the next row uses again."""

import contextlib

import pytest
import torch
from support import tiny, toy
from support.replayed import Replayed

from ft.models import lora
from ft.runs import folder as run
from ft.train import graphed, offloading

WAYS = (True, "offload")


@pytest.mark.parametrize(
    "kind", ["gemma", "gemma2", "gemma3_text", "gemma4_text", "recurrent_gemma"]
)
def test_every_generation_learns_the_same_byte_for_byte(kind, tmp_path, fetched):
    learnt = []
    for aside in (False, True):
        place = tmp_path / str(aside)
        toy.go(place, kind, epochs=1, rows=8, checkpointing=WAYS[aside])
        learnt.append((place / run.ADAPTER[0]).read_bytes())
        assert bool(fetched) == aside
    assert learnt[0] == learnt[1]


@pytest.mark.parametrize(
    "options",
    [{"dropout": 0.1}, {"full": True}, {"padded": True}],
    ids=["dropout", "full", "padded"],
)
def test_so_do_trainings_of_every_kind(options, tmp_path, fetched):
    learnt = []
    for aside in (False, True):
        place = tmp_path / str(aside)
        toy.go(place, epochs=1, rows=8, checkpointing=WAYS[aside], **options)
        (file,) = place.glob("*model.safetensors")
        learnt.append(file.read_bytes())
    assert fetched
    assert learnt[0] == learnt[1]


def test_rows_that_are_graphs_learn_the_same(tmp_path, monkeypatch, fetched):
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    found = []
    for aside in (False, True):
        Replayed.made = []
        options = {"checkpointing": WAYS[aside]}
        toy.go(tmp_path / str(aside), graphs=True, rows=12, **options)
        lines = run.read_lines(tmp_path / str(aside) / run.METRICS)
        found.append([line["loss"] for line in lines if "loss" in line])
        assert Replayed.made
    assert fetched
    assert found[0] == found[1]


def rows(model, aside: offloading.Offloading, lengths: list[int]) -> list[int]:
    """Bytes that are taken after the forward and backward of each row."""
    taken = []
    with aside.of(model):
        for length in lengths:
            ids = torch.arange(length)[None] % tiny.VOCABULARY
            model(input_ids=ids).logits.sum().backward()
            taken.append(aside.taken)
    return taken


@pytest.fixture
def model():
    model = lora.attach(tiny.build("gemma3_text"), r=4, alpha=8)
    model.enable_input_require_grads()
    inner = model.get_base_model()
    with contextlib.suppress(FutureWarning):
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


pytestmark = pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")


def test_rows_use_the_same_memory_in_turn(model, monkeypatch):
    layers, width = tiny.build("gemma3_text").config.num_hidden_layers, 4
    hidden = model.config.hidden_size
    monkeypatch.setattr(offloading, "PIECE", 10 * hidden * width)  # ten tokens'
    aside = offloading.Offloading(pinned=False)
    taken = rows(model, aside, [25, 25, 4, 30])
    assert taken == [3 * layers * offloading.PIECE] * 4  # a third is not full
    assert len(aside.free) * offloading.PIECE == aside.taken
    assert rows(model, aside, [31]) == [4 * layers * offloading.PIECE]


def test_what_no_backward_asks_for_is_free_again(model):
    aside = offloading.Offloading(pinned=False)
    with aside.of(model):
        out = model(input_ids=torch.arange(9)[None])
        assert aside.free == []
        del out
    assert len(aside.free) * offloading.PIECE == aside.taken > 0


def test_a_layers_input_is_nowhere_else(model):
    """The hooks live until the backward: they hold no tensor of the model's."""
    import gc
    import weakref

    aside, inputs = offloading.Offloading(pinned=False), []
    layer = model.get_base_model().model.layers[1]
    layer.register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0])))
    with aside.of(model):
        out = model(input_ids=torch.arange(9)[None])
        gc.collect()
        assert [found() for found in inputs] == [None]
        out.logits.sum().backward()


def test_outside_of_it_the_model_is_as_it_was(model):
    name = "_gradient_checkpointing_func"
    before = [vars(m).get(name) for m in model.modules()]
    with offloading.Offloading(pinned=False).of(model):
        assert [vars(m).get(name) for m in model.modules()] != before
    assert [vars(m).get(name) for m in model.modules()] == before


def test_what_graphs_keep_is_overwritten_by_no_row_between_their_forward_and_backward(
    model, monkeypatch
):
    """Of rows that one loss is taken of one waits in its graph, whose pieces Python believes to be free."""
    aside, captured = offloading.Offloading(pinned=False, apart=True), [False]
    monkeypatch.setattr(offloading, "_is_captured", lambda x: captured[-1])

    def there() -> set[int]:
        return {piece.data_ptr() for piece in aside.of_graphs}

    with aside.of(model):
        rows_ = [9, 9, 9, 5, 5]
        for length, captured[-1] in zip(rows_, (False, True, False, False, True), strict=True):
            out, before = model(input_ids=torch.arange(length)[None]), there()
            out.logits.sum().backward()
            if not captured[-1]:  # as the last of several
                assert there() == before
    assert len(before) < len(there())  # graphs are replayed in turn
    assert aside.taken == 2 * len(there()) * offloading.PIECE
