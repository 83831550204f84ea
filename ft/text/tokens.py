"""Token ids and labels: encode, mask, length policy, and a view of the mask."""

import itertools
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ft.errors import UserError
from ft.machine import is_main, say
from ft.text import bad_rows, control, native
from ft.text.examples import IGNORE, Example, Examples, lengths_of
from ft.text.template import Pair, Template

Policy = Literal["drop", "truncate", "error"]
CHUNK = 4096  # rows whose texts the tokenizer, which uses all cores, is given at once


@dataclass(frozen=True)
class Encoded:
    """Examples that fit, and what the length policy did to the others."""

    examples: Sequence[Example]
    rows: list[int]  # index of the pair behind each example
    lengths: list[int]  # tokens of every pair before the policy
    dropped: int
    truncated: int
    skipped: int = 0  # bad ones, left out
    bad: tuple[int, ...] = ()  # index of each of these that is bad whatever its length

    @property
    def supervised(self) -> int:
        """Number of positions that a loss is taken of."""
        if isinstance(self.examples, Examples):
            return self.examples.supervised
        return sum(label != IGNORE for e in self.examples for label in e["labels"])

    def summary(self, max_length: int) -> str:
        """One line for people: how many examples, how long, what was cut."""
        total = sum(lengths_of(self.examples))
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
    supervise_thinking: bool = True,
) -> Encoded:
    """Encode rows, of fields or of ``{"messages"}``, as ``template`` reads them; see ``encode``.

    Bad rows, which the template cannot show or whose own text holds a control token, are as
    ``bad_rows.Good`` has it. Without ``supervise_thinking`` thoughts are read and not learnt.
    """
    rows = rows if isinstance(rows, Sequence) else list(rows)
    control.refuse_template(template, tokenizer)

    def turns(row: Mapping[str, Any]) -> list[Pair]:
        if native.reads(template, row):
            return native.pairs(template, row, tokenizer, thoughts=supervise_thinking)
        return template.turns(row)

    good = bad_rows.Good(rows, tokenizer, turns)
    found = encode(
        good,
        tokenizer,
        max_length=max_length,
        policy=policy,
        seed_parity=seed_parity,
        end=template.end,
        tail=template.tail,
        count=len(rows),
        place=lambda at: good.place(good.kept[at]),
        on_bad_row=good.policy,
    )
    return of_rows(found, good)


def of_rows(found: Encoded, good: bad_rows.Good[Any]) -> Encoded:
    """What was encoded of good rows, by the numbers that they have among all."""
    return replace(
        found,
        rows=[good.kept[at] for at in found.rows],
        bad=(*good.bad, *(good.kept[at] for at in found.bad)),
        skipped=found.skipped + len(good.bad),
    )


def encode_splits(
    splits: Mapping[str, Any],
    template: Template,
    tokenizer: Any,
    *,
    max_length: int,
    encode: Callable[..., Encoded] = encode_rows,
    **options: Any,
) -> tuple[dict[str, Any], dict[str, Encoded]]:
    """Each split's rows as ``encode`` makes examples of them, with its ``options``; said in a line each.

    The rows that come back are those without bad ones, which are not to be asked about either.
    """
    good, encoded = {}, {}
    for split, rows in splits.items():
        found = encode(rows, template, tokenizer, max_length=max_length, **options)
        say(f"{split}: {found.summary(max_length)}")
        good[split], encoded[split] = without_bad(rows, found)
    return good, encoded


def without_bad(rows: Any, found: Any) -> tuple[Any, Any]:
    """Rows without those that turned out to be bad, and the same examples by what number they have then.

    Their hash stays that of all: which are bad is the template's doing, and known before only of a sample.
    """
    if not found.bad:
        return rows, found
    left = rows.without(found.bad, f"without {len(found.bad)} bad rows")
    left = replace(left, sha256=rows.sha256)
    numbers = {old: new for new, old in enumerate(sorted({*range(len(rows))} - {*found.bad}))}
    return left, replace(found, rows=[numbers[old] for old in found.rows], bad=())


def encode(
    pairs: Iterable[Pair | Sequence[Pair]],
    tokenizer: Any,
    *,
    max_length: int,
    policy: Policy = "drop",
    seed_parity: bool = False,
    end: str = "",
    tail: str = "",
    count: int | None = None,
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
    error. ``count`` is that of the pairs, where they are no sequence, for the progress bar. Raises
    ``UserError`` for a longer one, for a control token inside a text and for what is masked whole (with
    ``on_bad_row="skip"`` they are skipped instead), and if nothing is left. ``place`` names a conversation.
    """
    from tqdm import tqdm

    bos, eos = control.require_bos(tokenizer), tokenizer.eos_token_id
    stop = tokenizer.convert_tokens_to_ids(end) if end else eos
    after = ids_of(tokenizer, [tail])[0] if tail else []
    named = f"{tokenizer.bos_token!r}, {tokenizer.eos_token!r} or {end or tokenizer.eos_token!r}, which "
    named += "the tokenizer reads as a control token"
    examples, rows, lengths, truncated = Examples(), array("q"), array("q"), 0
    count = len(pairs) if isinstance(pairs, Sequence) else count
    bad: dict[int, str] = {}
    bar = tqdm(pairs, "encode", count, unit=" rows", delay=2, leave=False, disable=not is_main())
    for row, parts in enumerate(_encoded(bar, tokenizer)):
        ids, marks, between = [bos], bytearray(1), []  # a mark is 1 where there is a loss
        for pair, prompt, completion in parts:
            ended = pair.get("ended", False)  # control tokens are the chat template's own
            if bos in prompt or (not ended and {bos, eos, stop} & {*completion}):
                bad[row] = f"{place(row)}: the text contains {named}; remove it from the data"
            between = [] if ended else after
            answer = [*[bos] * seed_parity, *completion, *([] if ended else [stop])]
            ids += prompt + answer + between
            learnt = b"\1" if pair.get("learn", True) else b"\0"
            marks += bytes(len(prompt)) + learnt * len(answer) + bytes(len(between))
        if between and not end:  # nothing follows a last EOS
            ids, marks = ids[: -len(after)], marks[: -len(after)]
        lengths.append(len(ids))
        if 1 not in marks:
            bad[row] = f"{place(row)}: nothing of it is learnt: every answer is masked"
        if row in bad:
            continue
        if len(ids) > max_length:
            ids, marks = ids[:max_length], marks[:max_length]
            if policy != "truncate" or 1 not in marks:
                continue
            truncated += 1
        examples.add(ids, marks)
        rows.append(row)
    if not lengths:
        raise UserError("there are no pairs to encode")
    bad_rows.settle(bad, len(lengths) - len(bad), on_bad_row)
    too_long = [row for row, n in enumerate(lengths) if n > max_length and row not in bad]
    if policy == "error" and too_long and on_bad_row == "error":
        _refuse_longer(too_long, lengths, max_length, place)
    if not examples:
        raise UserError(
            f"all {len(lengths)} rows have more than max_length={max_length} tokens (the shortest "
            f"has {min(lengths)}); raise --max-length"
        )
    left = len(lengths) - len(examples) - len(bad)
    counts = (0, truncated, left) if policy == "error" else (left, truncated, 0)
    found = Encoded(examples, list(rows), list(lengths), *counts, tuple(bad))
    return replace(found, skipped=found.skipped + len(bad))


def _refuse_longer(
    rows: Sequence[int], lengths: Sequence[int], max_length: int, place: Callable[[int], str]
) -> None:
    raise UserError(
        f"{len(rows)} of {len(lengths)} rows have more than max_length={max_length} tokens, the first is "
        f"{place(rows[0])} with {lengths[rows[0]]}; raise --max-length, choose the length policy drop or "
        "truncate, or leave such rows out with --on-bad-row skip"
    )


def _encoded(
    pairs: Iterable[Pair | Sequence[Pair]], tokenizer: Any
) -> Iterator[list[tuple[Pair, list[int], list[int]]]]:
    """Each pair of each conversation with the ids of its prompt and completion, many texts at a time."""
    pairs = iter(pairs)
    while chunk := list(itertools.islice(pairs, CHUNK)):
        conversations = [[p] if isinstance(p, Mapping) else list(p) for p in chunk]
        flat = [pair for turns in conversations for pair in turns]
        ids = (ids_of(tokenizer, [pair[key] for pair in flat]) for key in ("prompt", "completion"))
        both = zip(flat, *ids, strict=True)
        for turns in conversations:
            yield list(itertools.islice(both, len(turns)))


def ids_of(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The ids of each text without control tokens around it, on all cores with a fast tokenizer."""
    fast = getattr(tokenizer, "backend_tokenizer", None)
    if fast is None:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]
    fast.no_truncation()  # which its file may ask for
    fast.no_padding()
    return [found.ids for found in fast.encode_batch_fast(texts, add_special_tokens=False)]


def prompt_ids(
    template: Template, row: Mapping[str, Any], tokenizer: Any, fill: Callable[[str], str] = str
) -> list[int]:
    """BOS, every finished turn with its end, and the last prompt: the ids that training had there.

    ``fill`` changes the text of each prompt, once the row's own text is known to be good. Raises
    ``UserError`` for a control token in the row's own text.
    """
    control.require_bos(tokenizer)
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


def length_counts(lengths: Sequence[int], max_length: int) -> dict[str, int]:
    """How many examples have how many tokens, ``{"1-8": 12, …}``; the last of those over ``max_length``."""
    step = max(1, -(-min(max(lengths), max_length) // 8))
    edges = list(range(step, min(max(lengths), max_length) + step, step))
    edges[-1] = min(edges[-1], max_length)
    bounds = [*zip([1, *(e + 1 for e in edges)], edges, strict=False)]
    counts = {f"{a}-{b}": sum(a <= n <= b for n in lengths) for a, b in bounds}
    over = sum(n > max_length for n in lengths)
    return counts | ({f">{max_length}": over} if over else {})


def histogram(lengths: Sequence[int], max_length: int, width: int = 40) -> str:
    """``length_counts`` as bars."""
    counts = length_counts(lengths, max_length)
    most = max(counts.values())
    return "\n".join(
        f"  {label:>9} tokens {count:>7,} {'█' * round(width * count / most)}"
        for label, count in counts.items()
    )
