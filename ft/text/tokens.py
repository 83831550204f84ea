"""Token ids and labels: encode, mask, length policy, and a view of the mask."""

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ft.errors import UserError
from ft.machine import say
from ft.text import control, native
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
    skipped: int = 0  # bad ones, left out

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
        if self.skipped:
            text += f"; {self.skipped:,} bad rows skipped"
        return text


def encode_rows(
    rows: Iterable[Mapping[str, Any]],
    template: Template,
    tokenizer: Any,
    *,
    max_length: int,
    policy: Policy = "drop",
    seed_parity: bool = False,
    on_bad_row: str = "error",
    supervise_thinking: bool = True,
) -> Encoded:
    """Encode rows, of fields or of ``{"messages"}``, as ``template`` reads them; see ``encode``.

    Raises ``UserError``, or with ``on_bad_row="skip"`` leaves out and counts: a row that the template
    cannot show, and one whose own text holds a control token (it would end a turn, or make a new one,
    where the data only has text). Messages name a row by ``rows.place``, where rows have one. Without
    ``supervise_thinking`` thoughts are read and not learnt.
    """
    place = getattr(rows, "place", lambda index: f"row {index + 1}")
    rows = list(rows)
    control.refuse_template(template, tokenizer)
    special = control.tokens(tokenizer)
    turns, kept, bad = [], [], []
    for index, row in enumerate(rows):
        if found := control.found_in(row, special):
            bad.append(f"{place(index)}, {found}; remove it from the data")
            continue
        try:
            if native.reads(template, row):
                turns.append(native.pairs(template, row, tokenizer, thoughts=supervise_thinking))
            else:
                turns.append(template.turns(row))
            kept.append(index)
        except UserError as error:
            bad.append(f"{place(index)}: {error}")
    if bad and on_bad_row == "error":
        more = f" (and {len(bad) - 1} more rows are bad)" if len(bad) > 1 else ""
        raise UserError(f"{bad[0]}, or leave such rows out with --on-bad-row skip{more}")
    if not turns and bad:
        raise UserError(f"all {len(bad)} rows are bad; the first is {bad[0]}")
    found = encode(
        turns,
        tokenizer,
        max_length=max_length,
        policy=policy,
        seed_parity=seed_parity,
        end=template.end,
        tail=template.tail,
        place=lambda at: place(kept[at]),
        on_bad_row=on_bad_row,
    )
    return replace(found, rows=[kept[at] for at in found.rows], skipped=found.skipped + len(bad))


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
    place: Callable[[int], str] = lambda at: f"row {at + 1}",
    on_bad_row: str = "error",
) -> Encoded:
    """Encode ``{"prompt", "completion"}`` pairs; labels are each completion and its end token.

    An example is a pair, or a list of them: the turns of a conversation. Prompt and completion are
    encoded apart and joined as ids, so that training sees exactly the ids that inference will see
    (google-deepmind/gemma, ``gm/data/_tasks.py``). ``end`` is the text of the end token (by default
    the tokenizer's EOS); ``tail`` follows each of them but a last EOS, without loss. ``seed_parity``
    puts the second BOS before the completion that Google's tutorials put there, and supervises it.

    ``max_length`` counts tokens of the whole example. A longer one is dropped (as the tutorials do),
    loses its ending (then without an end token: it would teach to stop in mid-sentence), or is an
    error. Raises ``UserError`` for that (with ``on_bad_row="skip"`` it is skipped instead), for a
    control token inside a text, and if nothing is left. ``place`` names a conversation in messages.
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
        ids, labels, between = [bos], [IGNORE], []
        for pair, (prompt, completion) in zip(turns, encoded, strict=False):
            ended = pair.get("ended", False)  # control tokens are the chat template's own
            if bos in prompt or not ended and {bos, eos, stop} & {*completion}:
                raise UserError(
                    f"{place(row)}: the text contains {tokenizer.bos_token!r}, {tokenizer.eos_token!r} or "
                    f"{end or tokenizer.eos_token!r}, which the tokenizer reads as a control token; "
                    "remove it from the data"
                )
            between = [] if ended else after
            answer = [*([bos] if seed_parity else []), *completion, *([] if ended else [stop])]
            ids += prompt + answer + between
            learnt = answer if pair.get("learn", True) else [IGNORE] * len(answer)
            labels += [IGNORE] * len(prompt) + learnt + [IGNORE] * len(between)
        if between and not end:  # nothing follows a last EOS
            ids, labels = ids[: -len(after)], labels[: -len(after)]
        lengths.append(len(ids))
        if len(ids) > max_length:
            too_long += [row]
            ids, labels = ids[:max_length], labels[:max_length]
            if policy != "truncate" or all(label == IGNORE for label in labels):
                continue
            truncated += 1
        if all(label == IGNORE for label in labels):
            raise UserError(f"{place(row)}: nothing of it is learnt: every answer is masked")
        examples.append({"input_ids": ids, "labels": labels})
        rows.append(row)
    if policy == "error" and too_long and on_bad_row == "error":
        raise UserError(
            f"{len(too_long)} of {len(conversations)} rows have more than max_length={max_length} tokens, "
            f"the first is {place(too_long[0])} with {lengths[too_long[0]]}; raise --max-length, choose "
            "the length policy drop or truncate, or leave such rows out with --on-bad-row skip"
        )
    if not examples:
        raise UserError(
            f"all {len(conversations)} rows have more than max_length={max_length} tokens (the shortest "
            f"has {min(lengths)}); raise --max-length"
        )
    left = len(conversations) - len(examples)
    counts = (0, truncated, left) if policy == "error" else (left, truncated, 0)
    return Encoded(examples, rows, lengths, *counts)


def prompt_ids(
    template: Template, row: Mapping[str, Any], tokenizer: Any, fill: Callable[[str], str] = str
) -> list[int]:
    """BOS, every finished turn with its end, and the last prompt: the ids that training had there.

    ``fill`` changes the text of each prompt, once the row's own text is known to be good. Raises
    ``UserError`` for a control token in the row's own text.
    """
    if found := control.found_in(row, control.tokens(tokenizer)):
        raise UserError(f"{found}; ask without it")
    if native.reads(template, row):
        text = fill(native.prompt(template, row, tokenizer))
        return tokenizer(text, add_special_tokens=False)["input_ids"]
    turns = template.turns(row) if "messages" in row else []
    if not turns:
        template.refuse_unread(row)
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
