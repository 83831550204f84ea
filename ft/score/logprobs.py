"""Log-probabilities of the supervised tokens of examples, with gradients: packed rows, no logits kept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ft.kernels import attention, cross_entropy
from ft.text.batches import pack, packed_row, row_length
from ft.text.tokens import IGNORE, Example

if TYPE_CHECKING:
    from torch import Tensor


def of_examples(model: Any, examples: Sequence[Example]) -> list["Tensor"]:
    """The log-probabilities [n] of each example's supervised tokens, by the model as it is now.

    Gradients flow to all but the head. The examples run as packed rows without padding, and only
    supervised positions meet the head, whose logits exist a tile at a time.
    """
    import torch

    device = model.get_input_embeddings().weight.device
    weight, cap = model.get_output_embeddings().weight, cross_entropy.softcap_of(model.config)
    trunk = model.get_decoder()
    found: dict[int, Tensor] = {}
    lengths = [len(example["input_ids"]) for example in examples]
    for row in pack(lengths, row_length(device.type)):
        chosen = [examples[i] for i in row]
        piece = {key: value.to(device) for key, value in packed_row(chosen).items()}
        labels, options = piece.pop("labels"), dict[str, Any]()
        if attention.installed(model):
            options["example_lengths"] = [lengths[i] for i in row]
            options |= attention.no_mask(model, piece["position_ids"])
        hidden = trunk(**piece, use_cache=False, **options).last_hidden_state
        kept, targets = cross_entropy.supervised(hidden, weight, labels)
        counts = [sum(label != IGNORE for label in e["labels"][1:]) for e in chosen]
        logprobs = -cross_entropy.token_losses(kept, weight, targets, cap)
        found |= zip(row, torch.split(logprobs, counts), strict=True)
    return [found[i] for i in range(len(examples))]


def of_batch(model: Any, ids: "Tensor", mask: "Tensor", labels: "Tensor") -> "Tensor":
    """The log-probability of each next token [B, T - 1] of a padded batch; 0 where it has no label.

    ``ids``, ``mask`` (0 at padding, on either side) and ``labels`` are [B, T].
    """
    import torch

    examples: list[Example] = [
        {"input_ids": row[kept].tolist(), "labels": label[kept].tolist()}
        for row, kept, label in zip(ids, mask.bool(), labels, strict=True)
    ]
    logprobs = torch.cat(of_examples(model, examples))
    wanted = labels[:, 1:] != IGNORE
    return logprobs.new_zeros(wanted.shape).masked_scatter(wanted, logprobs)
