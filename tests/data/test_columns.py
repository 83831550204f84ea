"""Which columns hold source and target, in every format, and which direction files of two languages have."""

import gzip
import json
from pathlib import Path

import pytest

from ft.data.tables import open_pairs
from ft.errors import UserError


def read(path: Path, rows: list[dict], pair: str = "en-de", **options):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [tuple(row.values()) for row in open_pairs(str(path), pair=pair, **options)]


@pytest.mark.parametrize(
    "row",
    [
        {"source": "a", "target": "b"},
        {"target": "b", "id": 3, "source": "a"},
        {"en": "a", "de": "b"},
        {"DE": "b", "EN": "a", "fr": "c"},
        {"eng": "a", "deu_Latn": "b"},
        {"en-GB": "a", "de-DE": "b"},
        {"English": "a", "german": "b"},
        {"translation": {"de": "b", "en": "a"}},
        {"id": 1, "translation": {"de": "b", "en": "a"}, "meta": {"en": 1}},
        {"translation": {"source": "a", "target": "b"}},
        {"en": "a", "de": "b", "source": "news", "target": "x"},
    ],
)
def test_columns_are_found_by_name(tmp_path: Path, row: dict) -> None:
    assert read(tmp_path / "a.jsonl", [row]) == [("a", "b")]


def test_the_direction_is_the_pairs(tmp_path: Path) -> None:
    assert read(tmp_path / "a.jsonl", [{"en": "a", "de": "b"}], "de-en") == [("b", "a")]


@pytest.mark.parametrize(
    ("row", "pair", "message"),
    [
        ({"en": "a", "fr": "b"}, "en-de", r"no column 'source'.*'en', 'fr'.*called 'en' and 'de'"),
        ({"en_GB": "a", "en_US": "c", "de": "b"}, "en-de", "'en_GB', 'en_US' are all English"),
        ({"id": "1", "en": "a", "ind": "b"}, "en-id", "'id', 'ind' are all Indonesian"),
        ({"zh": "a"}, "zh_Hans-zh_Hant", "no column 'source'"),
        ({"translation": {"en": "a", "de": None}}, "en-de", r"1: translation\.de is not a .* null"),
    ],
)
def test_columns_that_are_not_there(tmp_path: Path, row: dict, pair: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.jsonl", [row], pair)


def test_nested_columns_of_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"translation": {"en": "a", "de": "b"}, "odd": [{"x": 1}]}, {"translation": None}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    spec = str(tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: row 2: translation\.en is not a string but"):
        open_pairs(spec, pair="en-de")
    assert open_pairs(spec, pair="de-en", on_bad_row="skip").rows == [
        {"source": "b", "target": "a"}
    ]


def test_csv_headers_with_spaces_and_marks(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes('\ufeff"en" , de\r\na,b\r\n'.replace(" ,", ",").encode())
    assert open_pairs(str(file), pair="en-de").rows == [{"source": "a", "target": "b"}]
    file.write_text("Good morning,Guten Morgen\nTea,Tee\n")
    with pytest.raises(UserError, match=r"its columns are 'Good morning', 'Guten Morgen'"):
        open_pairs(str(file), pair="en-de")


def test_json_is_read_by_what_is_in_it(tmp_path: Path) -> None:
    row, other = {"en": "a", "de": "b"}, {"en": "c", "de": "d"}
    both = [("a", "b"), ("c", "d")]
    lines = f"{json.dumps(row)}\n\n{json.dumps(other)}\n"
    for name, text in (
        ("a.json", lines),
        ("b.jsonl", json.dumps([row, other], indent=2)),
        ("c.json", json.dumps({"version": "1", "data": [row, other]})),
    ):
        (tmp_path / name).write_text(text)
        rows = open_pairs(str(tmp_path / name), pair="en-de")
        assert [tuple(r.values()) for r in rows] == both
    (tmp_path / "d.json").write_text(lines + '{"en": "e"\n')
    with pytest.raises(UserError, match=r"d\.json:4: broken JSON"):
        open_pairs(str(tmp_path / "d.json"), pair="en-de")
    assert len(open_pairs(str(tmp_path / "d.json"), pair="en-de", on_bad_row="skip")) == 2


def test_suffixes_say_which_file_is_the_source(tmp_path: Path) -> None:
    english, german = tmp_path / "a.en", tmp_path / "a.de.gz"
    english.write_text("one\n\ntwo\n")
    german.write_bytes(gzip.compress(b"eins\n\nzwei\n"))
    options = {"pair": "en-de", "on_bad_row": "skip"}
    rows = open_pairs(f"{english}:{german}", **options)
    assert [tuple(r.values()) for r in rows] == [("one", "eins"), ("two", "zwei")]
    assert rows.skipped == 1
    assert open_pairs(f"{german}:{english}", **options).rows == rows.rows
    assert open_pairs(str(tmp_path), **options).rows == rows.rows
    with pytest.raises(UserError, match=r"are files of en and de, not of en-fr"):
        open_pairs(f"{english}:{german}", pair="en-fr")
    (tmp_path / "a.txt").write_text("x\n\ny\n")  # a suffix that is no language says nothing
    assert open_pairs(f"{english}:{tmp_path / 'a.txt'}", **options)[0]["target"] == "x"
