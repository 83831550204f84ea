"""Hidden states as graphs: the gradients of plain rows, whatever loss is taken of them and in whatever order."""

import contextlib

import pytest
import torch
from support import toy
from support.replayed import Replayed

from ft.kernels import cross_entropy as loss
from ft.text import batches, row_inputs
from ft.train import graph_room, optim
from ft.train.hidden_states import HiddenStates

FULL = "CUDA out of memory. Tried to allocate 1.00 GiB"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Replayed, "made", [])


def row(n: int, start: int = 0) -> dict:
    return row_inputs.padded(row_inputs.of(batches.packed_row(toy.examples(start + n)[start:]), 8))


class Side:
    """A tiny model with an adapter whose gradients keep their places, its hidden states from graphs or not."""

    def __init__(self, make=None, **options) -> None:
        self.model = toy.adapted("gemma3_text")
        self.optimizer = optim.create(self.model, "sgd", learning_rate=0.1, joint=True)
        self.lines, self.launched, self.states = [], [], self.body
        self.head = lambda: None
        if make:
            given = self.body, self.model.parameters(), self.lines.append
            self.states = HiddenStates(*given, make=make, **options)
            self.states.begin()

    def body(self, inputs, weights="") -> torch.Tensor:
        self.launched.append(weights)
        given = {name: x for name, x in inputs.items() if name not in row_inputs.HEAD}
        scale = 2.0 if weights == "twice" else 1.0
        return scale * self.model(**given, hidden_only=True).hidden

    def loss(self, inputs, weights="") -> torch.Tensor:
        inner, at = self.model.get_base_model(), inputs["supervised_at"]

        def run() -> torch.Tensor:
            hidden = self.states(inputs, weights)
            self.head()
            return loss.losses_at(inner, hidden, at, inputs["targets"]).sigmoid().mean()

        return run() if self.states == self.body else self.states.in_room(run, inputs["input_ids"])

    def gradients(self) -> list[torch.Tensor]:
        return [p.grad.clone() for p in self.model.parameters() if p.requires_grad]

    def back(self, loss: torch.Tensor) -> None:
        """The end of a micro-batch."""
        loss.backward()
        if self.states != self.body:
            self.states.begin()

    def step(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)
        if self.states != self.body:
            self.states.begin()


def same(found: Side, wanted: Side) -> None:
    for a, b in zip(found.gradients(), wanted.gradients(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def both(work, make=Replayed, **options) -> Side:
    sides = Side(), Side(make, **options)
    for side in sides:
        work(side)
    same(*sides)
    return sides[1]


def test_a_loss_of_several_rows_and_weights_has_the_gradients_of_plain_rows():
    """Of two rows that go back together one waits in its graph; rows without gradients leave it alone."""

    def work(side: Side) -> None:
        for n in (8, 3, 8, 5, 3):
            side.losses = [side.loss(row(n)), side.loss(row(4, start=n))]
            with torch.no_grad():
                start = side.loss(row(n), "twice").clone(), side.loss(row(2)).clone()
            (sum(side.losses) * start[0] - side.losses[0] * start[1]).backward()
            kept = side.gradients()
            side.step()
        for p, g in zip((p for p in side.model.parameters() if p.requires_grad), kept, strict=True):
            p.grad.copy_(g)

    made = both(work)
    assert {key[:2] for key in made.states.rows} == {(True, ""), (False, "twice"), (False, "")}
    for row_ in made.states.rows.values():
        assert row_.forward.replays > 0


def test_rows_with_and_without_gradients_have_memory_of_their_own():
    made = Side(Replayed)
    for n in (8, 8, 3, 3):
        made.back(made.loss(row(n)))
        with torch.no_grad():
            made.loss(row(n), "twice")
            made.loss(row(n))
    by_kind = {
        learns: [r for r in made.states.rows.values() if r.learns == learns]
        for learns in (True, False)
    }
    for rows in by_kind.values():
        first, *rest = rows
        assert first.forward.beside is None
        assert {r.forward.beside for r in rest} == {first.forward}


def test_what_never_went_back_is_forgotten_in_the_next_step():
    made = Side(Replayed)
    for _ in range(2):
        made.back(made.loss(row(4)))
    count = len(made.launched)
    made.loss(row(4))
    assert made.states.waits
    made.loss(row(4))
    assert len(made.launched) == count + 2  # a replay of the first, and the second by itself
    made.step()
    assert not made.states.waits
    both(lambda side: side.back(side.loss(row(4))))


def test_nothing_is_captured_while_a_row_without_a_graph_is_to_go_back():
    """Autograd's nodes of the same parameters know its stream: a capture would have to wait for that, which none may."""

    def work(side: Side) -> None:
        if side.states != side.body:
            side.states.limit = row(8)["input_ids"].numel()
            side.states.largest = side.states.limit
            side.states.gradients = {p: p.grad for p in side.states.parameters}
        long, short = side.loss(row(8)), side.loss(row(3))
        assert side.states == side.body or not Replayed.made
        side.back(long + short)
        side.back(side.loss(row(3)))

    assert both(work).states.rows


def test_the_comparison_of_the_first_graphs_leaves_no_gradient():
    def work(side: Side) -> None:
        for _ in range(2):  # captured with the second, beside the gradients of the first
            side.back(side.loss(row(4)))

    made = both(work)
    assert made.states.proven == {True}


class Wrong(Replayed):
    """Of other numbers than its kernels."""

    def replay(self) -> None:
        super().replay()
        for cell in self.work.__closure__:
            found = getattr(cell.cell_contents, "hidden", None)
            if found is not None:
                found.mul_(3)


@pytest.mark.parametrize("learns", [True, False])
def test_graphs_that_answer_otherwise_are_left(learns):
    def work(side: Side) -> None:
        for _ in range(3):
            with contextlib.nullcontext() if learns else torch.no_grad():
                part = side.loss(row(4))
            side.back(part if learns else side.loss(row(3)))

    made = both(work, Wrong)
    assert made.states.off
    assert not made.states.rows
    assert "hidden states are 200% off" in made.lines[-1]


def test_rows_without_gradients_take_no_memory_that_is_not_there():
    class Full(Replayed):
        @staticmethod
        def lack(share: float, beside=None) -> str:
            return "" if share == 1 else "0.1 GiB are free"

    made = Side(Full)
    for _ in range(3):
        made.back(made.loss(row(4)))
        with torch.no_grad():
            made.loss(row(4))
    assert {key[0] for key in made.states.rows} == {True}
    assert made.lines == ["CUDA graphs: rows without gradients run without, as 0.1 GiB are free"]


@pytest.mark.parametrize("where", ["body", "head"])
def test_a_row_that_finds_no_room_beside_graphs_takes_their_place(where, monkeypatch):
    monkeypatch.setattr(graph_room, "give_back", lambda: None)

    def work(side: Side) -> None:
        for _ in range(2):
            side.back(side.loss(row(4)))
        if side.states != side.body:
            side.states.limit = 1  # of rows that are graphs from now on
            of = side.states if where == "body" else side
            plain = getattr(of, where)

            def lacking(*given):
                if side.states.rows:
                    raise torch.OutOfMemoryError(FULL)
                return plain(*given)

            setattr(of, where, lacking)
        side.back(side.loss(row(8 if where == "body" else 4)))

    made = both(work)
    assert not made.states.rows
    assert "found no room beside the others' graphs" in made.lines[-1]


def test_what_finds_no_room_at_all_ends_the_run():
    made = Side(Replayed)

    def lacking(given):
        raise torch.OutOfMemoryError(FULL)

    made.states.body = lacking
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        made.loss(row(4))
