"""Bytes of text files: gzip, byte-order marks, and what is told of other bytes."""

import gzip
import io
import json
from pathlib import Path

import pytest

from ft.data.tables import pairs, parallel
from ft.errors import UserError

ROWS = [{"source": "Hé 𝄞", "target": "日本"}, {"source": "b", "target": "c\u2028d\x85e"}]


def encoded(suffix: str) -> str:
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    if suffix == ".json":
        return json.dumps(ROWS, ensure_ascii=False, indent=1)
    part = {".csv": ",", ".tsv": "\t"}[suffix]
    return "\n".join(part.join(cells) for cells in [ROWS[0], *(row.values() for row in ROWS)])


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
def test_every_format_in_every_encoding(
    tmp_path: Path, suffix: str, encoding: str, zipped: bool
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    data = (mark + encoded(suffix)).encode(encoding)
    file = tmp_path / f"a{suffix}{'.gz' * zipped}"
    file.write_bytes(gzip.compress(data) if zipped else data)
    assert pairs(file).rows == ROWS


def test_gzip_is_told_by_its_bytes(tmp_path: Path) -> None:
    data = encoded(".csv").encode()
    (tmp_path / "a.csv").write_bytes(gzip.compress(data[:9]) + gzip.compress(data[9:]))
    (tmp_path / "b.csv.gz").write_bytes(data)
    assert pairs(tmp_path / "a.csv").rows == pairs(tmp_path / "b.csv.gz").rows == ROWS
    whole = gzip.compress(data * 50)
    for cut, message in ((whole[:-9], "cut short"), (whole[:20] + b"\0" * 9, "damaged|cut short")):
        (tmp_path / "c.csv.gz").write_bytes(cut)
        with pytest.raises(UserError, match=rf"c\.csv\.gz: the gzip file is ({message})"):
            pairs(tmp_path / "c.csv.gz")


def test_parquet_may_be_zipped(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), stream)
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress(stream.getvalue()))
    assert pairs(tmp_path / "a.parquet.gz").rows == ROWS


def test_aligned_files_may_each_be_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes("\ufeffone\r\ntwo\r\n".encode("utf-16-le"))
    (tmp_path / "a.de.gz").write_bytes(gzip.compress(b"eins\nzwei\n"))
    rows = parallel(tmp_path / "a.en", tmp_path / "a.de.gz")
    assert [tuple(row.values()) for row in rows] == [("one", "eins"), ("two", "zwei")]


def test_utf16_without_a_mark_is_told(tmp_path: Path) -> None:
    for suffix in (".csv", ".jsonl", ".json"):
        file = tmp_path / f"a{suffix}"
        file.write_bytes("source,target\na,b\n".encode("utf-16-le"))
        with pytest.raises(UserError, match=rf"a\{suffix} is no UTF-8 text.*NUL.*UTF-16 without"):
            pairs(file, on_bad_row="skip")
    (tmp_path / "b.csv").write_bytes("source".encode("utf-16") + b"x")
    with pytest.raises(UserError, match=r"b\.csv begins as UTF-16 does, but is none from offset"):
        pairs(tmp_path / "b.csv")


def test_a_lone_nul_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes(b"source,target\n" + b"good,bon\n" * 9 + b"a\0,b\n")
    with pytest.raises(UserError, match=r"a\.csv:11: a NUL byte at character 2 of the line"):
        pairs(file)
    assert (len(pairs(file, on_bad_row="skip")), pairs(file, on_bad_row="skip").skipped) == (9, 1)


def test_latin_1_is_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.tsv"
    file.write_bytes("source\ttarget\nétait\tx\na\tb\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.tsv:2: invalid UTF-8: byte 0xe9 at offset 14"):
        pairs(file)
    file.write_bytes("source\tétat\nx\ta\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.tsv:1: the header cannot be read: invalid UTF-8"):
        pairs(file, on_bad_row="skip")


def test_zstd_is_told_by_its_bytes(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    packed = pyarrow.compress(encoded(".csv").encode(), codec="zstd", asbytes=True)
    (tmp_path / "a.csv.zst").write_bytes(packed)
    (tmp_path / "b.csv").write_bytes(packed)
    assert pairs(tmp_path / "a.csv.zst").rows == pairs(tmp_path / "b.csv").rows == ROWS
    (tmp_path / "c.csv.zst").write_bytes(packed[:-9])
    with pytest.raises(UserError, match=r"c\.csv\.zst: the zstd file is damaged.*copy it again"):
        pairs(tmp_path / "c.csv.zst")


@pytest.mark.parametrize("name", ["a.ndjson", "a.JSONLINES", "a.ndjson.gz"])
def test_json_lines_have_other_names(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(encoded(".jsonl").encode())
    assert pairs(tmp_path / name).rows == ROWS


def test_carriage_returns_alone_end_lines(tmp_path: Path) -> None:
    (tmp_path / "a.en").write_bytes(b"one\rtwo\r")
    (tmp_path / "a.de").write_bytes(b"eins\rzwei")
    rows = parallel(tmp_path / "a.en", tmp_path / "a.de")
    assert [tuple(row.values()) for row in rows] == [("one", "eins"), ("two", "zwei")]
    (tmp_path / "a.jsonl").write_bytes(encoded(".jsonl").encode().replace(b"\n", b"\r"))
    assert pairs(tmp_path / "a.jsonl").rows == ROWS
