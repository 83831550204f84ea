"""The shapes written on public tensor functions, executed: what fits them passes, nothing else does."""

import ast
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beartype
import jaxtyping
import pytest
import torch
from support import tiny
from torch import ones

from ft.kernels import cross_entropy
from ft.runs import merge
from ft.score import logits

IDS = torch.tensor([[2, 30, 40]])
GEMMA = tiny.build("gemma")


def checked(function: Any) -> Callable[..., Any]:
    """A copy of the function whose annotations, strings in ft, are executed with each call."""
    names = {n: getattr(jaxtyping, n) for n in ("Bool", "Float", "Int")} | {"Tensor": torch.Tensor}
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = typing.get_type_hints(function, localns=names)
    return jaxtyping.jaxtyped(copy, typechecker=beartype.beartype)


HIDDEN, PLACES = ones(1, 3, GEMMA.config.hidden_size), torch.arange(3)

# What fits, and what differs from it in one place.
CALLS: dict[str, tuple[Any, list[Any], list[list[Any]]]] = {
    "cross_entropy.cross_entropy": (
        cross_entropy.cross_entropy,
        [ones(3, 4), ones(9, 4), IDS[0] % 9],
        [
            [ones(3, 4), ones(9, 5), IDS[0] % 9],
            [ones(3, 4), ones(9, 4), IDS % 9],
            [ones(3, 4), ones(9, 4), ones(3)],
            [ones(2, 4), ones(9, 4), IDS[0] % 9],
        ],
    ),
    "cross_entropy.token_losses": (
        cross_entropy.token_losses,
        [ones(3, 4), ones(9, 4), IDS[0] % 9],
        [
            [ones(3, 4), ones(9, 5), IDS[0] % 9],
            [ones(3, 4), ones(9, 4), IDS % 9],
            [ones(2, 4), ones(9, 4), IDS[0] % 9],
        ],
    ),
    "cross_entropy.supervised_loss": (
        cross_entropy.supervised_loss,
        [ones(1, 3, 4), ones(50, 4), IDS],
        [
            [ones(3, 4), ones(50, 4), IDS],
            [ones(2, 3, 4), ones(50, 4), IDS],
            [ones(1, 3, 4), ones(4, 50), IDS],
            [ones(1, 3, 4), ones(50, 4), ones(1, 3)],
        ],
    ),
    "cross_entropy.supervised_score": (
        cross_entropy.supervised_score,
        [ones(1, 3, 4), ones(50, 4), IDS],
        [[ones(3, 4), ones(50, 4), IDS], [ones(1, 3, 4), ones(50, 4), ones(1, 3)]],
    ),
    **{
        f"cross_entropy.{function.__name__}": (
            function,
            [GEMMA, HIDDEN, PLACES, IDS[0]],
            [
                [GEMMA, HIDDEN[0], PLACES, IDS[0]],
                [GEMMA, HIDDEN, PLACES[None], IDS],
                [GEMMA, HIDDEN, PLACES, IDS[0, 1:]],
                [GEMMA, HIDDEN, PLACES / 1, IDS[0]],
            ],
        )
        for function in (cross_entropy.loss_at, cross_entropy.losses_at)
    },
    "logits.last": (
        logits.last,
        [GEMMA, IDS, IDS > 0],
        [[GEMMA, IDS, IDS[:, 1:]], [GEMMA, IDS[0]], [GEMMA, IDS, ones(1, 3)]],
    ),
    "logits.score": (
        logits.score,
        [GEMMA, IDS, IDS > 0, "loss", None, IDS],
        [
            [GEMMA, IDS[0]],
            [GEMMA, ones(1, 3)],
            [GEMMA, IDS, IDS[:, 1:]],
            [GEMMA, IDS, ones(1, 3)],
            [GEMMA, IDS, None, "loss", None, IDS[:, 1:]],
        ],
    ),
    "logits.top": (
        logits.top,
        [GEMMA, IDS, IDS > 0, 4, None, IDS],
        [[GEMMA, IDS[0]], [GEMMA, IDS, IDS[:, 1:]], [GEMMA, IDS, None, 4, None, IDS[:, 1:]]],
    ),
    "logits.following": (logits.following, [GEMMA, IDS], [[GEMMA, IDS[0]], [GEMMA, ones(1, 3)]]),
    "merge.logits": (
        merge.logits,
        [GEMMA, [IDS, IDS[:, :2]]],
        [[None, [IDS[0]]], [None, [IDS.repeat(2, 1)]], [None, [ones(1, 3)]]],
    ),
    "merge.compare": (
        merge.compare,
        [[ones(3, 9)], [ones(3, 9)], 1e-6],
        [[[ones(3, 9)], [ones(3, 8)], 1e-6], [[ones(3)], [ones(3, 9)], 1e-6]],
    ),
}


def annotated() -> set[str]:
    """The public functions of ft that write shapes in their annotations."""
    found = set()
    for path in (Path(__file__).parents[1] / "ft").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                given = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
                if any("[Tensor, " in text for text in given):
                    found.add(f"{path.stem}.{node.name}")
    return found


def test_every_function_with_shapes_is_called_here() -> None:
    assert annotated() == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_shapes_hold(name: str) -> None:
    function, right, wrong = CALLS[name]
    checked(function)(*right)
    for arguments in wrong:
        with pytest.raises(jaxtyping.TypeCheckError):
            checked(function)(*arguments)
