"""FLOPs of a training step."""

from typing import Any

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
