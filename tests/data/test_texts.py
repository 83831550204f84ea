"""Plain text of every kind of file, and which documents are held out."""

import gzip
import json

import pytest

from ft.data import texts
from ft.errors import UserError

DOCUMENTS = ["First.\nIts second line.", "Zweites, größer.", "Third " * 9000]


@pytest.fixture
def jsonl() -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in DOCUMENTS).encode()


def read(place) -> list[str]:
    return [row["text"] for row in texts.texts(str(place))]


def test_the_same_documents_from_every_kind_of_file(tmp_path, jsonl):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "a.jsonl").write_bytes(jsonl)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (tmp_path / "c.json").write_text(json.dumps([{"text": t} for t in DOCUMENTS]))
    pyarrow.parquet.write_table(pyarrow.table({"text": DOCUMENTS}), tmp_path / "d.parquet")
    for number, text in enumerate(DOCUMENTS):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / f"folder/{number}.txt").write_text(text)
    for name in ("a.jsonl", "b.jsonl.gz", "c.json", "d.parquet", "folder"):
        assert read(tmp_path / name) == DOCUMENTS, name


def test_sources_are_mixed(tmp_path, jsonl):
    (tmp_path / "a.jsonl").write_bytes(jsonl)
    (tmp_path / "b.lines").write_text("one\ntwo\nthree\n")
    rows = texts.texts(f"{tmp_path}/a.jsonl,{tmp_path}/b.lines=0.25")
    assert list(rows.by_source().values()) == [3, 1]


def test_held_out_documents_are_drawn_or_given(tmp_path, jsonl):
    (tmp_path / "a.jsonl").write_bytes(jsonl)
    (tmp_path / "b.lines").write_text("one\ntwo\n")
    drawn = texts.splits(f"{tmp_path}/a.jsonl", valid_rows=1, test_rows=1, seed=1)
    assert sorted(row["text"] for rows in drawn.values() for row in rows) == sorted(DOCUMENTS)
    given = texts.splits(
        f"{tmp_path}/a.jsonl", test_data=f"{tmp_path}/b.lines", valid_rows=1, test_rows=9, seed=1
    )
    assert [len(rows) for rows in given.values()] == [2, 1, 2]
    with pytest.raises(UserError, match=r"3 documents are to be held out of the 3.*one document"):
        texts.splits(f"{tmp_path}/a.jsonl", valid_rows=2, test_rows=1, seed=1)


def test_bad_rows_are_named_or_skipped(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "good"}\n{"text": 3}\n{"body": "x"}\n')
    with pytest.raises(UserError, match=r"a.jsonl:2: text is not a string but int"):
        texts.texts(str(file))
    rows = texts.texts(str(file), on_bad_row="skip")
    assert (len(rows), rows.skipped) == (1, 2)
    assert rows.ignored == ("body",)
