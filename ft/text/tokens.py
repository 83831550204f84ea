"""Token ids and labels: encode, mask, length policy, packing, collating, and a view of the mask."""

import bisect
import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ft.errors import UserError
from ft.kernels import recurrent
from ft.text.template import Pair, Template

if TYPE_CHECKING:
    from torch import Tensor

IGNORE = (
    -100
)  # label of a position that no loss is taken of; PyTorch's and Hugging Face's convention
Example = dict[str, list[int]]  # {"input_ids", "labels"}, equal lengths
Policy = Literal["drop", "truncate", "error"]


@dataclass(frozen=True)
class Encoded:
    """Examples that fit, and what the length policy did to the others."""

    examples: list[Example]
    rows: list[int]  # index of the pair behind each example
    lengths: list[int]  # tokens of every pair before the policy
    dropped: int
    truncated: int

    @property
    def supervised(self) -> int:
        """Number of positions that a loss is taken of."""
        return sum(label != IGNORE for e in self.examples for label in e["labels"])

    def summary(self, max_length: int) -> str:
        """One line for people: how many examples, how long, what was cut."""
        total = sum(len(e["input_ids"]) for e in self.examples)
        text = (
            f"{len(self.examples):,} examples, {total:,} tokens, "
            f"{self.supervised / max(total, 1):.0%} supervised, longest {max(self.lengths):,}"
        )
        if self.dropped:
            text += f"; {self.dropped:,} dropped (longer than {max_length} tokens)"
        if self.truncated:
            text += f"; {self.truncated:,} lost their ending (cut at {max_length} tokens)"
        return text


def encode_rows(
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    tokenizer: Any,
    *,
    max_length: int,
    policy: Policy = "drop",
    seed_parity: bool = False,
) -> Encoded:
    """Encode rows, of fields or of ``{"messages"}``, as ``template`` reads them; see ``encode``.

    Raises ``UserError`` for a row whose own text holds a control token: it would end a turn, or make
    a new one, where the data only has text.
    """
    rows = list(rows)
    turns = [template.turns(row) for row in rows]  # refuses what is no conversation
    refuse_control_tokens(rows, tokenizer)
    return encode(
        turns,
        tokenizer,
        max_length=max_length,
        policy=policy,
        seed_parity=seed_parity,
        end=template.end,
        tail=template.tail,
    )


def encode(
    pairs: Iterable[Pair | Sequence[Pair]],
    tokenizer: Any,
    *,
    max_length: int,
    policy: Policy = "drop",
    seed_parity: bool = False,
    end: str = "",
    tail: str = "",
) -> Encoded:
    """Encode ``{"prompt", "completion"}`` pairs; labels are each completion and its end token.

    An example is a pair, or a list of them: the turns of a conversation. Prompt and completion are
    encoded apart and joined as ids, so that training sees exactly the ids that inference will see
    (google-deepmind/gemma, ``gm/data/_tasks.py``). ``end`` is the text of the end token (by default
    the tokenizer's EOS); ``tail`` follows each of them but a last EOS, without loss. ``seed_parity``
    puts the second BOS before the completion that Google's tutorials put there, and supervises it.

    ``max_length`` counts tokens of the whole example. A longer one is dropped (as the tutorials do),
    loses its ending (then without an end token: it would teach to stop in mid-sentence), or is an
    error. Raises ``UserError`` for that, for a control token inside a text, and if nothing is left.
    """
    conversations = [[p] if isinstance(p, Mapping) else list(p) for p in pairs]
    if not conversations:
        raise UserError("there are no pairs to encode")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    stop = tokenizer.convert_tokens_to_ids(end) if end else eos
    flat = [pair for turns in conversations for pair in turns]
    parts = [
        tokenizer([pair[key] for pair in flat], add_special_tokens=False)["input_ids"]
        for key in ("prompt", "completion")
    ]
    encoded = zip(*parts, strict=True)
    after = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    examples, rows, lengths, truncated, too_long = [], [], [], 0, []
    for row, turns in enumerate(conversations):
        ids, labels = [bos], [IGNORE]
        for prompt, completion in itertools.islice(encoded, len(turns)):
            if bos in prompt or bos in completion or eos in completion or stop in completion:
                raise UserError(
                    f"row {row + 1}: the text contains {tokenizer.bos_token!r}, {tokenizer.eos_token!r} or "
                    f"{end or tokenizer.eos_token!r}, which the tokenizer reads as a control token; "
                    "remove it from the data"
                )
            answer = [*([bos] if seed_parity else []), *completion, stop]
            ids += prompt + answer + after
            labels += [IGNORE] * len(prompt) + answer + [IGNORE] * len(after)
        if after and not end:  # nothing follows a last EOS
            ids, labels = ids[: -len(after)], labels[: -len(after)]
        lengths.append(len(ids))
        if len(ids) > max_length:
            too_long.append(row)
            ids, labels = ids[:max_length], labels[:max_length]
            if policy != "truncate" or all(label == IGNORE for label in labels):
                continue
            truncated += 1
        assert len(ids) == len(labels)
        assert any(label != IGNORE for label in labels)
        examples.append({"input_ids": ids, "labels": labels})
        rows.append(row)
    if policy == "error" and too_long:
        raise UserError(
            f"{len(too_long)} of {len(conversations)} rows have more than max_length={max_length} tokens, "
            f"the first is row {too_long[0] + 1} with {lengths[too_long[0]]}; raise --max-length or choose "
            "the length policy drop or truncate"
        )
    if not examples:
        raise UserError(
            f"all {len(conversations)} rows have more than max_length={max_length} tokens (the shortest "
            f"has {min(lengths)}); raise --max-length"
        )
    return Encoded(examples, rows, lengths, len(conversations) - len(examples), truncated)


def prompt_ids(
    template: Template, row: Mapping[str, Any], tokenizer: Any, fill: Callable[[str], str] = str
) -> list[int]:
    """BOS, every finished turn with its end, and the last prompt: the ids that training had there.

    ``fill`` changes the text of each prompt, once the row's own text is known to be good. Raises
    ``UserError`` for a control token in the row's own text.
    """
    turns = template.turns(row) if "messages" in row else []
    if found := _control_token(row, _control_tokens(tokenizer)):
        raise UserError(f"{found}; ask without it")
    if not turns:
        prompt = fill(template.prompt_for(row))
        return [tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    *finished, last = [turn | {"prompt": fill(turn["prompt"])} for turn in turns]
    open_turn = {"prompt": last["prompt"], "completion": ""}
    (example,) = encode(
        [[*finished, open_turn]],
        tokenizer,
        max_length=sys.maxsize,
        end=template.end,
        tail=template.tail,
    ).examples
    prompt_ends = max(i for i, label in enumerate(example["labels"]) if label != IGNORE)
    return example["input_ids"][:prompt_ends]


def refuse_control_tokens(rows: Iterable[Mapping[str, Any]], tokenizer: Any) -> None:
    """Raise ``UserError`` for the first row whose own text holds a control token of the tokenizer."""
    control = _control_tokens(tokenizer)
    for number, row in enumerate(rows, 1):
        if found := _control_token(row, control):
            raise UserError(f"row {number}, {found}; remove it from the data")


def _control_tokens(tokenizer: Any) -> re.Pattern[str]:
    special = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    return re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))))


def _control_token(row: Mapping[str, Any], control: re.Pattern[str]) -> str:
    """Where a row's own text holds a control token, in words; nothing where it holds none."""
    turns = enumerate(row.get("messages", ()), 1)
    fields = [(f"message {n} ({m['role']})", m["content"]) for n, m in turns]
    fields += [(key, value) for key, value in row.items() if isinstance(value, str)]
    for name, text in fields:
        if found := control.search(text):
            token = repr(found.group())
            return (
                f"{name}: the text contains {token}, which the tokenizer reads as a control token"
            )
    return ""


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: indices of ``lengths`` in rows of at most ``capacity`` tokens.

    A length over the capacity gets a row of its own. Each index occurs once.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        at = bisect.bisect_left(room, (lengths[index], -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        bisect.insort(room, (left - lengths[index], row))
    return rows


def packed_row(examples: Sequence[Example]) -> dict[str, "Tensor"]:
    """Examples laid end to end in one row: ``input_ids``, ``position_ids``, ``labels``, each [1, T].

    Positions restart with each example and there is no 2-D mask: from these two facts transformers
    derives attention that keeps examples apart. Labels stand at their token, as Hugging Face has
    them, and the first of each example is masked, since the token before it is another example's.
    """
    import torch

    ids = [i for e in examples for i in e["input_ids"]]
    labels = [i for e in examples for i in (IGNORE, *e["labels"][1:])]
    positions = [i for e in examples for i in range(len(e["input_ids"]))]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "labels": torch.tensor([labels]),
    }


def padded_batch(examples: Sequence[Example], pad: int) -> dict[str, "Tensor"]:
    """Examples padded on the right to the longest: the same keys as ``packed_row``, each [B, T].

    No mask is needed: a causal model's real positions never see what stands to their right.
    """
    import torch

    width = max(len(e["input_ids"]) for e in examples)

    def fill(key: str, value: int) -> "Tensor":
        return torch.tensor([e[key] + [value] * (width - len(e[key])) for e in examples])

    labels = fill("labels", IGNORE)
    labels[:, 0] = IGNORE
    return {
        "input_ids": fill("input_ids", pad),
        "position_ids": torch.arange(width).expand(len(examples), width).contiguous(),
        "labels": labels,
    }


def layout(
    examples: Sequence[Example], *, packing: bool, capacity: int, pad: int
) -> list[dict[str, "Tensor"]]:
    """One batch as the pieces that run through the model one after the other.

    Packed: rows of at most ``capacity`` tokens without any padding. Otherwise one padded batch.
    """
    if not packing:
        return [padded_batch(examples, pad)]
    rows = pack([len(e["input_ids"]) for e in examples], capacity)
    return [packed_row([examples[i] for i in row]) for row in rows]


def show(example: Example, tokenizer: Any, *, colour: bool) -> str:
    """The example as text with the supervised tokens green, or in ``⟦ ⟧`` without colour."""
    before, after = ("\x1b[32m", "\x1b[0m") if colour else ("⟦", "⟧")
    parts: list[str] = []
    start, ids, labels = 0, example["input_ids"], example["labels"]
    for end in range(1, len(ids) + 1):
        if end == len(ids) or (labels[end] == IGNORE) != (labels[start] == IGNORE):
            text = tokenizer.decode(ids[start:end], skip_special_tokens=False)
            parts.append(text if labels[start] == IGNORE else f"{before}{text}{after}")
            start = end
    return "".join(parts)


def histogram(lengths: Sequence[int], max_length: int, width: int = 40) -> str:
    """Bars of how many examples have how many tokens; the last bar is of those over ``max_length``."""
    step = max(1, -(-min(max(lengths), max_length) // 8))
    edges = list(range(step, min(max(lengths), max_length) + step, step))
    edges[-1] = min(edges[-1], max_length)
    bounds = [*zip([1, *(e + 1 for e in edges)], edges, strict=False)]
    bars = [(f"{a}-{b}", sum(a <= n <= b for n in lengths)) for a, b in bounds]
    if over := sum(n > max_length for n in lengths):
        bars.append((f">{max_length}", over))
    most = max(count for _, count in bars)
    return "\n".join(
        f"  {label:>9} tokens {count:>7,} {'█' * round(width * count / most)}"
        for label, count in bars
    )


def packs_exactly(model: Any) -> bool:
    """Whether packed rows give the loss of separate examples.

    transformers' RecurrentGemma looks across the border of two examples; ``models.load`` mends it. The
    mask of Unsloth's Gemma 2 does not keep examples apart.
    """
    if getattr(model, "by_unsloth", False):
        return False
    return model.config.model_type != "recurrent_gemma" or recurrent.installed(model)
