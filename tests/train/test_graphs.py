"""Rows as graphs: the numbers of plain rows, whatever their size, in whatever order, on a stand-in for a GPU."""

import contextlib
import functools
import gc
import random
import sys

import pytest
import torch
from support import tiny, toy
from support.launches import Kernels, Launches
from support.replayed import Replayed
from support.waits import Steps, Waits

from ft.errors import UserError
from ft.kernels import (
    attention,
    fused,
    fused_head,
    fused_layers,
    joined,
    lora_copies,
    lora_linear,
)
from ft.kernels import cross_entropy as loss
from ft.models import lora
from ft.runs import folder as run
from ft.text import batches, row_inputs
from ft.text.examples import lengths_of
from ft.train import graph_room, graphed, graphs, optim, trainer
from ft.train.row import accumulate


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(Replayed, "made", [])


def inputs(examples: list, filled: bool = True) -> dict:
    found = row_inputs.of(batches.packed_row(examples), 8)
    found = row_inputs.padded(found) if filled else found
    return found | {"share": torch.tensor(1 / 50)}


def replays() -> list[int]:
    """Of the forward and the backward of each size."""
    return [g.replays for g in Replayed.made]


class Side:
    """A tiny model with an adapter, its rows as graphs or plain."""

    def __init__(self, kind: str, make=None, **options) -> None:
        self.model = toy.adapted(kind)
        self.loss, self.lines = torch.zeros(()), []
        self.run = self.row
        if make:
            given = self.model.parameters(), self.lines.append
            both = graphed.halves(self.model, contextlib.nullcontext, self.back)
            self.run = graphs.Graphs(*both, *given, make=make, **options)

    def row(self, given) -> None:
        given = dict(given)
        share = given.pop("share")
        self.back(self.model(**given)["loss"] * share)

    def back(self, part) -> None:
        part.backward()
        self.loss += part.detach()

    def gradients(self) -> dict[str, torch.Tensor]:
        named = self.model.named_parameters()
        return {n: p.grad.clone() for n, p in named if p.grad is not None}


@pytest.mark.parametrize("n", [1, 63, 64, 65, 255, 256, 257, 571, 640, 641, 1025, 5000])
def test_a_size_is_the_next_of_few(n):
    size, least = row_inputs.bucket(n), row_inputs.LEAST
    assert n <= size <= max(least * -(-n // least), n * (1 + 1 / row_inputs.STEPS))
    assert size % least == 0
    assert row_inputs.bucket(size) == size


@pytest.mark.parametrize("n", [1, 64, 65, 1000, 6517, 8192])
def test_the_sizes_up_to_one_are_those_of_all_rows(n):
    assert [*row_inputs.buckets(n)] == sorted({row_inputs.bucket(m + 1) for m in range(n)})[::-1]


def test_a_data_set_has_few_sizes():
    sizes = {row_inputs.bucket(n) for n in range(200, 2049)}
    assert len(sizes) <= 24
    more = [row_inputs.bucket(n) / n for n in range(200, 2049)]
    assert sum(more) / len(more) < 1.06


def test_few_rows_of_many_lengths_run_without_a_graph():
    """300 steps of eight examples as Dolly's: of 160 tokens on average, the logarithm's deviation 0.85."""
    weight, draw, launched = torch.nn.Parameter(torch.ones(1)), random.Random(0), []

    def body(given):
        launched.append(given["input_ids"].numel())
        return weight * given["input_ids"][..., None].float()

    run = graphs.Graphs(
        body,
        lambda hidden, given: hidden.sum().backward(),
        [weight],
        launched.append,
        make=Replayed,
    )
    for _ in range(300):
        n = sum(min(1024, int(draw.lognormvariate(4.74, 0.84))) for _ in range(8))
        run({"input_ids": torch.ones(1, row_inputs.bucket(n))})
    replayed = sum(replays()[::2])
    assert replayed >= 290
    assert len(launched) - replayed <= 10  # one of them to prove the first graph
    assert len(run.rows) <= 24


def test_filling_up_adds_an_example_without_a_target():
    rows = toy.examples(3)
    plain, filled = inputs(rows, False), inputs(rows)
    n = plain["input_ids"].shape[1]
    assert filled["input_ids"].shape[1] == row_inputs.bucket(n)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(filled[name][:, :n], plain[name])
    for name in ("supervised_at", "targets"):
        assert torch.equal(filled[name], plain[name])
    assert filled["position_ids"][0, n:].tolist() == list(range(filled["input_ids"].shape[1] - n))
    assert sum(filled["example_lengths"]) == filled["input_ids"].shape[1]
    ends = torch.tensor([0, *filled["example_lengths"]]).cumsum(0)
    assert filled["example_offsets"][: len(ends)].tolist() == ends.tolist()
    assert (filled["example_offsets"][len(ends) :] == ends[-1]).all()
    assert filled["example_offsets"].shape == plain["example_offsets"].shape


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_rows_as_graphs_have_the_loss_and_gradients_of_plain_rows(kind):
    """Three steps of two rows; sizes recur, so that later rows are replayed."""
    plain, graphed = Side(kind), Side(kind, Replayed)
    for step in range(3):
        rows = [toy.examples(n, seed=10 * step + n) for n in (2, 3)]
        for side, filled in ((plain, False), (graphed, True)):
            side.loss.zero_()
            for examples in rows:
                side.run(inputs(examples, filled))
        assert torch.isclose(plain.loss, graphed.loss, rtol=1e-5)
        want, got = plain.gradients(), graphed.gradients()
        assert want.keys() == got.keys()
        for name in want:
            assert (got[name] - want[name]).norm() <= 1e-4 * want[name].norm() + 1e-7, name
        for side in (plain, graphed):
            side.model.zero_grad()
    assert sum(g.replays for g in Replayed.made) >= 3


def test_a_packed_row_waits_for_nothing():
    """Forward and backward of a graph's inputs look at no value, so that a GPU could hold them."""
    for kind in tiny.KINDS:
        if kind in ("gemma4_moe", "gemma3n"):  # experts; and a quantile that is checked on the way
            continue
        side = Side(kind)
        given = inputs(toy.examples(3))
        del given["example_lengths"]
        with Waits() as waits:
            side.run(given)
        assert waits.found == [], kind


def test_only_rows_larger_than_all_before_run_without_a_graph_first():
    side = Side("gemma", Replayed)
    short, long = toy.examples(1, seed=3), toy.examples(8, seed=4)
    for examples in (long, short, short, long, long):
        side.run(inputs(examples))
    assert replays() == [2, 2, 2, 2]  # long had been launched once, short never


def test_of_a_row_that_is_rehearsed_nothing_stays_and_none_as_large_runs_without_a_graph():
    plain, side = Side("gemma"), Side("gemma", Replayed)
    side.run.rehearse(inputs(toy.examples(8, seed=4)))
    side.loss.zero_()
    assert not any(gradient.any() for gradient in side.gradients().values())
    sizes = [toy.examples(n, seed=n) for n in (1, 8, 3)]
    for examples in sizes * 2:
        plain.run(inputs(examples, False))
        side.run(inputs(examples))
    assert sum(replays()[::2]) == 6
    assert torch.isclose(plain.loss, side.loss)
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(side.gradients()[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_training_rehearses_its_largest_row_once_and_draws_nothing_for_it(tmp_path, monkeypatch):
    seen: dict[str, list] = {"rehearse": [], "__call__": [], "state": []}

    def watched(name: str):
        plain = getattr(graphs.Graphs, name)

        def call(self, given):
            seen[name].append(given["input_ids"].numel())
            if name == "__call__":
                seen["state"].append(torch.get_rng_state())
            plain(self, given)

        monkeypatch.setattr(graphs.Graphs, name, call)

    watched("rehearse")
    watched("__call__")
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    options = {"make_graph": Replayed, "dropout": 0.1, "row_length": 512}
    toy.go(tmp_path / "run", **options)
    assert len(seen["__call__"]) == 12
    assert seen["rehearse"] == [max(seen["__call__"])]
    monkeypatch.setattr(trainer.Trainer, "_tries", False)
    toy.go(tmp_path / "without", **options)
    with_it, without = seen["state"][:12], seen["state"][12:]
    assert all(torch.equal(a, b) for a, b in zip(with_it, without, strict=True))
    assert not torch.equal(*with_it[:2])  # dropout draws in each step


def test_a_run_whose_largest_row_does_not_fit_ends_before_its_first_step(tmp_path, monkeypatch):
    class OutOfMemoryError(RuntimeError):
        pass

    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    halves = graphed.halves
    order = batches.Order(lengths_of(toy.examples(24)), seed=42)
    most = sum(order.lengths[i] for i in batches.largest(order, 4, epochs=2))

    def small(*args):
        body, head = halves(*args)

        def full(given):
            if given["input_ids"].numel() >= row_inputs.bucket(most):
                raise OutOfMemoryError("CUDA out of memory")
            return body(given)

        return full, head

    monkeypatch.setattr(graphed, "halves", small)
    with pytest.raises(OutOfMemoryError):
        toy.go(tmp_path / "run", make_graph=Replayed, row_length=512)
    assert lines(tmp_path / "run", "loss") == []


def test_the_number_of_supervised_tokens_makes_no_other_size():
    side, plain = Side("gemma", Replayed), Side("gemma")
    for kept in (3, 5, 9, 2):
        examples = toy.examples(2, seed=3)
        examples[0]["labels"] = [-100, *examples[0]["input_ids"][1:]][:kept] + [-100] * (
            len(examples[0]["input_ids"]) - kept
        )
        side.run(inputs(examples))
        plain.run(inputs(examples, False))
    assert replays() == [3, 3]
    assert torch.isclose(side.loss, plain.loss)


def test_sizes_have_a_bound():
    side = Side("gemma", Replayed, most=1)
    short, long = toy.examples(1, seed=3), toy.examples(8, seed=4)
    for examples in (long, long, short, short):
        side.run(inputs(examples))
    assert replays() == [1, 1]
    assert side.lines == ["CUDA graphs: 1 sizes of rows have one, others run without"]


class Faulty(Replayed):
    times = 99

    def capture(self, work, beside=None) -> None:
        if type(self).times > 0:
            type(self).times -= 1
            raise RuntimeError("operation not permitted when stream is capturing")
        super().capture(work, beside)


def test_rows_that_have_no_room_as_graphs_run_without_and_smaller_ones_do_not():
    class Small(Replayed):
        @staticmethod
        def lack(share: float, beside=None) -> str:
            return "" if share <= 0.5 else f"{share:.2f} of the largest"

    plain, side = Side("gemma"), Side("gemma", Small)
    side.run.rehearse(inputs(toy.examples(12, seed=4)))
    side.loss.zero_()
    sizes = [toy.examples(n, seed=n) for n in (8, 1, 12, 4)]
    for examples in sizes * 3:
        plain.run(inputs(examples, False))
        side.run(inputs(examples))
    assert torch.isclose(plain.loss, side.loss)
    assert sum(replays()[::2]) == 6  # those of 1 and of 4 examples, each time
    (line,) = side.lines
    limit = min(n for n in row_inputs.buckets(side.run.largest) if n > side.run.largest / 2)
    assert f"rows of {limit} tokens and more run without, as {limit / side.run.largest:.2f}" in line


def test_a_share_of_the_largest_row_fits_beside_it():
    beside = graph_room.LAUNCHED * 10  # of rows that are none
    assert graph_room.largest_share(free=int(beside * 100) + 500, most=1000) == pytest.approx(
        0.5 / graph_room.POOL
    )
    assert graph_room.largest_share(free=30, most=10) == 1
    assert graph_room.largest_share(free=10, most=10) < 0


@pytest.mark.parametrize("fault", ["capture", "lack"])
def test_without_a_graph_the_run_goes_on_and_says_why(fault, monkeypatch):
    class Full(Replayed):
        @staticmethod
        def lack(share: float, beside=None) -> str:
            return "0.1 GiB are free"

    monkeypatch.setattr(Faulty, "times", 99)
    plain, side = Side("gemma"), Side("gemma", {"capture": Faulty, "lack": Full}[fault])
    for seed in range(4):
        for one in (plain, side):
            one.run(inputs(toy.examples(2, seed=seed)))
    assert torch.isclose(plain.loss, side.loss)
    assert len(side.lines) == 1
    assert ("not permitted" in side.lines[0]) == (fault == "capture")
    assert Replayed.made == []


def test_a_size_that_was_captured_too_early_is_captured_once_more(monkeypatch):
    """What a size's first row would have compiled is missing: it runs, and so does the first of later sizes."""
    monkeypatch.setattr(Faulty, "times", 0)
    plain, side = Side("gemma"), Side("gemma", Faulty)
    sizes = [toy.examples(n, seed=n) for n in (8, 1, 4)]
    for at, examples in enumerate(rows for rows in sizes for _ in range(3)):
        if at == 3:
            Faulty.times, Replayed.made = 1, []
        for one in (plain, side):
            one.run(inputs(examples))
    assert torch.isclose(plain.loss, side.loss)
    assert side.lines == []
    assert replays() == [2, 2, 2, 2]


@pytest.mark.parametrize("wrong", ["hidden states", "gradients"])
def test_graphs_that_answer_otherwise_are_left_and_nothing_of_theirs_stays(wrong):
    class Wrong(Replayed):
        def replay(self) -> None:
            super().replay()
            if len(Replayed.made) > 1 and self is Replayed.made[wrong == "gradients"]:
                row = next(iter(side.run.rows.values()))
                gradients = list(side.run.gradients.values())
                torch._foreach_mul_(gradients if wrong == "gradients" else [row.hidden], 1.9)

    plain, side = Side("gemma"), Side("gemma", Wrong)
    for seed in range(4):
        for one in (plain, side):
            one.run(inputs(toy.examples(2, seed=seed)))
    assert torch.isclose(plain.loss, side.loss)
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(side.gradients()[name], gradient, rtol=1e-4, atol=1e-7)
    assert len(side.lines) == 1
    assert f"{wrong} are" in side.lines[0]


def test_the_row_that_graphs_are_compared_with_runs_before_they_take_memory():
    """A GPU may have no room for both."""
    side, beside = Side("gemma", Replayed), []
    body = side.run.body
    side.run.body = lambda given: beside.append(len(Replayed.made)) or body(given)
    for seed in range(4):
        side.run(inputs(toy.examples(2, seed=seed)))
    assert beside == [0, 0] + [2] * 3  # the first row, the one that is compared, and replays


def test_the_row_that_graphs_are_compared_with_goes_through_their_kernels():
    """By the lengths of examples attention may choose others, whose rounding alone is too much for some models."""
    side, given = Side("gemma4_text", Replayed), []
    body = side.run.body
    side.run.body = lambda row: given.append("example_lengths" in row) or body(row)
    for seed in range(3):
        side.run(inputs(toy.examples(2, seed=seed)))
    # the first row, the one that is compared, and replays
    assert given == [True, False] + [False] * 2


def test_gradients_of_all_parameters_are_added_one_by_one():
    """They would not fit a second time."""
    plain, side = Side("gemma"), Side("gemma", Replayed, together=False)
    for seed in range(4):
        for one in (plain, side):
            one.run(inputs(toy.examples(2, seed=1 + seed % 2)))
    assert replays()
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(side.gradients()[name], gradient, rtol=1e-4, atol=1e-7)


def test_a_row_is_run_again_where_its_gradients_are_added_at_once_and_others_are_graphs():
    given = Side("gemma").model.parameters(), lambda _: None
    for together in (True, False):
        run = graphs.Graphs(None, None, *given, make=Replayed, together=together)
        assert run.reruns == together
        run.leave("they answer otherwise")
        assert not run.reruns


def test_graphs_share_memory_with_those_that_live():
    """With the first of their own object, and with none of another that may have died."""
    sizes = [toy.examples(8, seed=4), toy.examples(1, seed=3)]
    for _ in range(2):
        side = Side("gemma", Replayed)
        for examples in sizes * 2:
            side.run(inputs(examples))
    for first, *others in (Replayed.made[:4], Replayed.made[4:]):
        assert first.beside is None
        assert [other.beside for other in others] == [first] * 3


@pytest.mark.parametrize("room", [1.0, 0.5, 0.0])
def test_the_largest_row_with_room_is_captured_first_and_lends_its_memory(room):
    """However rows come: a larger one would not fit into what smaller ones left unused."""

    class Small(Replayed):
        @staticmethod
        def lack(share: float, beside=None) -> str:
            return "" if share <= room else "too little"

    side, plain = Side("gemma", Small), Side("gemma")
    side.run.rehearse(inputs(toy.examples(12, seed=4)))
    side.loss.zero_()
    for n in (1, 4, 12, 1, 4):
        side.run(inputs(toy.examples(n, seed=4)))
        plain.run(inputs(toy.examples(n, seed=4), False))
    assert torch.isclose(plain.loss, side.loss)
    sizes = [row.inputs["input_ids"].numel() for row in side.run.rows.values()]
    if not room:
        assert sizes == []
        return
    largest = side.run.largest
    assert sizes[0] == next(n for n in row_inputs.buckets(largest) if n <= room * largest)
    first, *others = side.run.rows.values()
    assert others
    if room == 1:  # it ran, so that its memory is there
        places = {row.hidden.data_ptr() for row in others}
        assert places == {first.hidden.data_ptr()}
        assert {row.slope.data_ptr() for row in others} == {first.slope.data_ptr()}


def test_a_size_that_has_no_room_to_be_captured_runs_without_a_graph_and_smaller_ones_do_not():
    class Full(Replayed):
        def capture(self, work, beside=None) -> None:
            if any(row.inputs["input_ids"].numel() > 200 for row in held(work)):
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            super().capture(work, beside)

    def held(work):
        return [
            cell.cell_contents for cell in work.__closure__ if hasattr(cell.cell_contents, "inputs")
        ]

    plain, side = Side("gemma"), Side("gemma", Full)
    side.run.rehearse(inputs(toy.examples(12, seed=4)))
    side.loss.zero_()
    for n in (1, 12, 1, 12, 1):
        plain.run(inputs(toy.examples(n, seed=4), False))
        side.run(inputs(toy.examples(n, seed=4)))
    assert torch.isclose(plain.loss, side.loss)
    (line,) = side.lines
    assert "no room to capture one" in line
    assert side.run.rows
    assert not side.run.off


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("where", ["body", "head", "back", "compared"])
def test_a_row_that_finds_no_room_beside_graphs_takes_their_place_and_counts_once(
    where, together, monkeypatch
):
    class Small(Replayed):
        @staticmethod
        def lack(share: float, beside=None) -> str:
            return "" if share < 0.8 else "too little"

    plain, side = Side("gemma"), Side("gemma", Small, together=together)
    side.run.rehearse(inputs(toy.examples(12, seed=4)))
    side.loss.zero_()
    failed = []

    def fails(run, when):
        def instead(*args):
            if when(*args) and not failed:
                failed.append(where)
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return run(*args)

        return instead

    beside = lambda *_: bool(side.run.rows)  # noqa: E731
    launched = lambda given, *_: beside() and given["input_ids"].numel() == side.run.largest  # noqa: E731
    if where == "body":
        side.run.body = fails(side.run.body, launched)
    elif where == "head":
        side.run.head = fails(side.run.head, beside)
    elif where == "back":
        side.run._back = fails(side.run._back, lambda out, _: beside() and out.shape[1] > 128)
    else:
        monkeypatch.setattr(graphs, "_off", fails(graphs._off, beside))

    def run(one, filled) -> None:
        for n in (1, 12, 1, 1, 12, 1):
            one.run(inputs(toy.examples(n, seed=4), filled))

    if where == "back" and not together:  # some gradients may have been added
        with pytest.raises(RuntimeError, match="out of memory"):
            run(side, True)
        return
    run(plain, False)
    run(side, True)
    assert failed == [where]
    assert torch.isclose(plain.loss, side.loss)
    for name, gradient in plain.gradients().items():
        torch.testing.assert_close(side.gradients()[name], gradient, rtol=1e-4, atol=1e-7)
    why = "for lack of room" if where == "compared" else "found no room beside"
    assert [why in line for line in side.lines].count(True) == 1
    assert not side.run.off
    assert 0 < side.run.limit < side.run.largest


def test_what_finds_no_room_without_graphs_ends_the_run():
    side = Side("gemma", Replayed)

    def full(given):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    side.run.body = full
    with pytest.raises(RuntimeError, match="out of memory"):
        side.run(inputs(toy.examples(2, seed=1)))
    assert side.lines == []


def test_after_a_training_its_graphs_are_gone(tmp_path, monkeypatch):
    import weakref

    class Watched(Replayed):
        def capture(self, work, beside=None) -> None:
            self.work, self.replays = work, 0
            alive.append(weakref.ref(self))

    alive: list[weakref.ref] = []
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    toy.go(tmp_path / "run", make_graph=Watched)
    assert alive
    assert not any(graph() for graph in alive)


def test_answers_between_steps_move_no_weight_that_graphs_read(tmp_path, monkeypatch):
    """In 16 bits, of a model without an adapter whose frozen layers would be laid together at its first answer."""
    build, moved = tiny.build, []

    def partly(kind: str):
        model = build(kind).bfloat16()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("down_proj" in name)
        return model

    class Answers(toy.TrainerCallback):
        def on_step_end(self, *_, model, **__) -> None:
            before = [p.data_ptr() for p in model.parameters()]
            with joined.fast(model):
                moved.append(before != [p.data_ptr() for p in model.parameters()])

    monkeypatch.setattr(tiny, "build", partly)
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    options = {"full": True, "epochs": 1, "rows": 8, "callbacks": [Answers()]}
    toy.go(tmp_path / "run", make_graph=Replayed, accept_loss=True, **options)
    assert moved == [False] * 2


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("kind", ["gemma2", "gemma3n", "gemma4_text"])
def test_nothing_stays_of_a_row_that_was_computed_again(kind):
    """Layers that share keys and values would hold on to one layer's activations of every row."""
    model = lora.attach(tiny.build(kind), r=4, alpha=8).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    body, ids = model.get_base_model().model, torch.arange(5, 25)[None]

    def learn() -> list[torch.Tensor]:
        out = body(input_ids=ids, use_cache=False).last_hidden_state
        accumulate(out, torch.ones_like(out), trained)
        found = [p.grad for p in trained if p.grad is not None]
        model.zero_grad()
        return found

    def there() -> int:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
        return sum(each.grad_fn is not None for each in tensors)

    plain, before = learn(), there()
    model.gradient_checkpointing_enable(graphed.recomputing(model))
    graphed.leave_nothing_shared(model)
    graphed.leave_nothing_shared(model)
    again = learn()
    assert there() == before
    torch.testing.assert_close(again, plain)


def lines(folder, key) -> list[float]:
    return [line[key] for line in run.read_lines(folder / run.METRICS) if key in line]


def test_a_run_with_graphs_learns_what_one_without_does(tmp_path, monkeypatch):
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    toy.go(tmp_path / "plain", accumulate=2)
    toy.go(tmp_path / "graphs", accumulate=2, make_graph=Replayed)
    assert sum(g.replays for g in Replayed.made) > 8
    same = ("step", "learning_rate", "epoch", "tokens")
    for key in ("loss", "grad_norm", "eval_loss", *same):
        found = [lines(tmp_path / name, key) for name in ("plain", "graphs")]
        assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_a_step_is_read_while_a_gpu_computes_the_next(tmp_path, monkeypatch):
    """All of a step is launched before the one before it is waited for, but where something needs its numbers."""
    from ft.train import journal, reading

    seen: list[str] = []

    class Launched(Replayed):
        def replay(self) -> None:
            super().replay()
            if seen[-1:] != ["launched"]:
                seen.append("launched")

    class Step(journal.TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            seen.append("begin")

        def on_optimizer_step(self, *_, **__) -> None:
            seen.append("changed")

        def on_log(self, args, state, control, logs=None, **_) -> None:
            seen.append(f"log {state.global_step}" if "loss" in logs else "")

    plain = reading.Reading._read
    read = lambda self: (seen.append(f"read {self.unread.step}"), plain(self))[1]  # noqa: E731
    monkeypatch.setattr(reading.Reading, "_read", read)
    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")
    toy.go(tmp_path / "run", make_graph=Launched, callbacks=[Step()])
    steps = [part.split() for part in " ".join(seen).split("begin")[1:]]
    wanted = "launched {0} changed read {1} log {1}"  # before the checkpoint of each second step
    for number, step in enumerate(steps[3:], 4):  # from the first that is replayed on
        before = f"read {number - 1} log {number - 1}"
        expected = wanted.format(before, number) if number % 2 == 0 else "launched changed"
        assert step == expected.split(), number


def test_the_first_step_reads_copies_of_the_adapter_as_all_do(tmp_path, monkeypatch):
    """Its rows can be captured already, and what a graph holds once it does in each step."""
    from ft.train import journal

    seen: list[str] = []

    class Step(journal.TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            seen.append("begin")

    plain = lora_copies.refresh
    refresh = lambda *given: (seen.append("copies"), plain(*given))[1]  # noqa: E731
    monkeypatch.setattr(lora_copies, "refresh", refresh)
    toy.go(tmp_path / "run", epochs=1, accumulate=2, callbacks=[Step()])
    assert seen[:3] == ["copies", "begin", "copies"]


def test_a_step_waits_for_a_gpu_once(tmp_path, monkeypatch):
    """Loss and norm are read together, before the weights change; nothing else in a step looks at values."""
    steps, build = Steps(), tiny.build

    def installed(kind):
        model = build(kind)
        attention.install(model)
        return model

    monkeypatch.setattr(tiny, "build", installed)
    with steps.counted():
        toy.go(tmp_path / "run", epochs=1, callbacks=[steps])
    assert steps.of_each() == [["read"]] * 6


def launches(layers: int, monkeypatch) -> int:
    """Of a step of Gemma 2 with as many layers in bf16 and an adapter, as on a GPU."""
    found, kernels = Launches(), Kernels()
    monkeypatch.setattr(fused, "usable", lambda *_: True)
    monkeypatch.setattr(fused, "_kernels", lambda: kernels)
    monkeypatch.setattr(fused_head, "_kernels", lambda: kernels)
    monkeypatch.setitem(sys.modules, "ft.kernels.triton_attention", kernels)
    monkeypatch.setattr(attention, "flash_works", lambda *_: True)
    monkeypatch.setattr(joined, "DEVICES", ("cpu",))
    # one kernel where a GPU's products may widen
    widened = lambda x, y, dtype: torch.zeros(x.shape[0], y.shape[1], dtype=dtype)  # noqa: E731
    monkeypatch.setattr(lora_linear, "_product", widened)
    base = tiny.build("gemma2", num_hidden_layers=layers, layer_types=["full_attention"] * layers)
    base = base.bfloat16()
    attention.install(base)
    loss.install(base)
    assert fused_layers.install(base)["norms"] == 4 * layers + 1
    model = lora.attach(base, r=16, alpha=32)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = optim.create(model, "adamw", learning_rate=0.1, joint=True)
    given = inputs(toy.examples(8))
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    run = graphs.Graphs(*graphed.halves(model, autocast, torch.Tensor.backward), trained, print)
    lora_copies.refresh(model)
    with found:
        run(given)  # the first of its size, which is launched
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        lora_copies.refresh(model)
        optimizer.zero_grad(set_to_none=False)
    return found.count + kernels.count


def test_a_step_of_gemma_2_2b_starts_few_operations(monkeypatch):
    """Of 26 layers, which start as many each: 1,657.

    They were 7,044 when each was PyTorch's, casts among them, 2,663 (an H100 counted 2,647 in a graph) when
    layers that read the same input, and the gradients of the adapter's matrices, came one by one, and 1,992
    when only the products with A were one.
    """
    two, three = (launches(n, monkeypatch) for n in (2, 3))
    assert two + 24 * (three - two) <= 1657


def test_refusals_name_what_is_in_the_way():
    model = tiny.build("gemma3_text")
    options = {"packing": True, "processes": 1, "checkpointing": False}
    assert "lengths" in graphed.refusal(model, **options)
    attention.install(model)
    assert graphed.refusal(model, **options) == ""
    assert graphed.refusal(model, **{**options, "processes": 2}) == ""
    assert "processes" in graphed.refusal(model, **{**options, "processes": 2, "joint": False})
    assert "packed" in graphed.refusal(model, **{**options, "packing": False})
    moe = tiny.build("gemma4_moe")
    attention.install(moe)
    assert "expert" in graphed.refusal(moe, **options)
    dropped = lora.attach(model, r=2, alpha=4, dropout=0.1)
    assert graphed.refusal(dropped, **options) == ""
    assert "dropout" in graphed.refusal(dropped, **{**options, "checkpointing": True})


@pytest.mark.parametrize("make", [None, Replayed], ids=["at once", "with the next step"])
def test_a_loss_that_is_not_finite_changes_no_weight(make, tmp_path, monkeypatch):
    from ft.train import trainer

    monkeypatch.setattr(graphed, "refusal", lambda *_, **__: "")

    seen = {}
    plain = trainer.Trainer._get_grad_norm

    def spoiled(self, model, grad_norm=None):
        if self.state.global_step == 2:
            seen["before"] = {n: p.detach().clone() for n, p in model.named_parameters()}
            seen["model"] = model
            self._tr_loss.fill_(float("nan"))
        return plain(self, model, grad_norm)

    monkeypatch.setattr(trainer.Trainer, "_get_grad_norm", spoiled)
    with pytest.raises(UserError, match="loss became nan at step 3"):
        toy.go(tmp_path / "run", make_graph=make)
    assert lines(tmp_path / "run", "step")[-2:] == [1, 2]
    assert all(torch.equal(p, seen["before"][n]) for n, p in seen["model"].named_parameters())
    assert not (tmp_path / "run" / "checkpoint-4").exists()
