"""Logits of the next token of several texts, one step after another."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ft.generate import static
from ft.models.vision import ImagePrompt

if TYPE_CHECKING:
    from torch import Tensor


# tokens of prompts in one forward pass; half as many of those that are 2,048 long, and so on
PREFILL = {"cpu": 2**14, "cuda": 2**12}
EVEN = 32  # tokens: a multiple of them keeps each text's place in a processor's vectors


class Decoder:
    """Texts that grow together, padded on the left; some may leave. ``logits`` [B, V] are those of each one's next token.

    Without ``use_cache`` every step computes the whole texts anew.
    With ``keep_hidden``, ``hidden`` [B, T, D] are the last layer's activations of the tokens that the
    last step computed, as the head sees them. Prompts are computed in pieces of ``PREFILL`` tokens, which bounds
    what their activations take, whatever their length. Where at most ``room`` steps are to come, and the model is on
    a GPU (or ``make_graph`` is given, in place of ``CudaGraph``), they are ``static.Steps``.

    In bf16 a sum taken in another order rounds to another number, and soon to another answer. So on a CPU
    texts are padded to a multiple of ``EVEN``, and a lone one is computed twice: PyTorch multiplies one
    row in an order of its own. Up to 512 tokens ``logits`` then are the same whatever else is in the batch.
    """

    def __init__(
        self,
        model: Any,
        prompts: Sequence[Sequence[int]],
        pad: int,
        *,
        use_cache: bool = True,
        keep_hidden: bool = False,
        room: int = 0,
        make_graph: Any = None,
    ) -> None:
        import torch
        from transformers import DynamicCache

        from ft.kernels import cache

        self.model, self._keep_hidden, self._prompts = model, keep_hidden, list(prompts)
        self.hidden: Tensor | None = None
        self._kept: Tensor | None = None
        weight = model.get_input_embeddings().weight
        device, width = weight.device, max(map(len, prompts))
        on_cpu = device.type == "cpu" and make_graph is None
        self._even = on_cpu and weight.dtype == torch.bfloat16
        if self._even:  # at least one: without any gap attention would be another kernel
            width += EVEN - width % EVEN
        gaps = [width - len(p) for p in prompts]
        rows = [[pad] * gap + list(p) for gap, p in zip(gaps, prompts, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        self._ids = torch.tensor(rows, device=device)
        padded = torch.tensor(mask, device=device)
        # each model's own is faster where none is needed
        self._mask = padded if any(gaps) else None
        self._positions = (padded.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = DynamicCache(config=model.config) if use_cache else None
        if use_cache:
            cache.check(model)
        if make_graph is None and device.type == "cuda":
            from ft.kernels.cuda_graph import CudaGraph

            make_graph = CudaGraph
        able = make_graph and room > 1 and use_cache and not keep_hidden
        self._static: Any = None
        self._make = make_graph if able and not static.refusal(model) else None
        self._length = width + room
        with contiguous_head(model):
            for begin, end in self._pieces():
                self.logits = self._forward(begin, end)
        if self._even and self._cache is not None and len(prompts) == 1:
            self._cache.reorder_cache(torch.tensor([0, 0]))

    @property
    def logits(self) -> "Tensor":
        """Of each text's next token [B, V]."""
        # not before they are asked for: most often a step follows and makes others
        if self._kept is not None:
            self._logits, self._kept = self._logits[self._kept], None
        return self._logits

    @logits.setter
    def logits(self, values: "Tensor") -> None:
        self._logits, self._kept = values, None

    @property
    def width(self) -> int:
        """Tokens of each text so far, padding included; 0 where nothing is cached."""
        return 0 if self._cache is None else self._cache.get_seq_length()

    def step(self, ids: "Tensor") -> None:
        """One more id [B] for each text."""
        import torch

        positions = self._positions[:, -1:] + 1
        if self._make is not None:
            if self._static is None:
                seen = torch.ones_like(self._ids) if self._mask is None else self._mask
                given = self.model, self._cache, seen, self._length, self._make
                self._static = static.begin(*given)
                self._cache = None
            self._ids, self._positions = ids[:, None], positions
            self.logits = self._static.step(self._ids, positions)
            return
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(ids), 1)], dim=1)
        if self._cache is None:
            self._ids = torch.cat([self._ids, ids[:, None]], dim=1)
            self._positions = torch.cat([self._positions, positions], dim=1)
        else:
            self._ids, self._positions = ids[:, None], positions
        self.logits = self._forward()

    def select(self, rows: "Tensor") -> None:
        """Go on with these texts [N], each as often as it is named; ``logits`` too are theirs."""
        if self._static is not None:
            self._static.select(rows)
        elif self._cache is not None:
            twice = self._even and len(rows) == 1
            self._cache.reorder_cache(rows.repeat(2) if twice else rows)  # selects in every layer
        self._ids, self._positions = self._ids[rows], self._positions[rows]
        self._mask = None if self._mask is None else self._mask[rows]
        self._kept = rows if self._kept is None else self._kept[rows]
        if self._prompts:
            self._prompts = [self._prompts[i] for i in rows.tolist()]

    def end(self) -> None:
        """Leave what lies on a GPU for its steps to the next texts."""
        if self._static is not None:
            static.end(self._static)
            self._static = None

    def joins(self, longest: int) -> bool:
        """Whether others may ``join`` where no text comes to more than ``longest`` tokens, padding included."""
        from ft.kernels import cache

        able = self._cache is not None and not (self._even or self._keep_hidden or self._make)
        kind = self.model.config.get_text_config().model_type if able else ""
        return able and kind not in static.STATEFUL and cache.grows(self._cache, longest)

    def join(self, other: "Decoder") -> None:
        """Take the texts of another behind these; places that no text has any more are given up."""
        import torch
        from torch.nn.functional import pad

        from ft.kernels import cache

        both = (self, other)
        logits = torch.cat([each.logits for each in both])
        widths = [each.width for each in both]
        width = max(widths)
        masks = []
        for each, wide in zip(both, widths, strict=True):
            seen = each._mask
            if seen is None:
                seen = torch.ones(len(each._ids), wide, dtype=torch.long)
            masks.append(pad(seen, (width - wide, 0)))
        mask = torch.cat(masks)
        first = int(mask.amax(0).argmax())
        mask = mask[:, first:]
        self._mask = None if bool(mask.all()) else mask
        cache.join(self._cache, other._cache, width, first)
        self._ids = torch.cat([each._ids[:, -1:] for each in both])
        self._positions = torch.cat([each._positions[:, -1:] for each in both])
        self.logits = logits

    def _images(self) -> dict[str, "Tensor"]:
        """The inputs that texts with images have besides: at first, or all along where nothing is cached."""
        import torch

        first = next((p for p in self._prompts if isinstance(p, ImagePrompt)), None)
        if first is None:
            return {}
        seen = [p.pixels for p in self._prompts if isinstance(p, ImagePrompt) and p.pixels]
        device = self._ids.device
        pixels = {
            name: torch.cat([each[name] for each in seen]).to(device)
            for name in (seen[0] if seen else {})
        }
        return {first.types: (self._ids == first.token).long(), **pixels}

    def _pieces(self) -> list[tuple[int, int]]:
        """Where the pieces of the prompts begin and end; one of all where it cannot go on from a cache."""
        rows, width = self._ids.shape
        most = PREFILL.get(self._ids.device.type, PREFILL["cpu"])
        size = max(1, int(most / (rows * max(1, width / 1024))))
        whole = self._cache is None or self._keep_hidden or self._even or self._images()
        if whole or self.model.config.get_text_config().model_type in static.STATEFUL:
            size = width
        return [(at, min(at + size, width)) for at in range(0, width, size)]

    def _forward(self, begin: int = 0, end: int | None = None) -> "Tensor":
        import torch

        from ft.kernels import cache

        def keep(_: Any, __: Any, output: Any) -> None:
            self.hidden = output[0][: len(self._ids)]

        inputs = {
            "input_ids": self._ids[:, begin:end],
            "attention_mask": None if self._mask is None else self._mask[:, :end],
            "position_ids": self._positions[:, begin:end],
        }
        lone, begins = self._even and len(self._ids) == 1, self._ids.shape[1] > 1
        if lone and not begins:
            inputs = {name: x if x is None else x.expand(2, -1) for name, x in inputs.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode())
            if self._keep_hidden:
                hook = self.model.get_decoder().register_forward_hook(keep)
                stack.callback(hook.remove)
            output = self.model(
                **inputs,
                use_cache=self._cache is not None,
                logits_to_keep=2 if lone and begins else 1,
                **{cache.name(): self._cache},
                **self._images(),
            )
        if self._cache is not None:
            self._prompts = []  # their keys and values are there
        return output.logits[: len(self._ids), -1]


@contextlib.contextmanager
def contiguous_head(model: Any) -> Iterator[None]:
    """Give the head contiguous rows while this lasts.

    The last position of each prompt is a strided slice, for which PyTorch multiplies a frozen head
    as one copy of it for every row: 16 GB and a minute for 48 prompts of Gemma 3 270M.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(), *inputs[1:]))
    try:
        yield
    finally:
        hook.remove()
