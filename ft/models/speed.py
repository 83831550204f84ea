"""FLOPs of a training step, and the matrix rate that this device reaches at best."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Count = tuple[float, float]  # FLOPs per token of the trunk, FLOPs per supervised token of the head


def training_flops(model: Any) -> Count:
    """FLOPs of forward and backward: (per token, per supervised token), attention left out.

    A frozen matrix of N parameters costs 4·N a token (output and input gradient), a trained one
    6·N; the head 4·V·H a supervised token when frozen, 6·V·H when trained. Embeddings are look-ups.
    The same accounting as in Unsloth's and PaLM's (appendix B) model FLOP utilisation.
    """
    import torch

    trunk = 0.0
    seen_head = None
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    head = inner.get_output_embeddings()
    for name, module in model.named_modules():
        if module is head:
            seen_head = 6 if module.weight.requires_grad else 4
        elif isinstance(module, torch.nn.Linear) and "vision" not in name and "audio" not in name:
            trunk += (
                (6 if module.weight.requires_grad else 4) * module.in_features * module.out_features
            )
    assert seen_head is not None, "the model has no head"
    return trunk, float(seen_head * head.in_features * head.out_features)


_seen: dict[Any, float] = {}


def matrix_peak(device: "torch.device", dtype: "torch.dtype", seconds: float = 0.2) -> float:
    """FLOP/s of a large matrix product on ``device`` in ``dtype``, the best of a few tries.

    On a GPU it is measured once in a process; on a CPU at each call, and the best so far counts, as other
    programs may be using it.
    """
    import time

    import torch

    key = (str(device), dtype)
    if device.type == "cuda" and key in _seen:
        return _seen[key]
    n = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # the global one belongs to the run
    small = torch.randn(n, 64, generator=generator, device=device).to(dtype)
    a, b = small.repeat(1, n // 64), small.repeat(1, n // 64).T.contiguous()
    best, end = _seen.get(key, 0.0), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
        if time.perf_counter() >= end:
            break
    _seen[key] = best
    return best
