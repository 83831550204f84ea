"""Keys, values and states of the tokens that a model has seen: what transformers calls them, and whether they are right."""

import functools
from importlib.metadata import version
from typing import Any

from ft.errors import UserError

NEWEST = (5, 24)  # the last transformers whose caches were seen to be right
CLOSE = (
    0.05  # of logits, relative to the largest: a lost state changes them wholly, rounding does not
)


@functools.cache
def name() -> str:
    """Of the cache among a model's arguments and in its output: ``past_key_values`` before transformers 5.24."""
    from transformers.modeling_outputs import BaseModelOutputWithPast

    known = BaseModelOutputWithPast.__dataclass_fields__
    return "cache" if "cache" in known else "past_key_values"


def check(model: Any) -> None:
    """Raise ``UserError`` if an untested transformers gives other logits with a cache than without.

    It may rename or move what ``ft`` hands on or replaces, and then answers without its context.
    """
    found = version("transformers")
    if tuple(int(part) for part in found.split(".")[:2]) > NEWEST and not agrees(model):
        raise UserError(
            f"transformers {found} loses what the model has read: its logits with a cache are others "
            f"than without. `ft` was tested up to {NEWEST[0]}.{NEWEST[1]}: pip install -c constraints.txt transformers"
        )


def agrees(model: Any) -> bool:
    """Whether a text of five tokens that comes in two pieces has the logits that it has whole."""
    import torch
    from transformers import DynamicCache

    device = model.get_input_embeddings().weight.device
    ids, seen = torch.arange(5, 10, device=device)[None], DynamicCache(config=model.config)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[0, -1].float()
        for piece in ids.split((3, 2), dim=1):
            parts = model(input_ids=piece, use_cache=True, **{name(): seen}).logits[0, -1].float()
    return bool((whole - parts).abs().max() <= CLOSE * whole.abs().max())  # pyright: ignore[reportPossiblyUnbound]


def grows(seen: Any, tokens: int) -> bool:
    """Whether a ``DynamicCache`` keeps all keys and values of so many tokens, and nothing else."""
    # a DummyLayer has those of another
    kinds = ("DynamicLayer", "DynamicSlidingWindowLayer", "DummyLayer")
    return all(
        type(layer).__name__ in kinds and tokens < getattr(layer, "sliding_window", tokens + 1)
        for layer in seen.layers
    )


def join(into: Any, other: Any, width: int, first: int) -> None:
    """Put the texts of another cache behind those of one, which both ``grows``: the last ``width`` - ``first`` places of each.

    A shorter one is padded on the left.
    """
    from torch import cat
    from torch.nn.functional import pad

    for ours, theirs in zip(into.layers, other.layers, strict=True):
        if getattr(ours, "keys", None) is None:  # takes those of an earlier layer
            continue
        for name in ("keys", "values"):  # one layer at a time is there twice
            parts = [getattr(layer, name) for layer in (ours, theirs)]
            parts = [pad(x, (0, 0, width - x.shape[-2], 0))[..., first:, :] for x in parts]
            setattr(ours, name, cat(parts))
            setattr(theirs, name, None)
        if hasattr(ours, "cumulative_length"):
            ours.cumulative_length = width - first
