"""Token ids and labels: encode, mask, length policy, and a view of the mask."""

import itertools
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ft.errors import UserError
from ft.machine import say
from ft.text.template import Pair, Template

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


def encode_splits(
    splits: Mapping[str, Any],
    template: Template,
    tokenizer: Any,
    *,
    max_length: int,
    encode: Callable[..., Encoded] = encode_rows,
    **options: Any,
) -> dict[str, Encoded]:
    """Each split's rows as ``encode`` makes examples of them, with its ``options``; said in a line each."""
    encoded = {}
    for split, rows in splits.items():
        encoded[split] = encode(rows, template, tokenizer, max_length=max_length, **options)
        say(f"{split}: {encoded[split].summary(max_length)}")
    return encoded


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
