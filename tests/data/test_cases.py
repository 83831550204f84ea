"""Inputs that went wrong elsewhere, each with what is right: a file in the folder without an entry here fails."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SHARED
from data import cases_pairs, cases_preferences, cases_sources
from support import gemma_tokens, tiny

from ft.data.instructions import instructions, readable
from ft.data.instructions import splits as drawn
from ft.data.rows import Rows
from ft.errors import UserError
from ft.text import chat_template, prompts, tokens

HERE = Path(__file__).parents[1] / "fixtures" / "cases"
ORIGINALS = SHARED / "cases" / "data"
LONG = {"max_length": 10**6}


def whole(file: Path) -> Rows:
    """All rows of a case, which are good."""
    rows = instructions(file)
    assert len(rows) == len(file.read_text(encoding="utf-8").splitlines())
    return rows


def chat_ids(rows: Rows) -> None:
    """The chat template's own ids of every row, and its answers learnt."""
    tokenizer = tiny.tokenizer()
    template = prompts.by_name("chat", tokenizer)
    encoded = tokens.encode_rows(rows, template, tokenizer, **LONG)
    for row, example in zip(rows, encoded.examples, strict=True):
        assert example["input_ids"] == tokenizer.apply_chat_template(row["messages"])["input_ids"]


def system_column(file: Path) -> None:
    rows = whole(file)
    first = {"role": "system", "content": "Answer only in Latin."}
    assert all(row["messages"][0] == first for row in rows)
    assert rows.ignored == ()
    chat_ids(rows)


def native_tools(file: Path) -> None:
    rows = whole(file)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    for name, jinja in gemma_tokens.of_trl().items():
        tokenizer = gemma_tokens.tokenizer_of(jinja.read_text())
        template = chat_template.read(tokenizer)
        by_prompt = "gemma4" not in name and "diffusion" not in name
        if by_prompt:
            chat_template.install(tokenizer, template)
        encoded = tokens.encode_rows(rows, template, tokenizer, **LONG)
        for record, example in zip(records, encoded.examples, strict=True):
            wanted = tokenizer.apply_chat_template(record["messages"], tools=record["tools"])
            assert example["input_ids"] == wanted["input_ids"]
            learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
            calls = record["messages"][-1].get("tool_calls", [])
            call = '{"name": "get_weather", ' if by_prompt else "<|tool_call>call:get_weather"
            assert learnt.count(call) == len(calls)
            assert "declaration" not in learnt
            assert "description" not in learnt
    with pytest.raises(UserError, match=r":1: template 'dolly' has no place for tools"):
        readable({"train": rows}, prompts.INSTRUCTION["dolly"])


def masked_turn(file: Path) -> None:
    rows, tokenizer = whole(file), tiny.tokenizer()
    for name in ("chat", "dolly"):
        encoded = tokens.encode_rows(rows, prompts.by_name(name, tokenizer), tokenizer, **LONG)
        for example in encoded.examples:
            learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
            assert learnt.startswith("Right ")
            assert "WRONG draft" in tokenizer.decode(example["input_ids"])


def thoughts(file: Path) -> None:
    rows = whole(file)
    shown = 0
    for jinja in gemma_tokens.of_trl().values():
        tokenizer = gemma_tokens.tokenizer_of(jinja.read_text())
        template = chat_template.read(tokenizer)
        if "thinking_gate" not in jinja.read_text():  # of Gemma 4's, those before July 2026
            with pytest.raises(
                UserError, match=r"\.jsonl:1: message 2: .*no place for its thought"
            ):
                tokens.encode_rows(rows, template, tokenizer, **LONG)
            continue
        shown += 1
        encoded = tokens.encode_rows(rows, template, tokenizer, **LONG)
        for row, example in zip(rows, encoded.examples, strict=True):
            wanted = tokenizer.apply_chat_template(row["messages"])["input_ids"]
            assert example["input_ids"] == wanted
            learnt = tokenizer.decode([i for i in example["labels"] if i != tokens.IGNORE])
            assert "thought\nadd the numbers\n" in learnt
        masked = tokens.encode_rows(rows, template, tokenizer, **LONG, supervise_thinking=False)
        assert not any("add" in tokenizer.decode(_learnt(e)) for e in masked.examples)
    assert shown == 3


def _learnt(example: tokens.Example) -> list[int]:
    return [i for i in example["labels"] if i != tokens.IGNORE]


def history(file: Path) -> None:
    for i, row in enumerate(whole(file)):
        texts = ["Be brief.", "How is the weather in Oslo in summer?", "Mild."]
        texts += [f"And in winter {i}?", "Cold."]
        roles = ("system", "user", "assistant", "user", "assistant")
        assert [(m["role"], m["content"]) for m in row["messages"]] == [
            *zip(roles, texts, strict=True)
        ]


def refused(message: str) -> Callable[[Path], None]:
    def case(file: Path) -> None:
        with pytest.raises(UserError, match=message):
            instructions(file)

    return case


def generation_prompt(file: Path) -> None:
    tokenizer = gemma_tokens.tokenizer_of(file.read_text())
    template = prompts.by_name("chat", tokenizer)
    messages = [
        {"role": role, "content": text}
        for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    for n, system in itertools.product((1, 3), (False, True)):
        talk = [{"role": "system", "content": "s"}] * system + messages[:n]
        wanted = tokenizer.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
        assert tokens.prompt_ids(template, {"messages": talk}, tokenizer) == wanted
        row = {"messages": [*talk, messages[n]]}
        (example,) = tokens.encode_rows([row], template, tokenizer, **LONG).examples
        assert example["input_ids"][: len(wanted)] == wanted  # trained as asked
        assert example["labels"][: len(wanted)].count(tokens.IGNORE) >= len(wanted) - 2 * (n > 1)
    chat_template.install(tokenizer, template)
    assert tokenizer.chat_template == file.read_text()


def control_token(file: Path) -> None:
    splits = drawn(file, valid_rows=100, test_rows=100, seed=42)
    tokenizer = gemma_tokens.tokenizer_of(tiny.CHAT_TEMPLATE)
    template = prompts.by_name("chat", tokenizer)
    with pytest.raises(UserError, match=rf"{file.name}:700, message 1 \(user\): .*on-bad-row skip"):
        tokens.encode_splits(splits, template, tokenizer, **LONG)
    splits = drawn(file, valid_rows=100, test_rows=100, seed=42, on_bad_row="skip")
    left, found = tokens.encode_splits(splits, template, tokenizer, **LONG)
    assert sum(e.skipped for e in found.values()) == 1
    assert sum(map(len, left.values())) == sum(map(len, splits.values())) - 1
    total = sum(map(len, splits.values()))
    assert sum(len(e.examples) for e in found.values()) == total - 1


def template_with_bos(file: Path) -> None:
    tokenizer = tiny.tokenizer()
    template = prompts.by_name(str(file), tokenizer)
    with pytest.raises(UserError, match=r"^template 'bos', prompt: it has '<bos>'.*from the templ"):
        tokens.encode_rows([{"instruction": "a", "response": "b"}], template, tokenizer, **LONG)


def empty_system(file: Path) -> None:
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in whole(file))


def parts(file: Path) -> None:
    rows = whole(file)
    assert [m["content"] for m in rows[1]["messages"]] == ["Q 1", "A 1"]
    chat_ids(rows)


def ends_with_a_question(file: Path) -> None:
    with pytest.raises(UserError, match=r":1: message 3: the conversation ends with a user turn"):
        instructions(file)
    rows = instructions(file, on_bad_row="skip")
    assert [m["content"] for m in rows[2]["messages"]] == ["a2", "b"]
    assert rows.skipped == 4


def unused_number(file: Path) -> None:
    assert whole(file).ignored == ("category",)


def no_context(file: Path) -> None:
    template = prompts.without_tokenizer(str(file))
    rows = instructions(file.with_name("alp_ctx.jsonl"))
    with pytest.raises(UserError, match=r"alp_ctx\.jsonl:1: .*--ignore-fields (system|context)"):
        readable({"train": rows}, template)
    told = prompts.without_tokenizer(str(file), ("system", "context"))
    assert readable({"train": rows}, told)["train"].rows == rows.rows


def context(file: Path) -> None:
    fields = {"instruction", "context", "response", "system"}
    assert all(row.keys() == fields for row in whole(file))


def stop_in_answer(file: Path) -> None:
    splits = {"train": whole(file)}
    dolly = prompts.INSTRUCTION["dolly"]
    with pytest.raises(UserError, match=r"4 rows .*'### End'.* the first is .*:1: .*--allow-stop"):
        readable(splits, dolly)
    assert readable(splits, dolly, allow_stop_in_answer=True) == splits
    assert readable(splits, prompts.INSTRUCTION["alpaca"]) == splits


CASES: dict[str, Callable[[Path], None]] = {
    "messages_system_col.jsonl": system_column,
    "toolcall_with_content.jsonl": native_tools,
    "tools_column_only.jsonl": native_tools,
    "weight0.jsonl": masked_turn,
    "reasoning_content.jsonl": thoughts,
    "alpaca_history.jsonl": history,
    "image_token.jsonl": refused(r":1: .*images: .*recipes/vision_lora\.py"),
    "gemma4_large_like.jinja": generation_prompt,
    "control_line700.jsonl": control_token,
    "bos.yaml": template_with_bos,
    "sharegpt_empty_system.jsonl": empty_system,
    "content_parts.jsonl": parts,
    "ends_user.jsonl": ends_with_a_question,
    "int_category.jsonl": unused_number,
    "noctx.yaml": no_context,
    "alp_ctx.jsonl": context,
    "stop_in_answer.jsonl": stop_in_answer,
}
for own in (cases_pairs, cases_preferences, cases_sources):
    CASES |= own.CASES


def file_of(name: str) -> Path:
    """A case's file: the copy that every clone has, or the original beside the repository."""
    found = next((place / name for place in (HERE, ORIGINALS) if (place / name).exists()), None)
    if found is None:
        pytest.skip(f"no {name} in {HERE} or {ORIGINALS}")
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_went_wrong_elsewhere_is_right(name):
    CASES[name](file_of(name))


def test_every_file_of_the_cases_has_an_entry():
    there = {file.name for place in (HERE, ORIGINALS) if place.is_dir() for file in place.iterdir()}
    assert there - CASES.keys() == set()


def test_a_copy_is_the_original():
    for file in HERE.iterdir():
        if (ORIGINALS / file.name).exists():
            assert file.read_bytes() == (ORIGINALS / file.name).read_bytes()
