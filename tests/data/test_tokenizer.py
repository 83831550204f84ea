"""A tokenizer trained on a corpus: SentencePiece's ids, nothing lost, and clear mistakes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ft.data import documents, shards, tokenizer
from ft.data.token_stream import Reader
from ft.errors import UserError

PROSE = [
    "The cat sleeps on the table this morning, and the dog sleeps below the table.",
    "    indented   text,  with runs    of spaces, as in code\n        and deeper\n\nand ends ",
    "Ce matin, le chat dort sur la table ; à midi, l'été. 東京に行きました。東京は大きい。",
    "1999 2013 12,345.67 a a a aa aaa aaaa aaaaa banana bananas anan ana nanana (a) [b] {c}",
    "A literal <unk>, a literal <0x41>, a <s>, and the mark <|endoftext|> in a sentence.",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer")
    rows = [json.dumps({"text": f"{text} {word}"}) for text in PROSE for word in "abcdefgh"]
    (place / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    said = tokenizer.train([str(place / "corpus.jsonl")], place / "out", vocab_size=600)
    assert "600 pieces" in said
    assert "are SentencePiece's" in said
    return place / "out"


@pytest.fixture(scope="module")
def both(made):
    from transformers import AutoTokenizer

    reference = sentencepiece.SentencePieceProcessor(model_file=str(made / "tokenizer.model"))
    return AutoTokenizer.from_pretrained(made), reference


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


UGLY = [
    *PROSE,
    "",
    " ",
    "  \t \t\t x",
    "\r\n\r\na\rb\r\n",
    "\n\n\n\n  \n \n",
    "nul \0 and \x01\x7f\x85\u2028 controls",
    "👩‍👩‍👧‍👦🏳️‍🌈e\u0301\u0301\u0301 zero\u200bwidth \u00a0nbsp \ufeff mark",
    "a" * 3000,
    "ab" * 1000 + " " * 1000 + "\n" * 100,
    "<|endoftext|><|endoftext|> <|endoftext|x> <unk><0x0A><0x41>,<0xE2>",
    "ﬁ ½ Å Å ｆｕｌｌ",  # what a normalisation would change
    "\U0010ffff\ue000\ufffe",
]


@pytest.mark.parametrize("text", UGLY, ids=range(len(UGLY)))
def test_ids_are_sentencepieces_and_nothing_is_lost(both, text):
    tokenizer, reference = both
    found = ids(tokenizer, text)
    assert found == reference.encode(text)
    assert tokenizer.decode(found, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet=st.sampled_from("ab nt  \n\t.é京😀<|0x41>▁")) | st.text())
@example("▁ ▁▁ a▁b")
def test_any_text_at_all(both, text):
    tokenizer, reference = both
    found = ids(tokenizer, text)
    assert found == reference.encode(text)
    assert tokenizer.decode(found) == text.replace("▁", " ")  # SentencePiece's own sign for it


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from([*PROSE[0].split(), " ", "  ", "\n", "\n\n"]), min_size=1))
def test_long_documents_are_cut_where_no_token_changes(both, words):
    text = " ".join(words)
    at = documents._border(text.encode())
    assert ids(both[0], text[:at]) + ids(both[0], text[at:]) == ids(both[0], text)


def test_the_end_of_text_is_one_token_and_a_line_break_too(both):
    tokenizer, reference = both
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert ids(tokenizer, "a<|endoftext|>\n\n") == [*ids(tokenizer, "a"), end, *[end + 1] * 2]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (end,) * 3
    assert reference.id_to_piece(end) == "<|endoftext|>"
    assert len(tokenizer) == reference.get_piece_size() == 600
    assert ids(tokenizer, "e") == tokenizer("e")["input_ids"]  # no BOS of its own
    across = [p for i in range(600) if "\n" in (p := reference.id_to_piece(i)) and p != "\n"]
    assert across == []


def test_a_corpus_cannot_fill_any_vocabulary(tmp_path):
    source = tmp_path / "a.txt"
    source.write_text("a few words", encoding="utf-8")
    for size, said in (
        (8000, r"too small for a vocabulary of 8,000: it fills \d+ at most; set --vocab-size"),
        (100, r"a vocabulary of 100 has no room .* it needs at least \d+; set --vocab-size"),
    ):
        with pytest.raises(UserError, match=said):
            tokenizer.train([str(source)], tmp_path / "out", vocab_size=size)
        assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_bad_input_leaves_nothing_behind(tmp_path):
    source, out = tmp_path / "a.lines", tmp_path / "out"
    source.write_bytes(b"fine\n\xff\n")
    with pytest.raises(UserError, match="a.lines:2: invalid UTF-8"):
        tokenizer.train([str(source)], out)
    source.write_bytes(b"")
    with pytest.raises(UserError, match="no text in .*a.lines"):
        tokenizer.train([str(source)], out)
    assert not out.exists()
    out.mkdir()
    with pytest.raises(UserError, match="out already exists"):
        tokenizer.train([str(source)], out)


def test_the_command(tmp_path):
    source = tmp_path / "a.lines"
    source.write_text("\n".join(PROSE * 5).replace("\n", "\\n"), encoding="utf-8")
    words = ["tokenizer", "train", str(source), "--vocab-size", "350", "--out", f"{tmp_path}/out"]
    done = subprocess.run([sys.executable, "-m", "ft", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tmp_path}/out: 350 pieces")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"tokenizer.json", "tokenizer.model", "tokenizer_config.json"}
    again = subprocess.run([sys.executable, "-m", "ft", *words], capture_output=True, text=True)
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "already exists" in again.stderr


@pytest.mark.real
@pytest.mark.parametrize("name", ["wikitext-2", "c4-sample"])
def test_every_text_of_the_real_corpora(both, shared, name):
    """The tokenizer is another corpus's, so that rare characters and unknown words abound."""
    tokenizer, reference = both
    reader = Reader(shards.find([str(shared / "data" / name)]), text_field="prefix+gold_completion")
    compared = 0
    for number, job in enumerate(reader.jobs()):
        if number % 5 == 0:  # a fifth of it, to stay short
            found = tokenizer(job.texts, add_special_tokens=False)["input_ids"]
            assert found == reference.encode(job.texts)
            compared += sum(map(len, job.texts))
    assert compared > 300_000
