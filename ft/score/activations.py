"""What passes from layer to layer of a language model: seen, changed and differentiated while it computes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ft.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Intercept = Callable[[Any, int], Any]  # (x [B, T, D], layer) to what goes on in its place, or None


def last(
    model: Any,
    ids: "Int[Tensor, 'b t']",
    mask: "Int[Tensor, 'b t'] | Bool[Tensor, 'b t'] | None" = None,
    intercept: Intercept | None = None,
) -> "Float[Tensor, 'b t d']":
    """What the head of a causal language model reads, in eval mode.

    ``mask`` is 0 at padding, on either side; positions count each row's own tokens. ``intercept`` is
    as in ``ft.score.logits.score``, which says what it gets and what becomes of its answer.
    """
    model, options = unwrapped(model), {}
    if mask is not None:
        mask = mask.long()
        options = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    was_training = model.training
    model.eval()
    try:
        with intercepted(model, intercept) if intercept else contextlib.nullcontext():
            return model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state
    finally:
        model.train(was_training)


@contextlib.contextmanager
def intercepted(model: Any, intercept: Intercept) -> Iterator[None]:
    """While this lasts, what ``intercept`` returns goes on from the embedding and from each block.

    Raises ``UserError``, in the model's forward, for an answer of another shape.
    """
    import torch

    active = getattr(model.config.get_text_config(), "altup_active_idx", None)  # Gemma 3n's stream

    def change(x: "Tensor", layer: int) -> "Tensor":
        new = intercept(x, layer)
        if new is None:
            return x
        if not isinstance(new, torch.Tensor) or new.shape != x.shape:
            what = list(new.shape) if isinstance(new, torch.Tensor) else type(new).__name__
            where = "the embedding (-1)" if layer < 0 else f"layer {layer}"
            raise UserError(
                f"intercept returned {what} for {where}; it must return a tensor of the shape that "
                f"it was given, {list(x.shape)}, or None"
            )
        return new.to(x.dtype)

    def embedding(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
        scale = getattr(module, "embed_scale", None)
        if scale is None:  # the model scales later, or not at all
            return change(output, -1)
        plain = torch.nn.functional.embedding(inputs[0], module.weight, module.padding_idx)
        return change(plain, -1) * scale.to(plain.dtype)

    def block(layer: int) -> Any:
        def hook(module: Any, inputs: Any, output: "Tensor") -> "Tensor":
            if active is None:
                return change(output, layer)
            streams = list(output.unbind())  # [S, B, T, D]
            streams[active] = change(streams[active], layer)
            return torch.stack(streams)

        return hook

    handles = [model.get_input_embeddings().register_forward_hook(embedding)]
    for layer, module in enumerate(model.get_decoder().layers):
        handles.append(module.register_forward_hook(block(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def unwrapped(model: Any) -> Any:
    """The causal language model itself; PEFT puts an adapter's layers into it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
