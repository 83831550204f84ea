"""What PyTorch must be told where the stand-in's kernels compute nothing: no size may follow from a number."""

import torch


def install() -> None:
    """Find nothing where numbers are asked for their places, and leave cuDNN, which has no stand-in, alone."""
    torch.backends.cuda.enable_cudnn_sdp(False)
    global _registered  # as long as the process
    _registered = torch.library.Library("aten", "IMPL")
    _registered.impl("nonzero", _nowhere, "CUDA")


def _nowhere(x: torch.Tensor) -> torch.Tensor:
    return torch.empty((0, x.dim()), dtype=torch.int64, device=x.device)
