"""What a model will read: the rows, its template, supervised answers, and what ends one."""

import itertools
import statistics
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ft.data.doubles import doubles
from ft.data.rows import Rows
from ft.errors import UserError
from ft.models import tokenizer as reader
from ft.plan.case import SAMPLE, Case, Seen, share, some
from ft.text import chat_template, control, native
from ft.text.prompts import INSTRUCTION
from ft.text.template import Template
from ft.text.tokens import IGNORE

TURNS = 200  # conversations that are rendered by the chat template as well
CARRY = {"image", "images", "audio", "audios", "video", "videos", "tools"}  # columns of meaning


def data(case: Case) -> Seen:
    """The rows of each split: bad ones, doubles, what a held-out row asks too, columns that no one reads."""
    case.splits = dict(case.rows())
    case.sample = {
        split: rows if case.everything else rows.sample(SAMPLE, seed=0)
        for split, rows in case.splits.items()
    }
    texts = [" + ".join(f"{len(rows):,} {split}" for split, rows in case.splits.items())]
    status = "ok"
    skipped = sum(rows.skipped for rows in case.splits.values())
    # else they are shards of text
    case.doubles = twice, shared = doubles(case.splits) if case.reads else (0, 0)
    if skipped:
        texts.append(f"{skipped:,} bad rows skipped")
    if twice or shared:
        status = "WARN"
        texts.append(f"{twice:,} duplicates; {shared:,} training rows ask a held-out question")
        if "drop_duplicates" in case.settings:
            texts.append("--drop-duplicates leaves them out")
    if found := [] if case.reads else _seen_before(case.splits):
        status = "WARN"
        texts.append(
            f"{', '.join(found)} to train on and to validate on: its loss will say nothing"
        )
    if ignored := list(
        dict.fromkeys(name for rows in case.splits.values() for name in rows.ignored)
    ):
        named = ", ".join(f'"{name}"' for name in ignored)
        texts.append(f"column{'s' * (len(ignored) > 1)} {named} ignored")
        if CARRY & set(ignored):
            status = "WARN"
    return Seen(status, "data", "; ".join(texts))


def _seen_before(splits: Mapping[str, Rows]) -> list[str]:
    """The shards to validate on that are trained on too, in whole or in the same part."""
    learnt: dict[str, set[str]] = {}
    for row in splits.get("train", ()):
        learnt.setdefault(row["shard"], set()).add(row["part"])
    held = ((row["shard"], row["part"]) for row in splits.get("valid", ()))
    return [n for n, part in held if n in learnt and (not part or {part, ""} & learnt[n])]


def template(case: Case) -> Seen | None:
    """How a row reads: as the model's own turns where they are asked for, and fit for this model."""
    assert case.folder
    if case.reads is None:
        return None
    case.tokenizer = reader.read(case.folder)
    control.require_bos(case.tokenizer)
    case.template = case.reads(case.tokenizer)
    texts, odd = [f"{case.template.name}"], _odd(case, case.template)
    rows = (row for rows in (case.sample or {}).values() for row in rows)
    if case.encode:  # rows that are no conversations: documents, or two answers to one prompt
        pass
    elif case.template.name == "chat" and case.tokenizer.chat_template:
        plain = (row for row in rows if not native.reads(case.template, row))
        talks = [_talk(row) for row in itertools.islice(plain, TURNS)]
        same, refused = _compare(case.template, talks, case.tokenizer)
        texts[0] = (
            f"the model's own turns; equals apply_chat_template on {same:,} rows, also to generate"
            if talks
            else "the model's own turns, tools and thoughts as apply_chat_template has them"
        )
        if refused:
            texts.append(
                f"it refuses {refused:,} more: their system messages are put before the first question"
            )
    elif case.template.name in INSTRUCTION:
        written = chat_template.write(case.template, case.tokenizer.eos_token)
        asked = (row["messages"] for row in rows if "messages" in row)
        _compare(
            case.template, [*itertools.islice(asked, TURNS)] or [_TALK], case.tokenizer, written
        )
        texts.append("saved as a chat template that renders the same")
    return Seen("WARN" if odd else "ok", "template", "; ".join(texts + odd))


_TALK = [{"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Answer."}]


def _talk(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row as a conversation that ends with an answer; a prompt alone gets one."""
    if "prompt" in row:  # of images
        row = {"instruction": row["prompt"], "response": row["completion"]}
    messages = native.messages_of(row)
    return messages + [{"role": "assistant", "content": "."}] * (messages[-1]["role"] == "user")


def _compare(
    template: Template, talks: Sequence[Any], tokenizer: Any, written: str | None = None
) -> tuple[int, int]:
    """Conversations that read alike in both ways, and those that the chat template refuses.

    Of a template that is ``written`` as Jinja the questions are compared. Raises ``UserError`` at one that
    reads differently.
    """
    from jinja2 import TemplateError

    number = refused = 0
    options = {"chat_template": written} if written else {}
    for talk in talks:
        first = 2 + (talk[0]["role"] == "system")
        try:
            for given, ask in ((talk[: first - 1] if written else talk[:-1], True), (talk, False)):
                if written and not ask:
                    continue
                rendered = tokenizer.apply_chat_template(
                    given, tokenize=False, add_generation_prompt=ask, **options
                )
                if written:
                    *_, last = template.turns({"messages": given})
                    read = tokenizer.bos_token + last["prompt"]
                else:
                    read = chat_template.text(template, given, tokenizer.bos_token)
                if rendered != read:
                    raise UserError(
                        f"the chat template renders {rendered!r}, and training would read {read!r}"
                    )
        except TemplateError:  # such as of a system message that it has no place for
            refused += 1
            continue
        number += 1
    return number, refused


def _odd(case: Case, template: Template) -> list[str]:
    """What is odd about this template with this model, from the model's name and its end tokens."""
    tuned = instruction_tuned(case)
    if tuned is False and template.name == "chat":
        return [
            f"{case.model} is a base model: it has never seen the turns' {template.end} and learns it "
            "from few rows; give the -it model, or --template dolly"
        ]
    if tuned and template.name in INSTRUCTION and "template" in case.settings:
        return [f"{case.model} is instruction-tuned: its own turns are --template chat"]
    return []


def instruction_tuned(case: Case) -> bool | None:
    """Whether a model has been tuned to follow instructions; none where nothing tells."""
    name = case.model.rpartition("/")[2].lower()
    if name == "embedded":
        return False
    if "-it" in name or "instruct" in name:
        return True
    return False if name.startswith(("gemma-", "recurrentgemma-", "codegemma-")) else None


def supervised(case: Case) -> Seen:
    """The share of tokens that is learnt, and rows of whose answer nothing can be seen."""
    assert case.encoded
    assert case.sample
    assert case.template
    train = case.encoded["train"]
    labels = [label for example in train.examples for label in example["labels"]]
    part = share(sum(label != IGNORE for label in labels), len(labels))
    rows = case.sample["train"]
    empty = [
        rows.place(i)
        for i, row in enumerate(rows)
        if not any(map(_visible, _answers(row, case.template)))
    ]
    if len(empty) == len(rows):
        raise UserError(
            f"no answer of {len(rows):,} rows has a character that can be seen{some(empty)}: only the end "
            "token would be learnt; is the right column the answer?"
        )
    if empty:
        return Seen(
            "WARN",
            "supervised",
            f"{part} of tokens; {len(empty):,} of {len(rows):,} rows teach the end "
            f"token alone{some(empty)}",
        )
    median = statistics.median(sum(x != IGNORE for x in e["labels"]) for e in train.examples)
    return Seen(
        "ok",
        "supervised",
        f"{part} of tokens, {median:g} in the middle row; no row with the end token alone",
    )


def _answers(row: Mapping[str, Any], template: Template) -> Iterator[str]:
    """The texts of a row that its answers are made of."""
    if "messages" in row:
        for m in row["messages"]:
            if m["role"] == "assistant":
                yield str(m.get("content") or m.get("tool_calls") or "")
        return
    if given := [row[name] for name in ("chosen", "rejected", "completion") if name in row]:
        yield from map(str, given)  # of preferences and images
        return
    yield "".join(str(row.get(field, "")) for field in sorted(answer_fields(template)))


def answer_fields(template: Template) -> set[str]:
    """The fields that an answer is made of."""
    return {field for _, field, *_ in template._pieces("completion") if field}


def _visible(text: str) -> bool:
    """Whether a text has a character that is neither space nor control nor of no width."""
    return any(unicodedata.category(c)[0] not in "ZCM" for c in text)


def stop(case: Case) -> Seen:
    """What ends an answer when the model is used, and answers that would be cut there."""
    assert case.template
    assert case.folder
    template, tokenizer = case.template, case.tokenizer
    named = reader.read_json(case.folder / "generation_config.json").get("eos_token_id") or []
    ids = set(named if isinstance(named, list) else [named])
    ids |= {
        tokenizer.eos_token_id,
        tokenizer.convert_tokens_to_ids(template.end or tokenizer.eos_token),
    }
    text = f"{sorted(i for i in ids if i is not None)}"
    text += f", and the text {', '.join(map(repr, template.stop))}" * bool(template.stop)
    text += ", written at merge and export"
    cut = [
        rows.place(i)
        for rows in (case.sample or {}).values()
        for i, row in enumerate(rows)
        if any(end in answer.strip() for answer in _answers(row, template) for end in template.stop)
    ]
    if cut:
        text += f"; {len(cut):,} answers of the sample hold that text, and end there{some(cut)}"
    return Seen("WARN" if cut else "ok", "stop", text)
