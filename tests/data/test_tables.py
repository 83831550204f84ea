"""Users' own tables, aligned files and Hub data: what is read, and what is said of bad rows."""

import csv
import hashlib
import io
import json
import sys
import types
from pathlib import Path

import pytest

from ft.data.instructions import instructions
from ft.data.rows import Rows
from ft.data.tables import open_pairs, pairs, parallel
from ft.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
ROW = {"source": "idk lol", "target": "jsp mdr"}
OTHER = {"source": 'he said "hi', "target": 'il a dit "salut, ça va'}


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# Users' own tables


def encode(suffix: str, rows: list[dict[str, str]], names: tuple[str, str]) -> bytes:
    """``rows`` as a file of that format, with a column more than is asked for."""
    records = [
        {names[0]: r["source"], "id": str(i), names[1]: r["target"]} for i, r in enumerate(rows)
    ]
    if suffix == ".jsonl":
        return "\n".join(json.dumps(record, ensure_ascii=False) for record in records).encode()
    if suffix == ".json":
        return json.dumps(records, indent=1).encode()
    if suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        stream = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(records), stream)
        return stream.getvalue()
    cells = [list(records[0]), *(list(record.values()) for record in records)]
    if suffix == ".csv":
        quoted = [['"' + cell.replace('"', '""') + '"' for cell in line] for line in cells]
        return ("\ufeff" + "\r\n".join(map(",".join, quoted))).encode()
    return ("\n".join(map("\t".join, cells)) + "\n").encode()


@pytest.mark.parametrize("names", [("source", "target"), ("en", "fr")])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_gives_the_same_rows(
    tmp_path: Path, suffix: str, names: tuple[str, str]
) -> None:
    content = encode(suffix, [ROW, OTHER], names)
    file = write(tmp_path / f"my{suffix}", content)
    rows = pairs(file, source_column=names[0], target_column=names[1])
    assert rows.rows == [ROW, OTHER]
    sha256 = hashlib.sha256(content).hexdigest()
    assert rows == Rows([ROW, OTHER], str(file), sha256, ignored=("id",))


ODD = {"id": 7, "meta": {"url": "x", "n": 1}, "score": 0.5, "none": None}


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet", "hub"])
def test_columns_that_nothing_is_learnt_from_are_told(
    tmp_path: Path, suffix: str, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = {"en": "a", "de": "b"}
    rows = [ODD | ({"translation": pair | {"fr": "c"}} if nested else pair)] * 2
    if nested and suffix in (".csv", ".tsv"):
        return  # nothing is nested in these
    file = tmp_path / f"own{suffix}"
    if suffix == "hub":
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(
            datasets, "load_dataset", lambda *a, **k: datasets.Dataset.from_list(rows)
        )
        found = pairs("hub:owner/name", pair="en-de")
    else:
        if suffix == ".parquet":
            pytest.importorskip("pyarrow.parquet").write_table(
                pytest.importorskip("pyarrow").Table.from_pylist(rows), file
            )
        elif suffix in (".csv", ".tsv"):
            flat = [{k: v for k, v in row.items() if k != "meta"} for row in rows]
            with file.open("w", newline="") as out:
                writer = csv.DictWriter(out, flat[0], delimiter=",\t"[suffix == ".tsv"])
                writer.writeheader()
                writer.writerows(flat)
        else:
            lines = [json.dumps(row) for row in rows]
            file.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
        found = pairs(file, pair="en-de")
    assert list(found) == [{"source": "a", "target": "b"}] * 2
    named = {"id", "score", "meta", "meta.url", "meta.n", "none", "translation.fr"}
    assert {"id", "score"} <= set(found.ignored) <= named
    assert ("translation.fr" in found.ignored) == nested
    assert any(name.startswith("meta") for name in found.ignored) == (
        suffix not in (".csv", ".tsv")
    )


@pytest.mark.parametrize(
    ("name", "value"), [("Weight", 0.5), ("images", ["a.png"]), ("loss_mask", 0)]
)
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_that_would_change_what_is_learnt_is_refused(
    tmp_path: Path, suffix: str, name: str, value: object
) -> None:
    rows = [{"source": "a", "target": "b", name: value}, {"source": "a", "target": "b", name: None}]
    file = tmp_path / f"own{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow.parquet").write_table(
            pytest.importorskip("pyarrow").Table.from_pylist(rows), file
        )
    else:
        file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(UserError, match=rf"(?s)1 bad row in .*1: the column '{name}' would change"):
        pairs(file)
    assert len(pairs(file, on_bad_row="skip")) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_an_unknown_column_names_those_there_are(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"my{suffix}", encode(suffix, [ROW], ("sources", "target")))
    with pytest.raises(UserError, match=r"no column 'source'; its columns are .*mean 'sources'\?"):
        pairs(file)
    assert pairs(file, source_column="sources").rows == [ROW]


def test_a_csv_row_may_span_lines_and_is_numbered_by_its_first(tmp_path: Path) -> None:
    text = 'source,target\n"a\n\nb",c\n\nd,e,f\ng,""\n'
    file = write(tmp_path / "my.csv", text)
    assert pairs(file, on_bad_row="skip").rows == [{"source": "a\n\nb", "target": "c"}]
    with pytest.raises(UserError, match=r"2 bad rows") as caught:
        pairs(file)
    assert f"{file}:6: wrong number of columns: 3, but the header has 2" in str(caught.value)
    assert f"{file}:7: target is empty" in str(caught.value)


@pytest.mark.parametrize("row", ['a,"b\nc,d\n', 'a,"b" c\n'])
def test_broken_quoting_cannot_be_skipped(tmp_path: Path, row: str) -> None:
    file = write(tmp_path / "my.csv", "source,target\nx,y\n" + row)
    with pytest.raises(UserError, match=r"my\.csv:3: broken CSV from this row on"):
        pairs(file, on_bad_row="skip")


def test_bad_rows_of_jsonl(tmp_path: Path) -> None:
    good = json.dumps(ROW).encode()
    lines = [
        good,
        b'{"source": "a", "target": }',
        b'{"source": "a"}',
        b'{"source": 3, "target": null}',
        b"[1, 2]",
        b'{"source": "a", "target": "\xff"}',
        b"",
        b'{"source": "\\ud83d", "target": "\\ud83d\\ude00"}',
        b'{"source": ["a"], "target": "\\t"}',
        good,
    ]
    content = b"\r\n".join(lines)
    file, offset = write(tmp_path / "my.jsonl", content), content.index(0xFF)
    with pytest.raises(UserError) as caught:
        pairs(file)
    assert str(caught.value).split("\n") == [
        f"7 bad rows in {file}:",
        f"  {file}:2: broken JSON: Expecting value: column 27 (char 26)",
        f"  {file}:3: no column 'target'",
        f"  {file}:4: source is not a string but int; target is not a string but null",
        f"  {file}:5: not a JSON object but list",
        f"  {file}:6: invalid UTF-8: byte 0xff at offset {offset} of the file",
        f"  {file}:8: source has half a character (U+D83D) at 0",
        f"  {file}:9: source is not a string but list; target is empty",
        "Mend the data, or leave such rows out with --on-bad-row skip.",
    ]
    rows = pairs(file, on_bad_row="skip")
    assert (rows.rows, rows.skipped) == ([ROW, ROW], 7)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[{]", r"a\.json holds broken JSON: Expecting property name.*line 1 column 3"),
        ("a.json", b'["\xff"]', r"a\.json holds broken JSON: 'utf-8'.*position 2"),
        ("a.json", '{"source": "a"}', r"a\.json holds one dict; wanted is a list of objects"),
        ("a.json", '[{"source": "a", "target": 1}]', r"a\.json: row 1: target is not a string but"),
        ("a.json", "[" * 100_000, r"a\.json holds broken JSON: .*recursion"),
        ("a.jsonl", "[" * 100_000, r"a\.jsonl:1: broken JSON: .*recursion"),
        ("a.jsonl", "", r"no rows in .*a\.jsonl: it is empty"),
        ("a.csv", "source,target\n", r"no rows in .*a\.csv: it is empty"),
        ("a.csv", b"source,target\na,\xe9\n", r"a\.csv:2: invalid UTF-8: byte 0xe9 at offset 16"),
        (
            "a.tsv",
            "source\ttarget\na\n",
            r"a\.tsv:2: wrong number of columns: 1, but the header has 2",
        ),
        ("a.tsv", b"source\ttarget\na\t\xe9\n", r"a\.tsv:2: invalid UTF-8: byte 0xe9 at offset 16"),
        ("a.parquet", "text", r"a\.parquet is not a readable parquet file: "),
        ("a.xlsx", "text", r"a\.xlsx has suffix '\.xlsx'; allowed are \.jsonl, \.json"),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match=message):
        pairs(write(tmp_path / name, content))


def test_a_null_and_a_number_in_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    translation = [{"en": "a", "fr": 1}, {"en": None, "fr": 2}]
    file = tmp_path / "my.parquet"
    parquet.write_table(pyarrow.table({"translation": translation}), file)
    with pytest.raises(UserError, match=r"its columns are 'translation\.en', 'translation\.fr'"):
        pairs(file)
    with pytest.raises(
        UserError, match=r"my\.parquet: row 2: translation\.en is not a string but nu"
    ):
        pairs(file, source_column="translation.en", target_column="translation.fr")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*no\.csv: No such file or directory"):
        pairs(tmp_path / "no.csv")
    with pytest.raises(UserError, match=r"cannot read .*: Is a directory"):
        pairs(tmp_path)
    with pytest.raises(UserError, match=r"/no does not exist; wanted is a file .* or a dataset"):
        pairs(tmp_path / "no")


# The Hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple[str, ...], str]]:
    """Replaces ``datasets`` by one that knows a dataset; lists what it is asked for."""
    asked = []

    class Table:
        column_names = ["id", "translation.en", "translation.fr"]

        def flatten(self) -> "Table":
            return self

        def select_columns(self, names: list[str]) -> "Table":
            assert names == ["translation.en", "translation.fr"]
            return self

        def to_list(self) -> list[dict[str, str]]:
            return [{"translation.en": ROW["source"], "translation.fr": ROW["target"]}]

    def load_dataset(*name: str, split: str) -> Table:
        asked.append((name, split))
        if split != "train":
            raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].\nMore.")
        return Table()

    module = types.SimpleNamespace(load_dataset=load_dataset)
    monkeypatch.setitem(sys.modules, "datasets", module)  # pyright: ignore[reportArgumentType]
    return asked


def test_hub_data(hub: list[tuple[tuple[str, ...], str]]) -> None:
    names = {"source_column": "translation.en", "target_column": "translation.fr"}
    plain, configured = pairs("owner/name", **names), open_pairs("owner/name.2/en-fr", **names)
    assert hub == [(("owner/name",), "train"), (("owner/name.2", "en-fr"), "train")]
    assert plain.rows == configured.rows == [ROW]
    assert plain.origin == "owner/name (train) on the Hub"
    assert plain.sha256 == configured.sha256
    with pytest.raises(UserError, match=r"owner/name has no column 'source'; its columns are 'id'"):
        pairs("owner/name")
    with pytest.raises(
        UserError, match=r"^owner/name is no file.*'dev'.*one of \['train'\]\. Priv.*$"
    ):
        pairs("owner/name", split="dev")


# Aligned files, and several sources in one word


def test_aligned_files(tmp_path: Path) -> None:
    english = write(tmp_path / "n.en", "a\nb\x0bb\n")
    french = write(tmp_path / "n.fr", "c\r\nd")
    rows = parallel(english, french)
    assert rows.rows == [{"source": "a", "target": "c"}, {"source": "b\x0bb", "target": "d"}]
    assert rows.origin == f"{english}:{french}"
    assert parallel(french, english).sha256 != rows.sha256
    with pytest.raises(UserError, match=r"n\.en has 2 lines and .*m\.fr has 3"):
        parallel(english, write(tmp_path / "m.fr", "a\nb\nc\n"))
    blank = write(tmp_path / "o.fr", b"\n\xff\n")
    with pytest.raises(UserError) as caught:
        parallel(english, blank)
    assert f"{english}:{blank}:1: target is empty\n" in str(caught.value)
    assert f"{english}:{blank}:2: target: invalid UTF-8: byte 0xff at offset 1" in str(caught.value)


def test_one_word_names_several_sources(tmp_path: Path) -> None:
    english = write(tmp_path / "news" / "b.en", "b\n")
    french = write(tmp_path / "news" / "b.fr", "B\n")
    write(tmp_path / "news" / "a.eng", "a\n")
    write(tmp_path / "news" / "a.fra", "A\n")
    write(tmp_path / "news" / "README.txt", "x")
    table = write(tmp_path / "my.jsonl", json.dumps(ROW))
    rows = open_pairs(f"{table}, {tmp_path / 'news'},{english}:{french}")
    assert [row["source"] for row in rows] == ["idk lol", "a", "b", "b"]
    assert rows.origin.count(" + ") == 3
    back = open_pairs(str(tmp_path / "news"), pair="fr-en")
    assert back[0] == {"source": "A", "target": "a"}


def test_a_folder_without_partners(tmp_path: Path) -> None:
    write(tmp_path / "a.eng", "a\n")
    with pytest.raises(UserError, match=r"no en-fr partner for a"):
        open_pairs(str(tmp_path))
    with pytest.raises(
        UserError, match=r"no files for fr-ja: .*one in \.fr or \.fra and one in \.ja"
    ):
        open_pairs(str(tmp_path), pair="fr-ja")
    with pytest.raises(UserError, match=r"'a\.jsonl,' names nothing beside a comma"):
        open_pairs("a.jsonl,")


def test_open_pairs_passes_its_options_on(tmp_path: Path) -> None:
    file = write(tmp_path / "my.csv", "en,fr\na,b\nc,\n")
    columns = {"source_column": "en", "target_column": "fr"}
    rows = open_pairs(str(file), **columns, on_bad_row="skip")
    assert (rows.rows, rows.skipped) == ([{"source": "a", "target": "b"}], 1)
    with pytest.raises(UserError, match=r"my\.csv:3: fr is empty"):
        open_pairs(str(file), **columns)


@pytest.mark.real
def test_the_news_are_14020_pairs() -> None:
    if not SHARED.is_dir():
        pytest.skip("no shared/data beside the repository")
    rows = open_pairs(str(SHARED / "parallel-en-fr"))
    assert (len(rows), rows.skipped) == (14_020, 0)


def test_a_key_that_stands_twice_is_named(tmp_path):
    """JSON would keep the last of the two without a word."""
    line = '{"en": "a", "fr": "b", "fr": "c"}'
    (tmp_path / "a.jsonl").write_text(f'{{"en": "x", "fr": "y"}}\n{line}\n')
    (tmp_path / "a.json").write_text(f"[{line}]")
    why = "an object has the key 'fr' 2 times; keep one of them"
    with pytest.raises(UserError, match=rf"a\.jsonl:2: {why}"):
        pairs(tmp_path / "a.jsonl", pair="en-fr")
    assert pairs(tmp_path / "a.jsonl", pair="en-fr", on_bad_row="skip").skipped == 1
    with pytest.raises(UserError, match=rf"a\.json: {why}"):
        pairs(tmp_path / "a.json", pair="en-fr")


def test_what_stands_beside_the_rows_of_a_json_file_is_told(tmp_path):
    file = tmp_path / "a.json"
    rows = [ROW]
    file.write_text(json.dumps({"version": 2, "system": "Be formal.", "note": "", "data": rows}))
    assert pairs(file).origin == f"{file} (not read beside 'data': version, system)"
    file.write_text(json.dumps({"data": rows}))
    assert pairs(file).origin == str(file)


def test_a_json_file_may_be_one_conversation(tmp_path):
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": talk, "system": "s"}, indent=1))
    (row,) = instructions(tmp_path / "a.json")
    assert [m["content"] for m in row["messages"]] == ["s", "q", "a"]


def test_a_folder_of_one_table_is_that_table(tmp_path: Path) -> None:
    table = write(tmp_path / "data" / "train.jsonl", json.dumps({"en": "a", "fr": "b"}))
    (row,) = open_pairs(str(tmp_path))
    assert row == {"source": "a", "target": "b"}
    write(tmp_path / "data" / "test.jsonl", table.read_bytes())
    with pytest.raises(UserError, match=r"2 tables \(data/test\.jsonl, data/train\.jsonl\); name"):
        open_pairs(str(tmp_path))


def test_a_folder_of_aligned_files_may_be_packed(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    for code, text in (("en", b"one\n"), ("fr", b"un\n")):
        packed = pyarrow.compress(text, codec="zstd", asbytes=True)
        write(tmp_path / f"a.{code}.zst", packed)
    assert open_pairs(str(tmp_path)).rows == [{"source": "one", "target": "un"}]
