"""CUDA graphs of a row's forward and backward: the thousands of launches of a step become one."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Parameter

MOST = 32  # graphs; each keeps some MB for its launches, all share the memory of activations
USES = 2  # of a size until it has a graph: rare ones are not worth it, and the first warms up
LEAST = 64  # tokens, or supervised positions, of the smallest step between sizes


def bucket(n: int, steps: int) -> int:
    """The next size from ``n`` on, of ``steps`` to each doubling, all multiples of ``LEAST``.

    Rows are at most 1/``steps`` longer so (from 4 · ``LEAST`` on), half of that on average.
    """
    step = max(LEAST, (1 << max(n - 1, 1).bit_length() - 1) // steps)
    return -(-max(n, 1) // step) * step


def row_inputs(row: Mapping[str, "Tensor"], examples: int) -> dict[str, Any]:
    """What a model with our loss takes in place of a packed row's labels, so that it waits for no GPU.

    ``supervised_at`` [S] are places whose next token is supervised, ``targets`` [S] these tokens;
    ``example_offsets`` [``examples`` + 2, int32] the ends of what is at most ``examples`` examples, the
    last repeated, and ``example_lengths`` their lengths as numbers.
    """
    import torch

    from ft.text.tokens import IGNORE

    labels = row["labels"][0, 1:]
    at = (labels != IGNORE).nonzero().squeeze(1)
    starts = (row["position_ids"][0] == 0).nonzero().squeeze(1).tolist()
    ends = [*starts[1:], row["input_ids"].shape[1]]
    offsets = [0, *ends, *[ends[-1]] * (examples + 1 - len(ends))]
    return {
        "input_ids": row["input_ids"],
        "position_ids": row["position_ids"],
        "supervised_at": at,
        "targets": labels[at],
        "example_offsets": torch.tensor(offsets, dtype=torch.int32),
        "example_lengths": tuple(e - s for s, e in zip(starts, ends, strict=True)),
    }


def padded(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What ``row_inputs`` made, at the size of a graph.

    What is added to its tokens is one more example, of its first token alone, of which nothing is
    supervised; what is added to the supervised positions is the first one, without a target.
    """
    import torch
    from torch.nn.functional import pad as fill

    from ft.text.tokens import IGNORE

    ids, at = inputs["input_ids"], inputs["supervised_at"]
    more = bucket(ids.shape[1], 4) - ids.shape[1]
    rest = bucket(len(at), 2) - len(at)
    positions, offsets = fill(inputs["position_ids"], (0, more)), inputs["example_offsets"].clone()
    if more:
        positions[0, -more:] = torch.arange(more)
        last = len(inputs["example_lengths"])
        offsets[last + 1 :] = positions.shape[1]
    return {
        "input_ids": fill(ids, (0, more), value=int(ids[0, 0])),
        "position_ids": positions,
        "supervised_at": fill(at, (0, rest)),
        "targets": fill(inputs["targets"], (0, rest), value=IGNORE),
        "example_offsets": offsets,
        "example_lengths": (*inputs["example_lengths"], *[more] * bool(more)),
    }


def refusal(model: Any, *, packing: bool, processes: int, checkpointing: bool) -> str:
    """Why rows of this training cannot be graphs; nothing where they can, as far as can be known."""
    import torch

    from ft.kernels import attention

    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if processes > 1:
        return "several processes meet in each step"
    if not packing:
        return "its batches are not packed rows"
    if getattr(inner.config.get_text_config(), "enable_moe_block", False):
        return "which expert a token goes to depends on the data"
    if not attention.installed(inner):
        return "its attention waits for the lengths of examples"
    if attention.asked(inner) == "sdpa":
        return "sdpa takes the examples one by one"
    drops = any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    if checkpointing and drops:
        return "recomputed dropout needs the generator's state, which a graph does not show"
    return ""


def fits(free: int, most: int) -> bool:
    """Whether activations of ``most`` bytes fit twice into ``free``: a graph's beside those of rows without one."""
    return free > 2 * most


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
    def lack() -> str:
        """Why another graph would not fit into the GPU's memory; nothing where it does.

        A graph's activations lie beside those that rows without a graph leave to the allocator.
        """
        import torch

        held = torch.cuda.memory_allocated()
        most = torch.cuda.max_memory_allocated() - held  # of a row so far, or of loading if more
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - held
        if fits(free, most):
            return ""
        return f"{free / 2**30:.1f} GiB are free, and rows take {most / 2**30:.1f} with and without"


class Graphs:
    """Runs rows, those of a size that came before as a graph.

    ``run`` takes a row's inputs, adds to the gradients of ``parameters`` and to tensors of its own,
    and returns nothing. Gradients stay in the same tensors from step to step, as a graph knows them
    by their place. A capture that fails is not tried again: rows run as without graphs.
    """

    def __init__(
        self,
        run: Callable[[Mapping[str, Any]], None],
        parameters: Iterable["Parameter"],
        say: Callable[[str], None],
        *,
        make: Any = CudaGraph,
        most: int = MOST,
    ) -> None:
        self.run, self.say, self.make, self.most = run, say, make, most
        self.parameters = [p for p in parameters if p.requires_grad]
        self.gradients: dict[Parameter, Tensor] = {}
        self.uses: dict[tuple[int, ...], int] = {}
        self.graphs: dict[tuple[int, ...], tuple[dict[str, Tensor], Any]] = {}
        self.off = self.full = False

    def __call__(self, inputs: Mapping[str, Any]) -> None:
        """Forward and backward of one row."""
        self._place_gradients()
        tensors = {name: x for name, x in inputs.items() if hasattr(x, "shape")}
        key = tuple(n for x in tensors.values() for n in x.shape)
        self.uses[key] = self.uses.get(key, 0) + 1
        if key not in self.graphs and not self._capture(key, tensors):
            return self._eagerly(inputs)
        held, graph = self.graphs[key]
        for name, x in tensors.items():
            held[name].copy_(x, non_blocking=True)
        return graph.replay()

    def release(self) -> None:
        """Give back the memory of all graphs; rows that come again get new ones."""
        self.graphs.clear()
        self.uses.clear()

    def _eagerly(self, inputs: Mapping[str, Any]) -> None:
        self.run(inputs)
        if not self.gradients:  # those that a row gives; others have none, as without graphs
            self.gradients = {p: p.grad for p in self.parameters if p.grad is not None}

    def _place_gradients(self) -> None:
        """Begin a step, whose gradients were thrown away, with zeros in the same tensors."""
        import torch

        if any(p.grad is None for p in self.gradients):
            clear: Any = torch._foreach_zero_  # pyright: ignore[reportPrivateImportUsage]
            clear(list(self.gradients.values()))
            for parameter, gradient in self.gradients.items():
                parameter.grad = gradient

    def _capture(self, key: tuple[int, ...], tensors: Mapping[str, "Tensor"]) -> bool:
        if self.off or self.full or self.uses[key] < USES or not self.gradients:
            return False
        if len(self.graphs) == self.most:
            self.full = True
            self.say(f"CUDA graphs: {self.most} sizes of rows have one, others run without")
            return False
        if why := self.make.lack():
            self.full = True
            self.say(f"CUDA graphs: {len(self.graphs)} sizes have one, others run without: {why}")
            return False
        held, graph = {name: x.clone() for name, x in tensors.items()}, self.make()
        beside = next((other for _, other in self.graphs.values()), None)
        try:
            graph.capture(lambda: self.run(held), beside)
        except Exception as error:  # whatever it is: the same row can run without a graph
            self.off = True
            self.graphs.clear()
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            self.say(f"CUDA graphs: off, as a row could not be captured ({why})")
            return False
        self.graphs[key] = (held, graph)
        return True
