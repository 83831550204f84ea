"""How likely a model finds tokens: of examples, windows of a text and texts, and with gradients to learn from."""

import contextlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ft import machine
from ft.errors import UserError
from ft.score import logits
from ft.text import row_inputs
from ft.text.batches import layout, pack, packed_row, row_length
from ft.text.examples import IGNORE, Example, lengths_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

# tokens of a packed row that is judged; where a mask of examples would grow with its square, and on a GPU without one
ROW, GPU_ROW = 1024, 2048
PADDED = 8192  # tokens of a padded batch at most, unless one example has more


@dataclass(frozen=True)
class Likelihood:
    """How well a model foresees the supervised tokens."""

    loss: float  # mean cross-entropy in nats
    accuracy: float  # share of tokens that it holds the most likely
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def loss(
    model: "nn.Module",
    examples: Sequence[Example],
    *,
    mean: Literal["tokens", "rows"] = "tokens",
    **options: Any,
) -> float:
    """The loss of ``of_examples``; with ``rows`` the mean of each example's own, whatever its length."""
    if mean == "rows":
        return statistics.fmean(of_examples(model, [one], **options).loss for one in examples)
    return of_examples(model, examples, **options).loss


def of_examples(
    model: "nn.Module",
    examples: Sequence[Example],
    *,
    batch_size: int = 8,
    progress: bool = False,
    batch: Callable[[Sequence[Example]], dict[str, "Tensor"]] | None = None,
) -> Likelihood:
    """Mean cross-entropy and accuracy over all supervised tokens; each process takes its share.

    They are packed, but where that is not exact, or where ``batch``, ``train.sft``'s, lays them out:
    ``batch_size`` together, fewer where they are long.
    ``model`` answers ``labels=`` with a summed loss (``ft.kernels.cross_entropy.install``). Raises
    ``UserError`` when nothing is supervised.
    """
    import torch
    from accelerate.utils import reduce
    from tqdm import tqdm

    from ft.kernels.recurrent import packs_exactly

    state = machine.state()
    quiet = not (progress and state.is_main_process)
    lengths = lengths_of(examples)
    packing, capacity = batch is None and packs_exactly(model), _row(model)
    if packing:
        batches = pack(lengths, capacity)
    else:
        order = sorted(range(len(examples)), key=lambda i: lengths[i])
        size = max(1, min(batch_size, PADDED // max(lengths, default=1)))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
    total = torch.zeros(3, dtype=torch.float64, device=state.device)
    with resting(model):
        turns = range(state.process_index, len(batches) + state.process_index, state.num_processes)
        for turn in tqdm(turns, desc="loss", disable=quiet, leave=False):
            # with nothing left for this process, one batch more that is not counted: where
            # parameters are sharded, all processes must run as many
            counted = turn < len(batches)
            chosen = [examples[i] for i in batches[turn if counted else 0]]
            pieces = [batch(chosen)] if batch else []
            # what pads a row on its right no position sees
            for piece in pieces or layout(chosen, packing=packing, capacity=capacity, pad=0):
                piece = {key: value.to(state.device) for key, value in piece.items()}
                answer = model(**piece)
                if counted:
                    total[0] += answer["loss"]
                    total[1] += answer["correct"]
                    total[2] += (piece["labels"][:, 1:] != IGNORE).sum()
    if state.num_processes > 1:
        total = reduce(total)
    summed, correct, count = total.tolist()  # pyright: ignore[reportAttributeAccessIssue]
    if not count:
        raise UserError("no position is supervised: every label is masked")
    return Likelihood(summed / count, correct / count, int(count))


def _row(model: "nn.Module") -> int:
    """Tokens of a packed row: longer where no mask grows with it, and launches take a GPU's time."""
    from ft.kernels import attention

    gpu = next(model.parameters()).device.type == "cuda"
    return GPU_ROW if gpu and attention.installed(model) else ROW


@dataclass(frozen=True)
class Validation:
    """How well a model predicts a text, token by token."""

    eval_loss: float  # nats a token
    accuracy: float  # share of tokens that were the most likely one
    perplexity: float
    bits_per_byte: float  # of UTF-8, so that tokenizers can be compared

    def __str__(self) -> str:
        return (
            f"validation loss: {self.eval_loss:.4f}, accuracy {self.accuracy:.1%}, perplexity "
            f"{self.perplexity:.1f}, {self.bits_per_byte:.4f} bits per byte"
        )


def of_windows(
    model: Any,
    windows: "NDArray[np.int64]",
    size: int,
    *,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager],
) -> Validation:
    """Over windows [N, T + 1] that predict ``size`` bytes; each process takes its share of them."""
    import torch
    from accelerate.utils import reduce

    state = machine.state()
    total = torch.zeros(3, dtype=torch.float64, device=state.device)
    starts = range(0, len(windows), batch_size)[state.process_index :: state.num_processes]
    for start in starts:
        ids = torch.from_numpy(windows[start : start + batch_size]).to(state.device)
        with autocast():
            found = logits.top(model, ids[:, :-1], k=1, targets=ids[:, 1:])
        hits = found.ids.squeeze(-1) == ids[:, 1:]
        total += torch.stack(
            [-found.target_logprobs.double().sum(), hits.sum(), (hits | True).sum()]
        )
    nats, right, tokens = (reduce(total) if state.num_processes > 1 else total).tolist()  # pyright: ignore[reportAttributeAccessIssue]
    loss = nats / tokens
    perplexity = math.exp(min(loss, 700.0))
    return Validation(loss, right / tokens, perplexity, nats / math.log(2) / size)


def logprobs(
    model: Any,
    examples: Sequence[Example],
    losses: Callable[[dict[str, Any]], "Tensor"] | None = None,
) -> list["Tensor"]:
    """The log-probabilities [n] of each example's supervised tokens, by the model as it is now.

    Gradients flow to all but the head. The examples run as packed rows without padding, and only
    supervised positions meet the head, whose logits exist a tile at a time. Each row is one call of the model
    (``ft.kernels.cross_entropy.install``), in which parameters that processes share are gathered. No GPU is
    waited for. ``losses`` [S] of a row's places may come from elsewhere than the model's call;
    rows are filled up to few sizes there (``row_inputs.padded``).
    """
    import torch

    device = model.get_input_embeddings().weight.device
    found: dict[int, Tensor] = {}
    lengths = [len(example["input_ids"]) for example in examples]
    rows = pack(lengths, row_length(device.type))
    packed = [packed_row([examples[i] for i in row]) for row in rows]
    if losses:
        inputs = [row_inputs.padded(row_inputs.of(row, len(examples))) for row in packed]
    else:
        inputs = [row_inputs.of(row, len(ids)) for row, ids in zip(packed, rows, strict=True)]
    for given in inputs:
        given |= {k: v.to(device, non_blocking=True) for k, v in given.items() if hasattr(v, "to")}
    for row, given in zip(rows, inputs, strict=True):
        values = -(losses(given) if losses else model(**given, per_token=True)["losses"])
        counts = [sum(label != IGNORE for label in examples[i]["labels"][1:]) for i in row]
        found |= zip(row, torch.split(values, counts), strict=True)
    return [found[i] for i in range(len(examples))]


@dataclass(frozen=True)
class Unpadded:
    """What a padded batch [B, T] has, where the CPU knows it."""

    examples: list[Example]
    places: "Tensor"  # [n] of supervised tokens that have one before, flat in [B, T - 1]
    shape: tuple[int, int]


def unpadded(ids: "Tensor", mask: "Tensor", labels: "Tensor") -> Unpadded:
    """Of ``ids``, ``mask`` (0 at padding, on either side) and ``labels``, all [B, T]. Waits for a GPU where they are there."""
    import torch

    given = torch.stack([ids, mask.to(ids.dtype), labels], -1).cpu()  # all at once
    examples: list[Example] = []
    for row in given.tolist():
        kept = [(token, label) for token, there, label in row if there]
        examples.append({"input_ids": [t for t, _ in kept], "labels": [x for _, x in kept]})
    _, there, label = given.unbind(-1)
    wanted = (there != 0) & (there.cumsum(1) > 1) & (label != IGNORE)
    places = wanted[:, 1:].flatten().nonzero().squeeze(1)
    return Unpadded(examples, places, (ids.shape[0], ids.shape[1] - 1))


def logprobs_of_batch(
    model: Any,
    batch: Unpadded,
    losses: Callable[[dict[str, Any]], "Tensor"] | None = None,
) -> "Tensor":
    """The log-probability of each next token [B, T - 1]; 0 where it has no label. ``losses`` as ``logprobs`` has it."""
    import torch

    values = torch.cat(logprobs(model, batch.examples, losses))
    places = batch.places.to(values.device, non_blocking=True)
    return values.new_zeros(math.prod(batch.shape)).index_copy(0, places, values).view(batch.shape)


@contextlib.contextmanager
def resting(model: Any) -> Iterator[None]:
    """The model without gradients and dropout, while this lasts."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
