"""Files of pairs and texts that went wrong elsewhere, and what is right of each."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from support import tiny

from ft.cli import translate
from ft.data.instructions import instructions
from ft.data.tables import open_pairs, pairs
from ft.data.translation import one_line, translation_splits
from ft.errors import UserError
from ft.text import prompts, tokens


def pandas_quoted(file: Path) -> None:
    """Quotes are read as they were written: none is learnt doubled."""
    rows = pairs(file)
    assert rows.origin.endswith("(read as quoted)")
    assert [tuple(row.values()) for row in rows] == [
        ('He said "hi" to me', 'Il m\'a dit "salut"'),
        ("plain", "simple"),
        ('"Quoted whole"', '"Cité"'),
    ]


def alpaca(file: Path) -> None:
    (first, *_) = instructions(file)
    assert (first["instruction"], first["response"]) == ('Say "0", please', 'He said "ok"')


def multiline(file: Path) -> None:
    """What is learnt is what can be answered: no line break ends an answer of this run."""
    splits = translation_splits(data=str(file), valid_data=str(file), test_data=str(file))
    template = prompts.translation_of("en-fr", one_line=one_line(splits))
    assert template.stop == ()
    assert template.trim(splits["train"][0]["target"]) == "Bonjour.\nComment ça va ?"


def duplicate_header(file: Path) -> None:
    with pytest.raises(UserError, match=r"dupheader\.csv:1: the header names the column 'target'"):
        pairs(file, on_bad_row="skip")


def utf16(file: Path) -> None:
    assert pairs(file).rows == [{"source": "Hello", "target": "Bonjour"}]


def aligned(file: Path) -> None:
    both = f"{file.parent / 'g.en.gz'}:{file.parent / 'g.fr.gz'}"
    assert gzip.decompress(file.read_bytes()).count(b"\n") == 2
    assert [tuple(row.values()) for row in open_pairs(both)] == [("one", "un"), ("two", "deux")]


def json_lines(file: Path) -> None:
    rows = instructions(file)
    assert [row["messages"][0]["content"] for row in rows] == [f"Question {i}?" for i in range(4)]


def own_pairs(file: Path) -> None:
    splits = translation_splits(data=str(file), language_pair="en-de")
    assert [len(rows) for rows in splits.values()] == [2, 1, 1]
    template = prompts.translation_of("en-de", one_line=one_line(splits))
    encoded = tokens.encode_rows(splits["train"], template, tiny.tokenizer(), max_length=999)
    shown = tokens.show(encoded.examples[0], tiny.tokenizer(), colour=False)
    assert shown.startswith("<bos>Translate this from English into German:\n")
    assert f"\n⟦{splits['train'][0]['target']}<eos>⟧" in shown


def lines(file: Path) -> None:
    found, _ = translate._lines(file)
    assert len(found) == 4


def control_tokens(file: Path) -> None:
    found, where = translate._lines(file)
    with pytest.raises(UserError, match=r"control_tokens\.txt:2, source: .*'<eos>'"):
        translate._refuse_control_tokens(found, where, tiny.tokenizer())


CASES: dict[str, Callable[[Path], None]] = {
    "pandas_quoted.tsv": pandas_quoted,
    "alpaca.tsv": alpaca,
    "pairs_multiline.jsonl": multiline,
    "dupheader.csv": duplicate_header,
    "utf16.csv": utf16,
    "g.en.gz": aligned,
    "g.fr.gz": aligned,
    "lines.json": json_lines,
    "own_translation_pairs.jsonl": own_pairs,
    "translate_lines_u2028.txt": lines,
    "translate_control_tokens.txt": control_tokens,
}
