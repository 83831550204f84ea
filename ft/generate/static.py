"""Decoding with keys and values at fixed places, so that a step of one token can be a CUDA graph."""

import contextlib
import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import Tensor

STATEFUL = (
    "recurrent_gemma",
    "minigpt",
)  # models that keep more, or other things, than keys and values
EXPECTED = 5e-2  # of logits, relative to the largest, by which a graph may differ from the kernels it holds
FEW = 16  # rows: a step of fewer takes as long
EVEN = 256  # places of all texts together that they are filled up to a multiple of
_said: set[str] = set()
_kept: "WeakKeyDictionary[Any, list[Steps]]" = WeakKeyDictionary()  # those that ended, by model


class Steps:
    """The steps of one token after a prefill: ``step`` answers as the model with its growing cache does.

    Keys and values of all layers have ``length`` places, one a token from the left, padding included; a
    layer with a window has a mask that says so in place of a shorter cache. Nothing depends on values, so the
    second step is captured by ``make`` (``CudaGraph``), and compared with what the same kernels
    give one by one: where the two differ, or the capture fails, the steps go on without, and a line says why.
    Where fewer texts are left than there are rows, the rows behind them are computed for nothing.
    """

    def __init__(self, model: Any, cache: Any, seen: "Tensor", length: int, make: Any) -> None:
        """``cache`` is the ``DynamicCache`` of a prefill, which is emptied; ``seen`` [B, T] is 0 at padding."""
        import torch

        self.model: Any = model
        self.steps = 0
        self.make: Any = make
        self.config = model.config.get_text_config()
        self.state = _state(model)
        rows, self.length = len(seen), length
        self.seen = torch.ones(rows, length, dtype=torch.bool, device=seen.device)
        self.at = torch.zeros(1, dtype=torch.long, device=seen.device)  # the next token's place
        self.cache: Any = None
        self.ids = seen.new_zeros(rows, 1)
        self.positions = seen.new_zeros(rows, 1)
        self.graph: Any = None
        self.logits: Any = None
        self.begin(cache, seen)

    def fits(self, model: Any, rows: int, length: int, make: Any) -> bool:
        """Whether these can be the steps of other texts, whose places are not many fewer, by their ``model``."""
        wide = rows <= len(self.seen) <= max(FEW, 2 * rows)
        long = length <= self.length <= max(EVEN, 4 * length)
        return wide and long and self.make in (None, make) and self.state == _state(model)

    def begin(self, cache: Any, seen: "Tensor") -> None:
        """Go on from a prefill, which is emptied."""
        from transformers.cache_utils import Cache

        self.texts, width = seen.shape
        self.seen.fill_(True)
        self.seen[: self.texts, :width] = seen.bool()
        self.at.fill_(width)
        first = self.cache is None
        if first:  # a layer that takes keys and values of an earlier one stays as it is
            self.cache = Cache(layers=[*cache.layers])
        capped = bool(getattr(self.config, "attn_logit_softcapping", None))
        sizes = self.at, len(self.seen), self.length, capped
        for i, grown in enumerate(cache.layers):
            if getattr(grown, "keys", None) is None:
                continue
            ours = _places()(grown, *sizes) if first else self.cache.layers[i]
            self.cache.layers[i] = ours
            for name in ("keys", "values"):
                new, places = getattr(grown, name), getattr(ours, name)
                places[: self.texts, :, width - new.shape[2] : width] = new
                setattr(grown, name, None)  # one layer at a time is there twice

    def step(self, ids: "Tensor", positions: "Tensor") -> "Tensor":
        """Logits [B, V] after ``ids`` [B, 1] at ``positions`` [B, 1]; they last until the next step."""
        import torch

        self.ids[: self.texts].copy_(ids)
        self.positions[: self.texts].copy_(positions)
        with torch.inference_mode():
            if self.graph is not None:
                self.graph.replay()
                found = self.logits
            else:
                found = self._forward()
                if self.make is not None and self.steps == 1:
                    found = self._capture(found)
            self.at += 1
        self.steps += 1
        return found[: self.texts]

    def select(self, rows: "Tensor") -> None:
        """Go on with these texts [N], in the same places; many fewer, or more, get others, and another graph."""
        import torch

        layers = [layer for layer in self.cache.layers if layer.keys is not None]
        have, self.texts = len(self.seen), len(rows)
        if self.texts <= have <= max(FEW, 2 * self.texts):
            kept = [self.seen, *(x for layer in layers for x in (layer.keys, layer.values))]
            with torch.inference_mode():
                for x in kept:
                    x[: self.texts] = x[rows]
            return
        self.graph, self.steps = None, 0
        for layer in layers:
            layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self.seen, self.ids, self.positions = (
            x[rows] for x in (self.seen, self.ids, self.positions)
        )

    def _forward(self) -> "Tensor":
        from ft.kernels import attention, cache

        output = self.model(
            input_ids=self.ids,
            attention_mask=self._masks(),
            position_ids=self.positions,
            use_cache=True,
            logits_to_keep=1,
            **{cache.name(): self.cache},
            **attention.one_token_each(self.model, self.seen, self.at),
        )
        return output.logits[:, -1]

    def _masks(self) -> Any:
        """What is added to the scores [B, 1, 1, L], for each kind of layer."""
        import torch

        places = torch.arange(self.seen.shape[1], device=self.seen.device)
        dtype = self.model.get_input_embeddings().weight.dtype
        least = torch.finfo(dtype).min
        whole = self.seen & (places <= self.at)
        kinds = {"full_attention": whole}
        if window := getattr(self.config, "sliding_window", None):
            kinds["sliding_attention"] = whole & (places > self.at - window)
        added = {
            kind: torch.zeros(mask.shape, dtype=dtype, device=mask.device)
            .masked_fill_(~mask, least)
            .view(len(mask), 1, 1, -1)
            for kind, mask in kinds.items()
        }
        return added if getattr(self.config, "layer_types", None) else added["full_attention"]

    def _capture(self, eager: "Tensor") -> "Tensor":
        graph = self.make()

        def run() -> None:
            self.logits = self._forward()

        try:
            graph.capture(run)
            graph.replay()  # writes the same keys and values to the same places
            worst = (self.logits.float() - eager.float()).abs().max()
            if not bool(worst <= EXPECTED * eager.float().abs().max()):
                raise RuntimeError(f"its logits are {float(worst):.3g} off")
        except Exception as error:  # whatever it is: the same step can run without a graph
            self.make = None
            _say(f"CUDA graphs: off in decoding ({' '.join(str(error).split())[:200]})")
            return eager
        self.graph = graph
        return self.logits


@contextlib.contextmanager
def kept(model: Any) -> Iterator[None]:
    """While this lasts, the memory and the graph of steps that ended serve the next texts, where these fit in."""
    outermost = model not in _kept
    _kept.setdefault(model, [])
    try:
        yield
    finally:
        if outermost:
            _kept.pop(model, None)


def keep(model: Any) -> None:
    """``kept`` for as long as there is the model, which does nothing but answer."""
    _kept.setdefault(model, [])


def begin(model: Any, cache: Any, seen: "Tensor", length: int, make: Any) -> Steps:
    """``Steps`` after a prefill: those of other texts that ended, where these fit in, else new ones."""
    ended = _kept.get(model, [])
    while ended:
        steps = ended.pop()
        if steps.fits(model, len(seen), length, make):
            steps.model = model
            steps.begin(cache, seen)
            return steps
    each = max(1, EVEN // len(seen))
    return Steps(model, cache, seen, -(-length // each) * each, make)


def end(steps: Steps) -> None:
    """Leave steps, which no text needs any more, to the next ones."""
    if steps.model in _kept:
        _kept[steps.model][:] = [steps]
    steps.model = None  # which lives no longer for them


def _state(model: Any) -> tuple[Any, ...]:
    """What a graph of a model depends on beside its inputs: where its weights lie, and which adapters answer."""
    places = [p.data_ptr() for p in model.parameters()]
    for module in model.modules():
        if any(name in vars(module).get("_modules", ()) for name in ("lora_A", "modules_to_save")):
            layer: Any = module
            places += [layer.disable_adapters, getattr(layer, "merged", False)]
            places += layer.active_adapters
    return tuple(places)


def refusal(model: Any) -> str:
    """Why a model's keys and values cannot lie at fixed places; nothing where they can."""
    config = model.config.get_text_config()
    if config.model_type in STATEFUL:
        return "it keeps a state of its own"
    if getattr(config, "enable_moe_block", False):
        return "which expert a token goes to depends on the data"
    if any(hasattr(p, "full_tensor") for p in model.parameters()):
        return "processes share its weights"
    return ""


@functools.cache
def _places() -> Any:
    from transformers.cache_utils import CacheLayerMixin

    from ft.kernels import flash_decode

    class Places(CacheLayerMixin):
        """A layer's keys and values of ``rows`` texts of ``length`` tokens; a new token's are written at ``at``."""

        def __init__(self, like: Any, at: "Tensor", rows: int, length: int, capped: bool) -> None:
            super().__init__()
            made = [
                x.new_zeros(rows, x.shape[1], length, x.shape[3]) for x in (like.keys, like.values)
            ]
            self.keys: Any
            self.values: Any
            self.keys, self.values = made
            self.at, self.length, self.capped = at, length, capped
            self.is_initialized = True

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            """Nothing: a prefill has been."""

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            new, keys = (key_states, value_states), self.keys
            place = keys.device, keys.dtype, keys.shape[-1]
            if flash_decode.usable(keys, *new) and flash_decode.works(*place, self.capped):
                flash_decode.put(keys, self.values, *new, self.at)
            else:
                # autocast may leave those of one token in another dtype than the prefill's
                for places, each in zip((keys, self.values), new, strict=True):
                    places.index_copy_(2, self.at, each.to(places.dtype))
            return keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return self.length, 0

        def get_seq_length(self) -> int:
            return 1  # some: that it is not empty is all that is asked

        def get_max_length(self) -> int:
            return self.length

        get_max_cache_shape = get_max_length  # as older transformers call it

    return Places


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
