"""CUDA graphs of a row's forward and backward: the thousands of launches of a step become some thirty.

The head with its loss runs between the two as it is: it is few kernels, and the number of supervised
positions would make each size of rows many.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ft.errors import lack_of_memory
from ft.text.row_inputs import HEAD
from ft.train import graph_room
from ft.train.row import Row, accumulate, tensors_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

MOST = 32  # sizes; each keeps some MB for its launches, all share the memory of activations
# by which the first row's graphs may differ from the same kernels one by one: rounding in bf16 moves gradients
EXPECTED = {"hidden states": 0.1, "gradients": 0.5}  # what is broken is off by all of it


class Graphs(graph_room.RowsInRoom):
    """Runs rows, those of a size as two graphs with the head between them.

    ``body`` makes hidden states [1, T, D] of a row's inputs but ``HEAD``; ``head`` takes them as a leaf
    and all of the inputs, goes backward from the loss, and adds to tensors of its own. Gradients of
    ``parameters`` stay in the same tensors from step to step, as a graph knows them by their place;
    ``together``: they are added all at once. A row larger than all before it, rehearsed or run, runs without a
    graph, which shows what it takes and compiles what it needs; so does the first one of a size where that did not do.
    The first graphs are compared with the same row launched before, but where it draws (``drops``). Where they
    differ, or a size's capture fails twice, all rows run as without graphs.
    The largest rehearsed row that has room is captured before all others, whose graphs fit into its memory then: captured as they
    come, sizes take what those before them, cut in other pieces, leave unused.
    """

    learns = True  # whether the row at hand goes backward

    def __init__(
        self,
        body: Callable[[Mapping[str, Any]], "Tensor"],
        head: Callable[["Tensor", Mapping[str, Any]], None],
        parameters: Iterable["Parameter"],
        say: Callable[[str], None],
        *,
        together: bool = True,
        drops: bool = False,
        make: Any = graph_room.CudaGraph,
        most: int = MOST,
    ) -> None:
        self.body, self.head, self.say, self.make, self.most = body, head, say, make, most
        self.parameters = [p for p in parameters if p.requires_grad]
        self.together, self.drops = together, drops
        self.gradients: dict[Parameter, Tensor] = {}
        self.rows: dict[tuple[Any, ...], Row] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.failed: set[tuple[Any, ...]] = set()  # to be captured
        self.rehearsed: dict[str, Tensor] = {}  # of the largest row
        self.largest = self.captured = 0  # tokens of a row that ran, and of one that is a graph
        self.limit = math.inf  # tokens of rows that have no room as graphs
        self.off = self.full = self.wary = False
        self.proven: set[bool] = set()  # rows that learn, and others
        # the gradient of hidden states, once a row's loss was taken
        self.counted: Tensor | None = None

    def __call__(self, inputs: Mapping[str, Any]) -> None:
        """Forward and backward of one row.

        One that finds no room is run again with more (``RowsInRoom``), as the largest was tried before there were graphs, and
        holes between rows of many sizes.
        """
        self._place_gradients()
        given = {name: x for name, x in inputs.items() if name not in HEAD}
        self.counted, again = None, functools.partial(self._again, given, inputs)
        if graph_room.finds_room(functools.partial(self._run, given, inputs), self._lost):
            return None
        for _ in self._ways(given["input_ids"]):
            if graph_room.finds_room(again, self._lost):
                return None
        return again()

    def _run(self, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        tensors = tensors_of(given)
        key = self._key(tensors)
        if key not in self.rows:
            if not self._wanted(key, tensors["input_ids"].numel()):
                return self._eagerly(given, inputs)
            if self._unproven():
                return self._prove(key, tensors, inputs)
            if not self._capture(key, tensors):
                return self._eagerly(given, inputs)
        row = self.rows[key]
        row.take(tensors)
        row.forward.replay()
        row.slope.copy_(self._slope(row.hidden, inputs))
        return row.backward.replay()

    def rehearse(self, inputs: Mapping[str, Any]) -> None:
        """Run a row of which nothing stays but what it took and compiled: none that is as large need run so again."""
        given = {name: x for name, x in inputs.items() if name not in HEAD}
        self._eagerly(given, inputs)
        self._clear()
        self._note(tensors_of(given))

    def _note(self, tensors: "dict[str, Tensor]") -> None:
        if tensors["input_ids"].numel() > self.largest:
            self.largest = tensors["input_ids"].numel()
            self.rehearsed = tensors

    @property
    def reruns(self) -> bool:
        """Whether a row that finds no room is run again with more: not where its gradients are added one by one."""
        return self.together and not self.off

    def release(self) -> None:
        """``vacate``, and forget what rows there were."""
        self.vacate()
        self.seen.clear()
        self.rehearsed = {}
        self.largest = 0
        self.limit = math.inf

    def _slope(self, hidden: "Tensor", inputs: Mapping[str, Any]) -> "Tensor":
        """The gradient of hidden states, of the loss that the head makes of them."""
        leaf = hidden.detach().requires_grad_()
        self.head(leaf, inputs)
        assert leaf.grad is not None
        self.counted = leaf.grad
        return leaf.grad

    def _back(self, out: "Tensor", slope: "Tensor") -> None:
        if self.together:
            accumulate(out, slope, self.parameters)
        else:
            out.backward(slope)

    def _again(self, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """A row that ended in between, of which the loss may be counted already."""
        out = self.body(given)
        self._back(out, self._slope(out, inputs) if self.counted is None else self.counted)

    def _eagerly(self, given: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        out = self.body(given)
        self._back(out, self._slope(out, inputs))
        if not self.gradients:  # those that a row gives; others have none, as without graphs
            self.gradients = {p: p.grad for p in self.parameters if p.grad is not None}

    def _unproven(self) -> bool:
        return self.learns not in self.proven and not self.drops

    def _prove(self, key: tuple[Any, ...], tensors: Any, inputs: Any) -> None:
        """A row as its kernels one by one, and leave graphs alone if the first answers otherwise.

        They are given what a graph is: by the lengths of examples, attention could choose others, which in bf16 round
        otherwise.
        It runs before there are graphs, as there may be no room for both. Of all parameters' gradients, which would
        not fit three times, none are compared.
        """
        import torch

        gradients = [*self.gradients.values()] if self.together and self.learns else []
        before, out = [g.to("cpu", copy=True) for g in gradients], self.body(tensors)
        slope = self._slope(out, inputs)
        self._back(out, slope)
        out, after = out.detach(), [g.to("cpu", copy=True) for g in gradients]
        if not self._capture(key, tensors):
            return
        row = self.rows[key]
        row.forward.replay()
        off, copy_all = {}, torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]

        def compare() -> None:
            off["hidden states"] = _off([row.hidden], [out])
            if gradients:
                copy_all(gradients, before)
                row.slope.copy_(slope)
                row.backward.replay()
                off["gradients"] = _off(gradients, [a.to(out.device) for a in after])

        compared = graph_room.finds_room(compare)
        if gradients:
            copy_all(gradients, after)
        if not compared:
            return self._shrink("one was not compared with its kernels for lack of room")
        self.proven.add(self.learns)
        if wrong := [f"{n} are {x:.0%} off" for n, x in off.items() if not x <= EXPECTED[n]]:
            self.leave(f"the first one's {' and its '.join(wrong)}")

    def leave(self, why: str) -> None:
        """Run all rows that come without a graph."""
        self.off = True
        self.rows.clear()
        self.say(f"CUDA graphs: off, as {why}")

    def _place_gradients(self) -> None:
        """Begin a step, whose gradients were thrown away, with zeros in the same tensors."""
        if any(p.grad is None for p in self.gradients):
            self._clear()
            for parameter, gradient in self.gradients.items():
                parameter.grad = gradient

    def _clear(self) -> None:
        import torch

        clear: Any = torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]
        clear(list(self.gradients.values()))

    def _key(self, tensors: "Mapping[str, Tensor]") -> tuple[Any, ...]:
        """What makes rows that one graph can be of."""
        return tuple(n for x in tensors.values() for n in x.shape)

    def _first(self, key: tuple[Any, ...], tokens: int) -> bool:
        """Whether a row is to run without a graph before its size is captured."""
        known = key in self.seen or (tokens <= self.largest and not self.wary)
        self.seen.add(key)
        self.largest = max(self.largest, tokens)
        return not known or not self.gradients

    def _wanted(self, key: tuple[Any, ...], tokens: int) -> bool:
        """Whether rows of a size are to be graphs from now on, and there is room."""
        if self.off or self._first(key, tokens) or self.full or tokens >= self.limit:
            return False
        if len(self.rows) == self.most:
            self.full = True
            self.say(f"CUDA graphs: {self.most} sizes of rows have one, others run without")
            return False
        larger = tokens > self.captured or not self._kin()
        if larger and (why := self._lack(tokens)):
            self._limit(tokens, why)
            return False
        return True

    def _capture(self, key: tuple[Any, ...], tensors: Mapping[str, "Tensor"]) -> bool:
        if self.rehearsed and not self._kin():
            widest = self._with_room()
            if widest and self._key(widest) != key:
                self._record(self._key(widest), widest)
        return not self.off and self._record(key, tensors)

    def _record(self, key: tuple[Any, ...], tensors: Mapping[str, "Tensor"]) -> bool:
        first = self._kin()
        row, again = Row(tensors, self.make, first, self.learns), key in self.failed
        beside = first.forward if first else None
        try:
            row.forward.capture(lambda: self._forward(row), beside)
            if self.learns:
                row.backward.capture(lambda: self._backward(row), beside or row.forward)
        except Exception as error:  # whatever it is: the same row can run without a graph
            if lack_of_memory(error):
                self._bound(tensors["input_ids"].numel(), "there is no room to capture one")
                return False
            self.wary = True
            self.failed.add(key)
            if again:
                why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                self.leave(f"a row could not be captured ({why})")
            return False
        self.rows[key] = row
        self.captured = max(self.captured, tensors["input_ids"].numel())
        return True

    def _forward(self, row: Row) -> None:
        import torch

        row.out = self.body(row.inputs)
        out, wide = row.out.detach(), row.widest
        row.out = row.out if row.learns else None
        if wide is None or wide.hidden is None or wide.hidden.shape[1] < out.shape[1]:
            row.hidden, row.slope = out, torch.empty_like(out)
        else:  # each size would keep some MB of its own
            row.hidden, row.slope = (x[:, : out.shape[1]] for x in (wide.hidden, wide.slope))
            row.hidden.copy_(out)

    def _backward(self, row: Row) -> None:
        out, row.out = row.out, None
        self._back(out, row.slope)


def _off(found: "Sequence[Tensor]", wanted: "Sequence[Tensor]") -> float:
    """How far tensors are from others, relative to these."""
    from torch.nn.utils import get_total_norm

    away = get_total_norm([a - b for a, b in zip(found, wanted, strict=True)])
    return float(away) / max(float(get_total_norm(wanted)), 1e-30)
