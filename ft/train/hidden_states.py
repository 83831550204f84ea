"""Hidden states of rows as CUDA graphs, of which a loss that somebody else takes goes back.

Preference and reward losses need log-probabilities of whole batches, by several sets of weights, before there is anything
to go back from: no head can run between the two graphs of a row as ``Graphs`` has it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ft.text.row_inputs import HEAD
from ft.train import graph_room
from ft.train.graphs import MOST, Graphs
from ft.train.row import Row, tensors_of

# Of what a row takes that goes back, one without gradients takes 0.3 where layers are recomputed, and under 0.1 where they are
# not, by PyTorch's allocator
STILL = 0.4

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter


class HiddenStates(Graphs):
    """Makes the hidden states [1, T, D] of rows, by two graphs each: one for them, one for the way back.

    ``body`` makes them of a row's inputs but ``HEAD``, by weights that go by a name. Gradients of ``parameters`` must
    be there, and stay in the same tensors. The activations of one row at a time wait in its graph; others that
    are to go back run without one. Rows without gradients are one graph each, in memory of their own; what
    they answer is overwritten by the next. The first graphs are compared as ``Graphs`` has it, by a loss of their own.
    """

    def __init__(
        self,
        body: Callable[[Mapping[str, Any], str], "Tensor"],
        parameters: "Iterable[Parameter]",
        say: Callable[[str], None],
        *,
        drops: bool = False,
        make: Any = graph_room.CudaGraph,
        most: int = 2 * MOST,
    ) -> None:
        import torch

        super().__init__(
            lambda given: body(given, self.weights),
            _no_loss,
            parameters,
            say,
            drops=drops,
            make=make,
            most=most,
        )
        self.weights = ""  # the name of those of the row at hand
        self.waits = self.rehearsing = False
        self.pending = False  # whether rows that are to go back ran without a graph
        self.refused = False  # of rows without gradients, for lack of room
        self.anchor = torch.zeros((), requires_grad=True)  # by which autograd comes here

    @property
    def reruns(self) -> bool:
        return False

    def begin(self) -> None:
        """Begin a step: what waited for a backward that never came is forgotten."""
        self.waits = self.pending = False
        if not self.gradients:
            self.gradients = {p: p.grad for p in self.parameters if p.grad is not None}
        self._place_gradients()

    @contextlib.contextmanager
    def rehearsal(self) -> Iterator[None]:
        """While this lasts no row is a graph; the largest becomes one before all others."""
        self.rehearsing = True
        try:
            yield
        finally:
            self.rehearsing = False

    def __call__(self, inputs: Mapping[str, Any], weights: str = "") -> "Tensor":
        """The hidden states of a row, by the weights of that name."""
        import torch

        given = {name: x for name, x in inputs.items() if name not in HEAD}
        self.learns, self.weights = torch.is_grad_enabled(), weights
        if self.rehearsing:
            self._note(tensors_of(given))
            return self.body(given)
        row = self._row(tensors_of(given))
        if row is None:
            self.pending |= self.learns
            return self.body(given)
        row.forward.replay()
        if not self.learns:
            return row.hidden
        self.waits = True
        return _function().apply(self.anchor, self, row)

    def _row(self, tensors: "Mapping[str, Tensor]") -> Row | None:
        """The graphs of a row, with its inputs; none where it is to run without."""
        key = self._key(tensors)
        if self.learns and self.waits:
            return None
        # autograd holds on to the stream of what is to go back, and a capture may not wait for another
        able = not (self.learns and self.pending)
        if key not in self.rows and able and self._wanted(key, tensors["input_ids"].numel()):
            if self._unproven():
                self._try_out(key, tensors)
            else:
                self._capture(key, tensors)
        row = self.rows.get(key)
        if row:
            row.take(tensors)
        return row

    def _try_out(self, key: tuple[Any, ...], tensors: "Mapping[str, Tensor]") -> None:
        """Compare the first graphs with their kernels; the gradients stay as they are."""
        gradients = [*self.gradients.values()] if self.learns else []
        before = [g.to("cpu", copy=True) for g in gradients]
        try:
            graph_room.finds_room(functools.partial(self._prove, key, tensors, tensors))
        finally:
            for gradient, kept in zip(gradients, before, strict=True):
                gradient.copy_(kept)

    def in_room(self, run: Callable[[], "Tensor"], ids: "Tensor") -> "Tensor":
        """What ``run`` makes of a row of these ``ids`` and its hidden states. Where it finds no room it is run again with more.

        Its backward cannot be: it needs what the trial of the largest did.
        """
        if self.rehearsing:
            return run()
        found, waits = [], self.waits

        def again() -> None:
            self.waits = waits
            found.append(run())

        if graph_room.finds_room(again):
            return found[0]
        for _ in self._ways(ids):
            if graph_room.finds_room(again):
                return found[0]
        again()
        return found[0]

    def _wanted(self, key: tuple[Any, ...], tokens: int) -> bool:
        """As ``Graphs`` has it; rows without gradients come last, as they take memory beside that of the others."""
        if self.learns or self._kin():
            return super()._wanted(key, tokens)
        if self.refused or not any(row.learns for row in self.rows.values()):
            return False
        self.largest = max(self.largest, tokens)
        if why := self._lack(tokens):
            self.refused = True
            self.say(f"CUDA graphs: rows without gradients run without, as {why}")
            return False
        return super()._wanted(key, tokens)

    def _share(self, tokens: int) -> float:
        return super()._share(tokens) * (1.0 if self.learns else STILL)

    def _key(self, tensors: "Mapping[str, Tensor]") -> tuple[Any, ...]:
        return (self.learns, self.weights, *super()._key(tensors))

    def _slope(self, hidden: "Tensor", inputs: Mapping[str, Any]) -> "Tensor":
        """Any gradient that is not along the states: norms before them would leave nothing of that."""
        return hidden.detach().roll(1, -1) / hidden.shape[1]

    def _back(self, out: "Tensor", slope: "Tensor") -> None:
        if out.requires_grad:
            super()._back(out, slope)


def _no_loss(hidden: "Tensor", inputs: Mapping[str, Any]) -> None:
    raise AssertionError("the loss is taken elsewhere")


@functools.cache
def _function() -> Any:
    import torch

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, anchor, states, row):  # noqa: ANN001, ANN205
            ctx.states, ctx.row = states, row
            return row.hidden.detach()

        @staticmethod
        def backward(ctx, *slopes):  # noqa: ANN001, ANN205
            (slope,) = slopes
            ctx.row.slope.copy_(slope)
            ctx.row.backward.replay()
            ctx.states.waits = False
            return None, None, None

    return Replay
