"""The ids that a model will read: one BOS, an end after each answer, and what their number does to long rows."""

import collections
import itertools
import sys
from collections.abc import Sequence
from typing import Any

from ft.errors import UserError
from ft.plan.case import Case, Seen, share
from ft.plan.check_text import answer_fields
from ft.text import bad_rows, documents, tokens
from ft.text.template import OPTIONAL
from ft.text.tokens import IGNORE


def encoded(case: Case) -> Seen | None:
    """Ids of the sample: one BOS that comes first, and an end token that is learnt after each answer."""
    assert case.template
    assert case.sample
    left_out = _control_tokens(case)
    if "train_vision" in case.settings:
        return Seen("--", "tokens", "images are counted with the model's own processor: `ft show`")
    row = case.sample["train"][0]
    lacking = (
        set()
        if case.encode or "messages" in row
        else answer_fields(case.template) - {*row, *OPTIONAL}
    )
    if lacking:
        return Seen("--", "tokens", f"not looked at: rows have no {', '.join(sorted(lacking))} yet")
    parity = case.settings.get("second_bos", False)
    if case.encode:
        case.encoded = {
            split: case.encode(rows, case.template, case.tokenizer, max_length=case.length)
            for split, rows in case.sample.items()
        }
        said, most = ["as the recipe encodes them"], case.length or 0
        said += [f"{split}: {found.summary(most)}" for split, found in case.encoded.items()]
        return Seen("ok", "tokens", "; of the sample ".join(said) + left_out)
    case.encoded = {
        split: tokens.encode_rows(rows, case.template, case.tokenizer, **_options(case))
        for split, rows in case.sample.items()
    }
    tokenizer, end = case.tokenizer, case.template.end or case.tokenizer.eos_token
    bos, stop = tokenizer.bos_token_id, tokenizer.convert_tokens_to_ids(end)
    answers = ended = several = rows = 0
    for found in case.encoded.values():
        for example in found.examples:
            ids, labels = example["input_ids"], example["labels"]
            spans = [
                i
                for i in range(1, len(ids))
                if labels[i] != IGNORE
                and (i + 1 == len(ids) or labels[i + 1] == IGNORE or labels[i] == stop)
            ]
            answers += len(spans)
            ended += sum(labels[i] == stop for i in spans)
            several += ids[0] != bos or ids.count(bos) != 1
            rows += 1
    if several and not parity:
        raise UserError(
            f"{several:,} of {rows:,} rows do not start with their one {tokenizer.bos_token}"
        )
    if ended < answers:
        raise UserError(f"{answers - ended:,} of {answers:,} answers have no {end} that is learnt")
    start = "a second BOS before the answer, as asked" if parity else "one BOS in every row"
    what = "answers" if case.everything else "answers of a sample"
    text = f"{start}; {ended:,} of {answers:,} {what} end in {end}, supervised"
    return Seen("ok", "tokens", text + left_out)


def _control_tokens(case: Case) -> str:
    """How many of all rows hold a control token and are skipped. Raises ``UserError`` where that is an error."""
    splits = (case.splits or {}).values()
    looks = [bad_rows.Good(rows, case.tokenizer, lambda _: None) for rows in splits]
    collections.deque(itertools.chain(*looks), maxlen=0)
    found = sum(len(good.bad) for good in looks)
    return f"; {found:,} rows that hold a control token are skipped" if found else ""


def lengths(case: Case) -> Seen:
    """How long rows are, what the length policy does to the longer ones, and what other lengths would do."""
    assert case.encoded
    found, limit = sorted(_lengths(case, "train")), case.length
    p50, p95 = (found[min(len(found) - 1, len(found) * q // 100)] for q in (50, 95))
    text = f"p50 {p50:,}, p95 {p95:,}, longest {found[-1]:,}"
    over = sum(n > limit for n in found) if limit else 0
    policy = case.settings.get("length_policy", "drop")
    if case.encode is documents.encode and over:
        return Seen("ok", "length", f"{text}; longer ones are read in windows of {limit:,}")
    if over and limit:
        fates = {"drop": "would be DROPPED", "truncate": "would LOSE THEIR ENDING"}
        others = [n for n in (limit * 3 // 2, 2 * limit) if n < found[-1]]
        ways = [f"--max-length {n}: {share(sum(k > n for k in found), len(found))}" for n in others]
        text += (
            f"; {share(over, len(found))} over {limit:,} {fates.get(policy, 'refused')} "
            f"({', '.join([*ways, f'{found[-1]}: 0%'])})"
        )
    for split in () if case.encode or policy != "drop" else case.encoded:
        if limit and min(every := _lengths(case, split)) > limit:
            why = f": {text}" if split == "train" else ""
            raise UserError(
                f"all {len(every):,} {split} rows have more than max_length={limit} tokens{why}; raise "
                "--max-length"
            )
    if not limit or not over:
        return Seen("ok", "length", f"{text}; all within {limit:,}" if limit else text)
    if policy == "error":
        raise UserError(f"{text}; raise --max-length")
    return Seen("WARN", "length", text)


def _lengths(case: Case, split: str) -> Sequence[int]:
    """Tokens of the sample's rows; of all rows, where none of the sample is short enough."""
    assert case.encoded
    assert case.splits
    found, limit = case.encoded[split].lengths, case.length
    rows = case.splits[split]
    if case.encode or not limit or min(found) <= limit or len(found) == len(rows):
        return found
    options = _options(case)
    return tokens.encode_rows(rows, case.template, case.tokenizer, **options).lengths  # pyright: ignore


def _options(case: Case) -> dict[str, Any]:
    """How the recipe would encode, but for what it cuts."""
    thinks, twice = (
        case.settings.get("supervise_thinking", True),
        case.settings.get("second_bos", False),
    )
    return {"max_length": sys.maxsize, "seed_parity": twice, "supervise_thinking": thinks}
