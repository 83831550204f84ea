"""The largest row that finds no room before the first step: room is made, and the same is learnt."""

import contextlib
import json
import types
from typing import Any

import pytest
import torch
from support import learner, toy

from ft.kernels import segments
from ft.machine import free_ram
from ft.rewards import drawn, learning, policy
from ft.runs import folder as run
from ft.runs import opened, record, report_facts
from ft.score import likelihood
from ft.train import graph_room, graphs, trainer, trial

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.6 GiB"
AGAIN = "gradient checkpointing"
ASIDE = "the inputs of recomputed layers in the processor's memory"


def short(monkeypatch, of: type, name: str, needs: str) -> None:
    """Let ``of.name`` lack memory until its training has made room with ``needs``."""
    plain = getattr(of, name)

    def lacking(self, *given, **more):
        if needs not in self.made_room:
            raise torch.OutOfMemoryError(FULL)
        return plain(self, *given, **more)

    monkeypatch.setattr(of, name, lacking)


def learnt(place, **options) -> bytes:
    toy.go(place, epochs=1, rows=8, **options)
    (file,) = place.glob("*model.safetensors")
    return file.read_bytes()


@pytest.fixture
def tries(monkeypatch):
    monkeypatch.setattr(trainer.Trainer, "_tries", True)


@pytest.mark.parametrize("needs", [AGAIN, ASIDE])
@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.1}, {"padded": True}, {"full": True}, {"kind": "recurrent_gemma"}],
    ids=["packed", "dropout", "padded", "full", "recurrent"],
)
def test_it_makes_room_and_learns_the_same(needs, options, tmp_path, monkeypatch, capsys, tries):
    wanted = learnt(tmp_path / "roomy", checkpointing=None, **options)
    short(monkeypatch, trainer.Trainer, "_run", needs)
    assert learnt(tmp_path / "short", checkpointing=None, **options) == wanted
    ways = [AGAIN, ASIDE][: 1 + (needs == ASIDE)]
    said = capsys.readouterr().out
    for way in ways:
        assert f"tokens, finds no room, and is tried again with {way}" in said
    made = json.loads((tmp_path / "short" / run.RECORD).read_text("utf-8"))
    assert made["made_room"] == ways
    facts = {name: note for name, _, note in report_facts.tiles(made, [], None)}
    assert ", ".join(ways) in facts["peak memory"]
    assert "made_room" not in json.loads((tmp_path / "roomy" / run.RECORD).read_text("utf-8"))


@pytest.mark.parametrize("asked", [False, True, "offload"])
def test_what_was_asked_for_is_not_changed(asked, tmp_path, monkeypatch, tries):
    short(monkeypatch, trainer.Trainer, "_run", "more than there is")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        learnt(tmp_path, checkpointing=asked)
    assert not (tmp_path / run.ADAPTER[0]).exists()


def test_it_ends_where_nothing_helps(tmp_path, monkeypatch, tries):
    short(monkeypatch, trainer.Trainer, "_run", "more than there is")
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        learnt(tmp_path, checkpointing=None)


def test_what_is_no_lack_of_memory_is_no_reason(tmp_path, monkeypatch, tries):
    def broken(*_):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(trainer.Trainer, "_run", broken)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        learnt(tmp_path, checkpointing=None)


def test_a_processor_that_is_full_takes_nothing_more(tmp_path, monkeypatch, tries):
    monkeypatch.setattr(trial, "free_ram", lambda: 1000)
    assert free_ram() > 1000
    short(monkeypatch, trainer.Trainer, "_run", ASIDE)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        learnt(tmp_path, checkpointing=None)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_rows_that_are_graphs_make_room_too(dropout, tmp_path, monkeypatch, capsys):
    """But for dropout, which a graph cannot compute again."""
    options = {"graphs": True, "dropout": dropout, "checkpointing": None}
    learnt(tmp_path / "roomy", **options)
    plain, failed = graphs.Graphs.rehearse, []

    def lacking(self, inputs):
        if not failed:
            failed.append(inputs)
            raise torch.OutOfMemoryError(FULL)
        return plain(self, inputs)

    monkeypatch.setattr(graphs.Graphs, "rehearse", lacking)
    capsys.readouterr()
    learnt(tmp_path / "short", **options)
    roomy, short = (
        [line["loss"] for line in run.read_lines(tmp_path / name / run.METRICS) if "loss" in line]
        for name in ("roomy", "short")
    )
    assert short == pytest.approx(roomy, rel=1e-6)
    said = capsys.readouterr().out
    assert f"is tried again with {AGAIN}" in said
    assert ("CUDA graphs: off" in said) == bool(dropout)


@learner.needs_trl
@pytest.mark.parametrize("needs", [AGAIN, ASIDE])
def test_learning_from_preferences_makes_room_too(needs, tmp_path, monkeypatch, capsys, fetched):
    begun = opened.finished(learner.finished(tmp_path / "start"))
    rows = [
        {"source": f"the cat {i}", "chosen": f"le chat dort {i}", "rejected": f"the {i}"}
        for i in range(4)
    ]
    found = []
    for name in ("roomy", "short"):
        base = policy.load(begun, "fp32")
        to = record.begin(run.Target(tmp_path / name), recipe=__file__, config_yaml="{}\n", seed=0)
        made = learning.dpo(
            base.model,
            base.tokenizer,
            drawn.encode_pairs(rows, begun.template, base.tokenizer),
            run=to,
            learning_rate=1e-2,
            beta=0.1,
            per_device_train_batch_size=2,
        )
        with contextlib.ExitStack() as meanwhile, monkeypatch.context() as m:
            if name == "short":
                plain = likelihood.logprobs

                def lacking(*given, made=made, plain=plain):
                    if needs not in made.made_room:
                        raise torch.OutOfMemoryError(FULL)
                    return plain(*given)

                m.setattr(likelihood, "logprobs", lacking)
            made.try_largest(meanwhile)
        fetched.clear()
        learning.learn(made, run=to, watch=lambda _: None, watch_steps=100)
        layers = base.model.config.num_hidden_layers
        assert len(fetched) == bool(made.offloading) * 2 * layers  # in both steps
        found.append([line["loss"] for line in to.metrics() if "loss" in line])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert to.record["made_room"][-1] == needs
    assert "as large as they may be, finds no room" in capsys.readouterr().out


class Card(trial.Trial):
    """A trainer on a GPU that there is none of."""

    def __init__(self, rows=None, processes: int = 1) -> None:
        self.args = types.SimpleNamespace(device=torch.device("cuda"))
        self.accelerator = types.SimpleNamespace(num_processes=processes)
        self.is_fsdp_enabled = False
        self.graphs: Any = rows


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize(
    ("rows", "able"),
    [
        (None, False),
        (types.SimpleNamespace(reruns=False), False),
        (types.SimpleNamespace(reruns=True), True),
    ],
)
def test_rows_that_cannot_run_again_leave_fewer_holes_on_a_gpu_nearly_full(
    full, rows, able, monkeypatch, capsys
):
    monkeypatch.setattr(graph_room, "nearly_full", lambda: full)
    monkeypatch.setattr(segments, "grow", lambda: True)
    made = Card(rows)
    with contextlib.ExitStack() as meanwhile:
        made._try("the largest row", 9, lambda: None, meanwhile)
    grown = full and not able
    assert made.made_room == (trial.SEGMENTS,) * grown
    assert ("nearly fills the GPU" in capsys.readouterr().out) == grown


@pytest.mark.parametrize("rows", [None, types.SimpleNamespace(reruns=True)])
def test_of_several_processes_each_makes_room_where_rows_are_graphs(rows, monkeypatch, capsys):
    """Else one would wait in its backward for another that is to begin again."""
    monkeypatch.setattr(segments, "grow", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    made, calls = Card(rows, processes=2), []
    made.model = types.SimpleNamespace(zero_grad=lambda: None)

    def run() -> None:
        calls.append(None)
        if not made.made_room:
            raise torch.OutOfMemoryError(FULL)

    with contextlib.ExitStack() as meanwhile:
        if rows is None:
            with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
                made._try("the largest row", 9, run, meanwhile)
            assert not made.made_room
        else:
            made._try("the largest row", 9, run, meanwhile)
            assert made.made_room == (trial.SEGMENTS,)
            assert len(calls) == 2


class Rows:
    """Graphs whose memory a validation may need."""

    def __init__(self) -> None:
        self.rows, self.vacated = {1: None}, 0

    def vacate(self) -> None:
        self.rows.clear()
        self.vacated += 1


def test_a_validation_without_room_beside_graphs_has_their_memory(capsys):
    made = Card(Rows())

    def validate() -> float:
        if made.graphs.rows:
            raise torch.OutOfMemoryError(FULL)
        return 1.5

    for times in (1, 2):
        made.graphs.rows[1] = None
        assert made.beside_graphs(validate) == 1.5
        assert made.graphs.vacated == times
    assert capsys.readouterr().out.count("given back for each validation") == 1


@pytest.mark.parametrize("made", [Card(None), Card(Rows(), processes=2)])
def test_a_validation_without_room_ends_the_run_where_nothing_can_be_given(made):
    def validate() -> float:
        raise torch.OutOfMemoryError(FULL)

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        made.beside_graphs(validate)
    assert not made.graphs or made.graphs.rows
