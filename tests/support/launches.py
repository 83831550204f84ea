"""What a GPU would be asked to run, counted on a CPU."""

from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode


class Launches(TorchDispatchMode):
    """Counts what a GPU would run: operations that are neither views nor room for a result."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        views = [r.alias_info and not r.alias_info.is_write for r in function._schema.returns]
        name = function.overloadpacket.__name__
        without = "empty" in name or name == "set_" or name.startswith("lift")
        self.count += not any(views) and not without
        return function(*args, **(kwargs or {}))


class Kernels:
    """A module of Triton's kernels that are counted and not run."""

    count = 0

    def __getattr__(self, name: str) -> "Kernels":
        return self

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *_, **__) -> None:
        self.count += 1
