"""What is right of the inputs that hold preferences, by the file's name."""

from collections.abc import Callable
from pathlib import Path

from support import tiny

from ft.data.preferences import preferences
from ft.rewards.drawn import encode_preferences
from ft.text.prompts import INSTRUCTION
from ft.text.tokens import encode_rows


def rows_of_texts(file: Path) -> None:
    """Pairs for any run; each answer's ids are those of a training on it."""
    rows = preferences(file)
    assert [row["instruction"] for row in rows] == ["Name a colour.", "Name a fruit."]
    template, tokenizer = INSTRUCTION["dolly"], tiny.tokenizer()
    found = encode_preferences(rows, template, tokenizer)
    for name in ("chosen", "rejected"):
        learnt = [row | {"response": row[name]} for row in rows]
        examples = encode_rows(learnt, template, tokenizer, max_length=1000).examples
        for pair, example in zip(found.pairs, examples, strict=True):
            assert (
                pair["prompt_ids"] + pair[f"{name}_ids"]
                == example["input_ids"][: len(pair["prompt_ids"]) + len(pair[f"{name}_ids"])]
            )


CASES: dict[str, Callable[[Path], None]] = {"preference_rows.jsonl": rows_of_texts}
