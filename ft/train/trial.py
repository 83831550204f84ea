"""The most that a training runs at once, run before its first step: where a GPU has no room for it, room is made."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from ft.errors import lack_of_memory
from ft.machine import free_ram, say
from ft.train import graph_room, graphed, graphs
from ft.train.offloading import SPARED, Offloading

SEGMENTS = "segments of memory that grow"
WIDTH = 4  # bytes of a number of what a layer begins with, at most


class Trial:
    """A part of trainers. A plan is right within some per cent, and what it misses need not end a run.

    Each way to make room costs more than the one before, and none changes a loss by more than rounding. Of several
    processes each takes its own where rows are graphs, which meet no others; else they would have to take one together, and take none.
    """

    model: Any
    args: Any
    accelerator: Any
    is_fsdp_enabled: bool
    graphs: "graphs.Graphs | None" = None
    offloading: Offloading | None = None
    waiting = False  # whether rows wait for one another's backward
    may_recompute = False  # nobody asked for or against it
    made_room: tuple[str, ...] = ()  # by what
    crowded = False  # a validation has no room beside graphs

    def _try(
        self, what: str, tokens: int, run: Callable[[], None], meanwhile: contextlib.ExitStack
    ) -> None:
        """``run`` over that many ``tokens``, until it finds room; the memory's error is raised where no way is left.

        What is offloaded is so as long as ``meanwhile`` lasts, and again in each epoch.
        """
        alone = self.accelerator.num_processes == 1 and not self.is_fsdp_enabled
        ways = self._ways(tokens, meanwhile) if alone or self.graphs else iter(())
        while not self._has_room(run):
            way = next(ways, None)
            if way is None:
                return run()
            self.made_room += (way,)
            say(f"{what} finds no room, and is tried again with {way}")
        able = self.graphs is not None and self.graphs.reruns  # with the graphs' memory
        if not able and self.args.device.type == "cuda" and graph_room.nearly_full():
            self._leave_fewer_holes(what)

    def _leave_fewer_holes(self, what: str) -> None:
        from ft.kernels import segments

        if segments.grow():
            self.made_room += (SEGMENTS,)
            say(f"{what} nearly fills the GPU, and others leave holes: fewer now, with {SEGMENTS}")

    def beside_graphs(self, run: Callable[[], Any]) -> Any:
        """What ``run`` answers. Where it finds no room beside the graphs of rows, they give theirs back, then and each time."""
        alone = self.accelerator.num_processes == 1  # several may wait for one another in between
        if not self.graphs or not alone:
            return run()
        if self.crowded:
            self.graphs.vacate()
        try:
            return run()
        except Exception as error:
            if not self.graphs.rows or not lack_of_memory(error):
                raise
        self.crowded = True
        self.graphs.vacate()
        say(
            "CUDA graphs: from now on their memory is given back for each validation, which lacks it"
        )
        return run()

    def _ways(self, tokens: int, meanwhile: contextlib.ExitStack) -> Iterator[str]:
        """Each is taken when it is asked for, and stays."""
        from ft.kernels import segments

        gpu = self.args.device.type == "cuda"
        if gpu and segments.grow():
            yield SEGMENTS
        if not self.may_recompute:
            return
        if not self.model.is_gradient_checkpointing:
            self._recompute()
            yield "gradient checkpointing"
        text = self.model.config.get_text_config()
        size = WIDTH * text.num_hidden_layers * text.hidden_size * tokens
        if self.offloading is None and size <= SPARED * free_ram() / self.accelerator.num_processes:
            self.offloading = Offloading(pinned=gpu, apart=self.waiting)
            meanwhile.enter_context(self.offloading.of(self.model))
            yield "the inputs of recomputed layers in the processor's memory"

    def _recompute(self) -> None:
        name = "activation_checkpointing_enable"  # transformers 5.22
        enable = getattr(self.model, name, None) or self.model.gradient_checkpointing_enable
        enable(graphed.recomputing(self.model))
        if self.graphs and graphed.drops(self.model):
            self.graphs.leave(graphed.DRAWS)

    def _has_room(self, run: Callable[[], None]) -> bool:
        if graph_room.finds_room(run):
            return True
        self.model.zero_grad()
        if self.args.device.type == "cuda":
            import torch

            torch.cuda.empty_cache()  # of the gradients too
            torch.cuda.reset_peak_memory_stats()  # by which room for graphs is judged
        return False
