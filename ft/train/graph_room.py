"""What memory the CUDA graphs of rows take, and whether a GPU has it."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft.errors import lack_of_memory
from ft.text import row_inputs

if TYPE_CHECKING:
    from torch import Tensor

# Memory of a row's graphs over what the row takes launched, as graphs keep the holes too: by PyTorch's allocator 0.8 to
# 1.4 where the row takes over a GB
POOL = 1.4
# Of the largest row launched alone, what rows of many lengths take with the holes between them: assumed, as padded rows
# ended out of memory on 1.08 times it, by PyTorch's allocator
LAUNCHED = 1.15


def largest_share(free: int, most: int) -> float:
    """Up to which share of the largest row a row becomes a graph on a GPU of ``free`` bytes.

    All graphs lie in the same memory, beside that of rows without one, whose largest takes ``most`` bytes.
    """
    return min(1.0, (free / max(most, 1) - LAUNCHED) / POOL)


class CudaGraph:
    """A row's graph, which is captured only where there is room."""

    def __init__(self) -> None:
        from ft.kernels import cuda_graph

        self.graph = cuda_graph.CudaGraph()

    def capture(self, run: Callable[[], None], beside: "CudaGraph | None" = None) -> None:
        """Record ``run``, which is not run, in the memory of ``beside``."""
        self.graph.capture(run, beside.graph if beside else None)

    def replay(self) -> None:
        """Run what was recorded."""
        self.graph.replay()

    @staticmethod
    def lack(share: float, beside: "CudaGraph | None" = None) -> str:
        """Why graphs of this ``share`` of the largest row would not fit into the GPU's memory; nothing where they do.

        They take the memory of ``beside``, and of no other graph.
        """
        import torch

        from ft.kernels import cuda_graph

        held = torch.cuda.memory_allocated()
        most = torch.cuda.max_memory_allocated() - held  # of a row so far, or of loading if more
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - held
        free -= cuda_graph.idle(beside.graph if beside else None)
        if share <= largest_share(free, most):
            return ""
        pool = share * POOL * most / 2**30
        taken = f"the largest row takes {most / 2**30:.1f}, and these {pool:.1f} as graphs"
        return f"{free / 2**30:.1f} GiB are free, {taken}"


def nearly_full() -> bool:
    """Whether a GPU may have no room for the holes between rows of many lengths, beside what the largest took."""
    import torch

    within = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    return torch.cuda.max_memory_allocated() * LAUNCHED > within


def finds_room(run: Callable[[], None], lost: Callable[[], bool] = lambda: False) -> bool:
    """Whether ``run`` found room; where it did not, memory is given back. Raises other errors, and this one where all is ``lost``."""
    try:
        run()
    except Exception as error:
        if lost() or not lack_of_memory(error):
            raise
    else:
        return True
    give_back()  # what the error's traceback held is gone by now
    return False


def give_back() -> None:
    """Return to the GPU, or to other sizes, what PyTorch keeps of tensors that are gone."""
    import gc

    import torch

    gc.collect()
    torch.cuda.empty_cache()


class RowsInRoom:
    """A part of ``Graphs``: rows that find no room, and which of them have it as graphs.

    A row's gradients are added at its end, all at once, so that it can be run again. Those of all parameters, which
    would not fit twice, are added one by one: there a row whose backward finds no room ends the run.
    """

    rows: dict[Any, Any]
    learns: bool
    rehearsed: "dict[str, Tensor]"
    make: Any
    say: Callable[[str], None]
    together: bool
    drops: bool
    largest: int
    captured: int
    limit: float
    counted: "Tensor | None"

    def _lost(self) -> bool:
        """Whether a row that ended in between cannot be run again: its backward has begun, and part of it may stay.

        A model that drops would leave out other numbers than those that its loss was counted of.
        """
        return self.counted is not None and (self.drops or not self.together)

    def _ways(self, ids: "Tensor") -> Iterator[None]:
        """To make room, each taken when it is asked for: without the graphs, and with fewer holes."""
        from ft.kernels import segments

        if self.rows:
            self._shrink("one found no room beside the others' graphs")
            yield
        if ids.is_cuda and segments.grow():
            self.say(
                f"a row of {ids.numel():,} tokens finds no room, and is run again with segments of memory that grow"
            )
        yield

    def vacate(self) -> None:
        """Give the memory of all graphs back; rows that come again get new ones."""
        self.rows.clear()
        self.captured = 0
        give_back()

    def _shrink(self, why: str) -> None:
        """``vacate``, and make none that are half as long as the longest, or longer."""
        limit = min(self.limit, self.captured // 2)
        self.vacate()
        self._bound(limit, why)

    def _limit(self, tokens: int, why: str) -> None:
        """Make no graphs of rows that are as long as the shortest without room."""
        for shorter in row_inputs.buckets(tokens - 1):
            lack = self._lack(shorter)
            if not lack:
                break
            tokens, why = shorter, lack
        self._bound(tokens, why)

    def _lack(self, tokens: int) -> str:
        """``lack`` of rows of so many tokens."""
        kin = self._kin()
        return self.make.lack(self._share(tokens), kin.forward if kin else None)

    def _share(self, tokens: int) -> float:
        """Of what the largest row takes, what one of so many tokens does."""
        return tokens / self.largest

    def _kin(self) -> Any:
        """The first row whose memory that at hand can take: no two of them are in use at once."""
        return next((row for row in self.rows.values() if row.learns == self.learns), None)

    def _bound(self, tokens: float, why: str) -> None:
        self.limit = tokens
        self.say(f"CUDA graphs: rows of {tokens:,} tokens and more run without, as {why}")

    def _with_room(self) -> "dict[str, Tensor]":
        """The rehearsed row, or as much of it as has room as a graph; nothing where none has."""
        ids = self.rehearsed["input_ids"]
        for n in (ids.numel(), *row_inputs.buckets(ids.numel() - 1)):
            if n < self.limit and not self._lack(n):
                given = self.rehearsed.items()
                return {name: x[..., :n] if x.shape == ids.shape else x for name, x in given}
        return {}
