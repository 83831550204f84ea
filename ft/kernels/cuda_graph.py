"""A CUDA graph: kernels that are launched once while it is captured, and at once whenever it is replayed."""

import weakref
from collections.abc import Callable
from typing import Any

from ft.kernels import segments

_there: "weakref.WeakSet[CudaGraph]" = weakref.WeakSet()


def idle(beside: "CudaGraph | None" = None) -> int:
    """Bytes of this process's GPU that graphs keep for their next replay, and PyTorch's allocator counts as free.

    Not what a new graph ``beside`` one can take.
    """
    import torch

    if not _there:  # to look takes milliseconds
        return 0
    here = torch.cuda.current_device()
    free = [(0, 0), *([tuple(beside.graph.pool())] if beside else [])]
    return sum(
        s["total_size"] - s["allocated_size"]
        for s in torch.cuda.memory_snapshot()
        if s["device"] == here and tuple(s["segment_pool_id"]) not in free
    )


class CudaGraph:
    """What is launched while it is captured, launched again at once by ``replay``."""

    def capture(self, run: Callable[[], None], beside: "CudaGraph | None" = None) -> None:
        """Record ``run`` without running it. Raises what the capture raises.

        It takes the memory of ``beside``, which must live as long: only one of the two runs at a time,
        and nothing that a run makes outlives it.
        """
        import torch

        self.graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        pool = beside.graph.pool() if beside else None
        _there.add(self)
        try:
            # only this thread's calls can spoil it, not one that pins memory
            options: dict[str, Any] = {"pool": pool, "capture_error_mode": "thread_local"}
            with segments.fixed(), torch.cuda.graph(self.graph, **options):
                run()
        except BaseException:  # whose generator would go on as in a capture, and refuse to draw
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise
        finally:  # torch leaves its own stream current when the end of a capture fails
            torch.cuda.set_stream(stream)

    def replay(self) -> None:
        """Run what was recorded."""
        self.graph.replay()
