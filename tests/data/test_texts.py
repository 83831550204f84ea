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


def test_a_folder_is_read_as_its_files_are(tmp_path, jsonl):
    import pyarrow

    folder = tmp_path / "notes"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden/z.txt").write_text("not meant")
    (folder / "a.TXT").write_bytes("Über\r\nuns\r\n".encode("utf-16"))
    (folder / "b.csv").write_text('text,id\n"one, two",1\n')
    (folder / "c.jsonl").write_text(json.dumps([{"text": "listed"}]))
    (folder / "d.lines").write_bytes(b"first\rsecond")
    (folder / "e.md").write_text(" \n")
    (folder / "f.pdf").write_bytes(b"\0")
    (folder / "g.jsonl.zst").write_bytes(pyarrow.compress(jsonl, codec="zstd", asbytes=True))
    rows = texts.texts(str(folder))
    wanted = ["Über\nuns\n", "one, two", "listed", "first", "second", *DOCUMENTS]
    assert [row["text"] for row in rows] == wanted
    assert texts.texts(f"{folder}/[a-f]*").rows == rows.rows[:5]
    assert rows.origin == f"{folder} (6 files; not read: 1 .pdf)"
    assert rows.ignored == ("id",)
    places = [rows.place(i).removeprefix(f"{folder}/") for i in range(len(rows))]
    assert places == [
        *("a.TXT:1", "b.csv:2", "c.jsonl: row 1", "d.lines:1", "d.lines:2"),
        *(f"g.jsonl.zst:{n}" for n in (1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"text": "b", "weight": 0.5}, "the column 'weight' would change what is learnt"),
        ({"text": "b", "image": "b.png"}, "the column 'image' would change what is learnt"),
        ({"text": ""}, "text is empty"),
        ({"body": "b"}, "no column 'text', its columns are 'body'; --text-field names"),
    ],
)
@pytest.mark.parametrize("place", ["", "a.jsonl", "*.jsonl"])
def test_what_is_bad_is_so_in_a_folder_too(tmp_path, place, row, why):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "a"}) + "\n" + json.dumps(row))
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {why}"):
        texts.texts(f"{tmp_path}/{place}")
    skipped = texts.texts(f"{tmp_path}/{place}", on_bad_row="skip")
    assert (len(skipped), skipped.skipped) == (1, 1)


def test_a_line_that_is_no_text_is_left_out_of_its_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"good\nb\xe4d\nbetter\n")
    with pytest.raises(UserError, match=r"a\.txt:2: invalid UTF-8: byte 0xe4"):
        texts.texts(str(tmp_path))
    rows = texts.texts(str(tmp_path), on_bad_row="skip")
    assert (rows.rows, rows.skipped) == ([{"text": "good\nbetter\n"}], 1)


def test_a_control_token_is_named_by_its_file(tmp_path):
    from support import tiny

    from ft.text import documents

    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_text("here <bos> is one")
    with pytest.raises(UserError, match=r"b\.txt:1, text: the text contains '<bos>'"):
        documents.encode(
            texts.texts(str(tmp_path)), documents.TEMPLATE, tiny.tokenizer(), max_length=99
        )


def test_columns_of_text_follow_each_other(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"title": "T: ", "body": "b"}\n{"title": "", "body": "c"}\n')
    for place in (tmp_path, tmp_path / "a.jsonl"):
        rows = texts.texts(str(place), text_field="title+body")
        assert [row["text"] for row in rows] == ["T: b", "c"]
