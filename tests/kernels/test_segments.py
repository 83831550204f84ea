"""Segments of a GPU's memory that grow: where they may, and never while a graph is captured."""

import platform

import pytest
import torch

from ft.kernels import segments


@pytest.fixture
def chosen(monkeypatch) -> list[str]:
    """What PyTorch's allocator was told, on a machine with a GPU whose driver knows them."""
    told: list[str] = []
    name = "_accelerator_setAllocatorSettings"
    monkeypatch.setattr(torch._C, name, told.append, raising=False)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    monkeypatch.setattr(segments, "_grow", False)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "release", lambda: "6.8.0-generic")
    for variable in segments.ASKED:
        monkeypatch.delenv(variable, raising=False)
    return told


ON, OFF = "expandable_segments:True", "expandable_segments:False"


def test_they_grow_from_the_first_wish(chosen):
    assert segments.grow()
    assert not segments.grow()  # they did already
    assert chosen == [ON]


def test_a_graph_is_captured_in_others(chosen):
    with segments.fixed():
        assert chosen == []
    segments.grow()
    with segments.fixed():
        assert chosen == [ON, OFF]
    assert chosen == [ON, OFF, ON]


def test_a_capture_that_fails_leaves_them_growing(chosen):
    segments.grow()
    with pytest.raises(RuntimeError, match="captured"):
        fail_meanwhile()
    assert chosen == [ON, OFF, ON]


def fail_meanwhile() -> None:
    with segments.fixed():
        raise RuntimeError("an operation that cannot be captured")


@pytest.mark.parametrize("variable", segments.ASKED)
def test_what_the_user_set_stays(chosen, monkeypatch, variable):
    monkeypatch.setenv(variable, "max_split_size_mb:128")
    assert not segments.grow()
    assert chosen == []


@pytest.mark.parametrize(
    ("system", "release"),
    [("Windows", "11"), ("Linux", "5.15.167.4-microsoft-standard-WSL2"), ("Darwin", "24.1.0")],
)
def test_systems_whose_drivers_fail_at_them_are_left_alone(chosen, monkeypatch, system, release):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "release", lambda: release)
    assert not segments.grow()
    assert chosen == []


def test_a_driver_that_refuses_them_is_asked_once(chosen, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("CUDA driver error: operation not supported")

    monkeypatch.setattr(torch, "empty", refuse)
    assert not segments.grow()
    assert chosen == [ON, OFF]
    with segments.fixed():
        pass
    assert chosen == [ON, OFF]
