"""What a GPU would compute, computed by the CPU in the same memory, where ``stand_in`` is the GPU.

Tensors are PyTorch's own, on its CUDA device, from its own allocator; each operation on them runs on CPU tensors of
the same memory. While a CUDA graph is captured operations only make room for their results, and are noted; a replay
runs them anew, in the memory that they had. So a graph that reads what it does not keep, an operation on tensors of two
devices, or one that waits while a graph is captured, fails here as it does on a GPU.
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

# of these PyTorch's own runs no kernel
WITHOUT_KERNEL = {
    "empty",
    "empty_strided",
    "empty_like",
    "new_empty",
    "new_empty_strided",
    "_unsafe_view",
}
WITHOUT_KERNEL |= {
    "detach",
    "set_",
    "resize_",
    "record_stream",
    "is_pinned",
    "_pin_memory",
    "is_same_size",
}
WAITS = {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select"}
BOTH_DEVICES = {
    "copy_",
    "_to_copy",
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_foreach_copy_",
}
_noted: list[Callable[[], None]] | None = None  # of the capture under way


def install() -> None:
    """Take over what is asked of a GPU, in every thread."""
    Computed().__enter__()
    run = threading.Thread.run

    def inside(self: threading.Thread) -> None:
        with Computed():
            run(self)

    threading.Thread.run = inside
    cuda: Any = torch.backends.cuda  # kernels of attention that a CPU has not
    for name in ("flash", "mem_efficient", "cudnn"):
        getattr(cuda, f"enable_{name}_sdp")(False)
    _meet_by_gloo()
    graph: Any = torch.cuda.CUDAGraph
    begin, end = graph.capture_begin, graph.capture_end

    def capture_begin(self: Any, *args: Any, **kwargs: Any) -> None:
        global _noted
        begin(self, *args, **kwargs)
        _noted = []

    def capture_end(self: Any) -> None:
        global _noted
        self.noted, _noted = _noted, None
        end(self)

    def replay(self: Any) -> None:
        with torch.no_grad(), _disable_current_modes():
            for run in self.noted:
                run()

    graph.capture_begin, graph.capture_end, graph.replay = capture_begin, capture_end, replay


def _meet_by_gloo() -> None:
    """Let processes that would meet by NCCL do so by a library that a CPU has."""
    distributed: Any = torch.distributed
    begin, wait = distributed.init_process_group, distributed.barrier

    def init_process_group(backend: Any = None, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("device_id", None)
        begin("gloo", *args, **kwargs)

    def barrier(*args: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return wait(*args, **kwargs)

    distributed.init_process_group, distributed.barrier = init_process_group, barrier


def install_triton() -> None:
    """Let Triton's interpreter work in the GPU's memory, and be captured."""
    from triton.runtime import interpreter

    executor: Any = interpreter.GridExecutor
    call = executor.__call__

    def inside(self: Any, *args: Any, **kwargs: Any) -> None:
        given = tree_map(lambda x: of_host(x) if _on_gpu(x) else x, (args, kwargs))

        def run() -> None:
            with torch.no_grad(), _disable_current_modes():
                call(self, *given[0], **given[1])

        run() if _noted is None else _noted.append(run)

    executor.__call__ = inside


def of_host(x: torch.Tensor) -> torch.Tensor:
    """A CPU tensor in the memory of one on the GPU."""
    storage = x.untyped_storage()
    if not x.numel():
        return torch.empty_strided(x.size(), x.stride(), dtype=x.dtype)
    memory = (ctypes.c_char * storage.nbytes()).from_address(storage.data_ptr())
    whole = torch.frombuffer(memory, dtype=torch.uint8).untyped_storage()
    return torch.empty(0, dtype=x.dtype).set_(whole, x.storage_offset(), x.size(), x.stride())


class Computed(TorchDispatchMode):
    """Operations on the GPU's tensors, each run on the CPU's of the same memory."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        if any(hasattr(x, "full_tensor") for x in tensors):
            return NotImplemented  # FSDP's, which are made of others
        here = [x for x in tensors if _on_gpu(x)]
        device = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        if not here and (device is None or device.type != "cuda"):
            return function(*args, **kwargs)
        if _made_of_others(function):
            with self:
                return function.decompose(*args, **kwargs)
        view = any(r.alias_info and not r.alias_info.is_write for r in function._schema.returns)
        if view or name in WITHOUT_KERNEL:
            return function(*args, **kwargs)
        there = [x for x in tensors if x.dim() and x.device.type == "cpu"]
        if name == "copy_" and (kwargs.get("non_blocking") or args[2:] == (True,)):
            there = [x for x in there if not x.is_pinned()]  # which a GPU copies in its own time
        _check(name, here, there, device)
        return _run(function, args, kwargs, stays=device is None or device.type == "cuda")


def _check(name: str, here: list, there: list, device: torch.device | None) -> None:
    """Raise what a GPU would."""
    if here and there and name not in BOTH_DEVICES:
        sizes = [(x.device.type, tuple(x.shape)) for x in (*here[:3], *there[:3])]
        raise RuntimeError(f"{name}: tensors on two devices: {sizes}")
    to_host = device is not None and device.type == "cpu"
    if _noted is not None and (there or to_host or name in WAITS):
        raise RuntimeError(f"{name}: waits for the host, or reads it, while a graph is captured")


def _run(function: Any, args: Any, kwargs: Any, *, stays: bool) -> Any:
    """The operation's results, on the GPU where it ``stays`` there; noted where a graph is captured."""
    given: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # by the GPU's: it, and the CPU's

    def to_host(x: Any) -> Any:
        if isinstance(x, torch.Tensor) and _on_gpu(x):
            return given.setdefault(id(x), (x, of_host(x)))[1]
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return _generator(x) if isinstance(x, torch.Generator) and x.device.type == "cuda" else x

    of_the_host = {id(x) for x in tree_leaves((args, kwargs)) if not _on_gpu(x)}
    args, kwargs = tree_map(to_host, (args, kwargs))
    kwargs.pop("pin_memory", None)
    if kwargs.get("device") is not None:
        kwargs["device"] = torch.device("cpu")
    call: Any = _SPECIAL.get(function.name().partition(".")[0], function)
    if function.namespace == "_c10d_functional":
        call = functools.partial(_arrived, call)
    back = {id(host): gpu for gpu, host in given.values()}
    rooms: list[torch.Tensor] = []

    def place(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not stays or id(x) in of_the_host:
            return x
        if id(x) in back:  # written in place
            return back[id(x)]
        made = torch.empty_strided(x.size(), x.stride(), dtype=x.dtype, device="cuda")
        rooms.append(of_host(made))
        if noted is None:
            rooms[-1].copy_(x)
        return made

    noted = _noted
    if noted is None:
        return tree_map(place, call(*args, **kwargs))
    # sizes of results, of copies: a capture writes nothing
    copies = {id(host): _copy(host) for _, host in given.values()}
    back = {id(copies[id(host)]): gpu for gpu, host in given.values()}
    drawn = torch.get_rng_state()
    shapes = call(
        *tree_map(lambda x: copies.get(id(x), x), args),
        **tree_map(lambda x: copies.get(id(x), x), kwargs),
    )
    torch.set_rng_state(drawn)
    result = tree_map(place, shapes)
    own = of_the_host | {id(host) for _, host in given.values()}

    def again() -> None:
        made = (x for x in tree_leaves(call(*args, **kwargs)) if isinstance(x, torch.Tensor))
        for into, x in zip(rooms, (x for x in made if id(x) not in own), strict=True):
            into.copy_(x)

    noted.append(again)
    return result


def _arrived(call: Any, *args: Any, **kwargs: Any) -> Any:
    """What processes make together, once it is there."""
    wait: Any = torch.ops._c10d_functional.wait_tensor
    return tree_map(lambda x: wait(x) if isinstance(x, torch.Tensor) else x, call(*args, **kwargs))


def _copy(x: torch.Tensor) -> torch.Tensor:
    """Of the same strides, those of 0 too."""
    span = 1 + sum((n - 1) * step for n, step in zip(x.size(), x.stride(), strict=True))
    if not x.numel():
        return x
    whole = x.as_strided((span,), (1,), x.storage_offset()).clone()
    return whole.as_strided(x.size(), x.stride(), 0)


def _on_gpu(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.device.type == "cuda"


@functools.cache
def _made_of_others(function: Any) -> bool:
    """Whether an operation is written in others: in inference mode they come as they are."""
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return has(function.name(), "CompositeImplicitAutograd") and not has(function.name(), "CUDA")


def _generator(of_gpu: torch.Generator) -> torch.Generator:
    """The CPU's that draws once for one of the GPU's, whose numbers follow from its seed and how far it is."""
    seed, drawn = of_gpu.initial_seed(), of_gpu.get_offset()
    of_gpu.set_offset(drawn + 4)
    return torch.Generator().manual_seed((seed + drawn * 0x9E3779B97F4A7C15) % 2**63)


def _norm_backward(gradient, x, shape, rstd, weight, wanted):  # noqa: ANN001, ANN202
    """Of PyTorch's fused RMSNorm."""
    normed, scaled = x.float() * rstd, gradient.float() * (1 if weight is None else weight.float())
    d_x = rstd * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
    if weight is None:
        return d_x.to(x.dtype), None
    return d_x.to(x.dtype), (gradient.float() * normed).flatten(0, -2).sum(0).to(weight.dtype)


def _dequantized(codes, scales, size, kind, shape, dtype, out=None):  # noqa: ANN001, ANN202
    """Of bitsandbytes, which on a CPU writes into no given tensor."""
    make: Any = torch.ops.bitsandbytes.dequantize_4bit.default
    found = make(codes, scales, size, kind, shape, dtype)
    if out is None:
        return found
    out.copy_(found)


_SPECIAL = {
    "aten::_fused_rms_norm_backward": _norm_backward,
    "bitsandbytes::dequantize_4bit": _dequantized,
}
