"""Inputs of recomputed layers, which wait in the processor's memory until the backward pass needs them.

So does Unsloth by default, and TRL with ``activation_offloading`` for all that a forward keeps. Here a copy is part of
the stream of kernels, so that none comes too late, and of a row's CUDA graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SPARED = 0.7  # of the processor's free memory may be pinned
CHECKPOINT = "_gradient_checkpointing_func"  # transformers gives it to all modules that have layers, or are one
PIECE = 1 << 22  # bytes; PyTorch rounds pinned memory up to a power of two


class Offloading:
    """Pinned memory that the rows of a training use one after the other.

    A piece is free again after its layer's backward. The largest row is to come first: a CUDA graph cannot
    pin memory. ``apart``: pieces of graphs are no other row's, as one may come between a graph's forward and its backward.
    """

    def __init__(self, *, pinned: bool, apart: bool = False) -> None:
        self.pinned, self.apart = pinned, apart
        self.free: list[Tensor] = []  # pieces
        self.of_graphs: list[Tensor] = []  # those of them that graphs have for themselves
        self.taken = 0  # bytes

    @contextlib.contextmanager
    def of(self, model: Any) -> Iterator[None]:
        """Recomputed layers of ``model`` keep their input here meanwhile, also when it is chosen anew that they are."""
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        choose = inner._set_gradient_checkpointing

        def again(*given: Any, **options: Any) -> None:  # TRL does so in each step
            choose(*given, **options)
            self._surround(model)

        self._surround(model)
        inner._set_gradient_checkpointing = again
        try:
            yield
        finally:
            vars(inner).pop("_set_gradient_checkpointing")
            for module in model.modules():
                if isinstance(found := vars(module).get(CHECKPOINT), _Around):
                    setattr(module, CHECKPOINT, found.checkpoint)

    def _surround(self, model: Any) -> None:
        for module in model.modules():
            found = vars(module).get(CHECKPOINT)
            if found and not isinstance(found, _Around):
                setattr(module, CHECKPOINT, _Around(self, found))

    def shelf(self, x: "Tensor") -> "list[Tensor]":
        """Where pieces that x may lie in come from, and go back to."""
        return self.of_graphs if self.apart and _is_captured(x) else self.free

    def take(self, shelf: "list[Tensor]") -> "Tensor":
        """A free piece, or a new one."""
        import torch

        if found := shelf or self.free:
            return found.pop()
        self.taken += PIECE
        return torch.empty(PIECE, dtype=torch.uint8, device="cpu", pin_memory=self.pinned)


class _Around:
    """What computes a layer again, with its input kept by an ``Offloading``."""

    def __init__(self, owner: Offloading, checkpoint: Callable[..., Any]) -> None:
        self.owner, self.checkpoint = owner, checkpoint

    def __call__(
        self, layer: Callable[..., Any], hidden: "Tensor", *rest: Any, **options: Any
    ) -> Any:
        from torch.autograd.graph import saved_tensors_hooks

        # not hidden itself: the hooks live as long as what they keep
        given = hidden.data_ptr(), hidden.shape

        def put(x: "Tensor") -> Any:
            return _Kept(self.owner, x) if (x.data_ptr(), x.shape) == given else x

        # what is saved within the layer is the checkpoint's, whose hooks are the inner ones
        with saved_tensors_hooks(put, _fetch):
            return self.checkpoint(layer, hidden, *rest, **options)


class _Kept:
    """A layer's input, in pieces that are free again when autograd lets go of it."""

    def __init__(self, owner: Offloading, x: "Tensor") -> None:
        import torch

        self.shelf, self.like = owner.shelf(x), (x.shape, x.dtype, x.device)
        parts = x.detach().reshape(-1).view(torch.uint8).split(PIECE)
        self.pieces: list[Tensor] = []
        for part in parts:
            self.pieces.append(piece := owner.take(self.shelf))
            piece[: len(part)].copy_(part, non_blocking=True)

    def fetch(self) -> "Tensor":
        """The same numbers, in new memory of the same device."""
        import torch

        shape, dtype, device = self.like
        found = torch.empty(shape, dtype=dtype, device=device)
        parts = found.view(-1).view(torch.uint8).split(PIECE)
        for piece, part in zip(self.pieces, parts, strict=True):
            part.copy_(piece[: len(part)], non_blocking=True)
        return found

    def __del__(self) -> None:
        self.shelf += self.pieces


def _is_captured(x: "Tensor") -> bool:
    """Whether what is done with x becomes part of a CUDA graph."""
    import torch

    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _fetch(kept: Any) -> "Tensor":
    return kept.fetch() if isinstance(kept, _Kept) else kept
