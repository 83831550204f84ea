"""Decoding with keys and values at fixed places, so that a step of one token can be a CUDA graph."""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

STATEFUL = (
    "recurrent_gemma",
    "minigpt",
)  # models that keep more, or other things, than keys and values
EXPECTED = 5e-2  # of logits, relative to the largest, by which a graph may differ from the kernels it holds
_said: set[str] = set()


class Steps:
    """The steps of one token after a prefill: ``step`` answers as the model with its growing cache does.

    Keys and values of all layers have ``length`` places, one a token from the left, padding included; a
    layer with a window has a mask that says so in place of a shorter cache. Nothing depends on values, so the
    second step is captured by ``make`` (``CudaGraph``), and compared with what the same kernels
    give one by one: where the two differ, or the capture fails, the steps go on without, and a line says why.
    """

    def __init__(self, model: Any, cache: Any, seen: "Tensor", length: int, make: Any) -> None:
        """``cache`` is the ``DynamicCache`` of a prefill, which is emptied; ``seen`` [B, T] is 0 at padding."""
        import torch

        self.model, self.steps = model, 0
        self.make: Any = make
        self.config = model.config.get_text_config()
        rows, self.width = seen.shape
        self.seen = torch.ones(rows, length, dtype=torch.bool, device=seen.device)
        self.seen[:, : self.width] = seen.bool()
        self.at = torch.tensor([self.width], device=seen.device)  # the place of the next token
        capped = bool(getattr(self.config, "attn_logit_softcapping", None))
        self.cache = _cache(cache, self.at, length, self.width, capped)
        self.ids = seen.new_zeros(rows, 1)
        self.positions = seen.new_zeros(rows, 1)
        self.graph: Any = None
        self.logits: Any = None

    def step(self, ids: "Tensor", positions: "Tensor") -> "Tensor":
        """Logits [B, V] after ``ids`` [B, 1] at ``positions`` [B, 1]; they last until the next step."""
        import torch

        self.ids.copy_(ids)
        self.positions.copy_(positions)
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
        return found

    def select(self, rows: "Tensor") -> None:
        """Go on with these texts [N]: as many keep their places, and so the graph; others begin another."""
        import torch

        layers = [layer for layer in self.cache.layers if layer.keys is not None]
        if len(rows) == len(self.seen):
            kept = [self.seen, *(x for layer in layers for x in (layer.keys, layer.values))]
            with torch.inference_mode():
                for x in kept:
                    x.copy_(x[rows])
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


def _cache(grown: Any, at: "Tensor", length: int, width: int, capped: bool) -> Any:
    """The keys and values of a prefill of ``width`` tokens at their places among ``length``."""
    from transformers.cache_utils import Cache, CacheLayerMixin

    from ft.kernels.flash_decode import put, usable, works

    class Places(CacheLayerMixin):
        """A layer's keys and values; a new token's are written at ``at``."""

        def __init__(self, keys: "Tensor", values: "Tensor") -> None:
            super().__init__()
            self.keys: Any = _placed(keys, length, width)
            self.values: Any = _placed(values, length, width)
            self.is_initialized = True

        def lazy_initialization(self, key_states: Any, value_states: Any) -> None:
            """Nothing: a prefill has been."""

        def update(self, key_states: Any, value_states: Any, *_: Any, **__: Any) -> Any:
            new = key_states, value_states
            device, dtype, size = self.keys.device, self.keys.dtype, self.keys.shape[-1]
            if usable(self.keys, *new) and works(device, dtype, size, capped):
                put(self.keys, self.values, *new, at)
            else:
                self.keys.index_copy_(2, at, key_states)
                self.values.index_copy_(2, at, value_states)
            return self.keys, self.values

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return length, 0

        def get_seq_length(self) -> int:
            return width

        def get_max_length(self) -> int:
            return length

        get_max_cache_shape = get_max_length  # as older transformers call it

    layers = []
    for layer in grown.layers:
        if layer.keys is None:  # of a layer that takes those of an earlier one
            layers.append(layer)
            continue
        layers.append(Places(layer.keys, layer.values))
        layer.keys = layer.values = None  # one layer at a time is there twice
    return Cache(layers=layers)


def _placed(x: "Tensor", length: int, width: int) -> "Tensor":
    """The last of ``width`` tokens [B, K, ≤ width, D] in memory for ``length``."""
    found = x.new_zeros(*x.shape[:2], length, x.shape[-1])
    found[:, :, width - x.shape[2] : width] = x
    return found


def _say(line: str) -> None:
    if line not in _said:
        _said.add(line)
        print(line, file=sys.stderr)
