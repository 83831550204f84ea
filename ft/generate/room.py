"""How many texts may be answered together: what their keys and values may take, and batches that keep to it."""

from collections.abc import Sequence
from typing import Any

CACHE_BYTES = {"cpu": 2**29, "cuda": 2**31}  # of keys and values that one batch may hold


def cache_bytes(model: Any) -> int:
    """Bytes of keys and values that a token leaves in all layers (at most: some layers share them)."""
    widths = [
        module.out_features
        for name, module in model.named_modules()
        if name.endswith((".k_proj", ".v_proj")) and hasattr(module, "out_features")
    ]
    config = model.config.get_text_config()
    total = sum(widths) or 2 * config.num_hidden_layers * config.hidden_size
    return total * model.get_input_embeddings().weight.element_size()


def room_for(model: Any) -> int:
    """Tokens that the caches of one batch may hold: of a GPU's memory a third of what is free at most.

    Those of the batch before may be there still (``static.kept``). What CUDA graphs keep is not free.
    """
    import torch

    from ft.kernels import cuda_graph

    device = model.get_input_embeddings().weight.device
    most = CACHE_BYTES.get(device.type, CACHE_BYTES["cpu"])
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        unused -= cuda_graph.idle()
        most = min(most, (torch.cuda.mem_get_info(device)[0] + unused) // 3)
    return most // cache_bytes(model)


def batches(sizes: Sequence[int], room: int) -> list[list[int]]:
    """Indices of ``sizes`` in batches, largest first: none times its largest size is over ``room``."""
    found: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        if found and (len(found[-1]) + 1) * sizes[found[-1][0]] <= room:
            found[-1].append(i)
        else:
            found.append([i])
    return found
