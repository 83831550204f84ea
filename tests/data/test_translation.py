"""Splits of own pairs: what is held out, named or scored; MTNT as before; where answers end."""

import importlib
import json
from pathlib import Path

import pytest

from ft.data import doubles
from ft.data import rows as checks
from ft.data.mtnt import mtnt, normalize_punctuation
from ft.errors import UserError

MODULE = importlib.import_module("ft.data.translation")


def own(path: Path, n: int, name: str = "s") -> str:
    rows = [{"source": f"{name} {i}", "target": f"« t{i} »"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_mtnt_is_as_it_was() -> None:
    found = MODULE.translation_splits(normalize_punctuation=True)
    assert list(found) == ["train", "valid", "test"]
    assert found["valid"] == mtnt("valid")
    assert found["test"] == mtnt("test")
    assert found["train"] == mtnt("train").map_targets(normalize_punctuation)


@pytest.mark.parametrize(("n", "sizes"), [(2, (1, 1, 1)), (3, (1, 1, 1)), (100, (80, 10, 10))])
def test_rows_are_held_out_by_seed_and_said(tmp_path: Path, n: int, sizes: tuple) -> None:
    spec = own(tmp_path / "a.jsonl", n)
    found = MODULE.translation_splits(data=spec, language_pair="en-de", seed=3)
    assert tuple(map(len, found.values())) == sizes
    again = MODULE.translation_splits(("test",), data=spec, language_pair="en-de", seed=3)
    assert list(again) == ["test"]
    assert again["test"] == found["test"]
    assert doubles.overlap(found["train"], found["valid"], found["test"]) == []
    if n > 2:
        assert sorted(r["source"] for rows in found.values() for r in rows) == sorted(
            f"s {i}" for i in range(n)
        )
        other = MODULE.translation_splits(data=spec, language_pair="en-de", seed=4)
        assert n == 3 or other["test"].rows != found["test"].rows
    assert found["test"].origin == f"{spec}, {sizes[2]} held out by seed 3"
    assert found["train"].origin == f"{spec}, without {n - sizes[0]} held out by seed 3"


def test_no_row_is_held_out_where_others_are_named(tmp_path: Path) -> None:
    spec, valid, test = (
        own(tmp_path / f"{s}.jsonl", n, s) for s, n in [("a", 9), ("v", 2), ("t", 3)]
    )
    options = {"data": spec, "language_pair": "en-de", "valid_data": valid}
    found = MODULE.translation_splits(**options, test_data=test)
    assert list(map(len, found.values())) == [9, 2, 3]
    assert list(map(len, MODULE.translation_splits(**options).values())) == [8, 2, 1]
    mixed = MODULE.translation_splits(test_data=test)
    assert mixed["train"] == mtnt("train")
    assert len(mixed["test"]) == 3


def test_one_row_cannot_be_parted(tmp_path: Path) -> None:
    spec = own(tmp_path / "a.jsonl", 1)
    with pytest.raises(UserError, match=r"one row, .*--valid-data and --test-data"):
        MODULE.translation_splits(data=spec, language_pair="en-de")
    named = {"valid_data": spec, "test_data": spec}
    assert len(MODULE.translation_splits(data=spec, language_pair="en-de", **named)["train"]) == 1


def test_punctuation_is_normalised_only_where_it_is_french(tmp_path: Path) -> None:
    spec = own(tmp_path / "a.jsonl", 9)
    for pair, target in (("en-de", "« t"), ("de-fr", '"t'), ("en-fr_CA", '"t'), ("fr-en", "« t")):
        options = {"data": spec, "language_pair": pair, "normalize_punctuation": True}
        found = MODULE.translation_splits(**options)
        assert found["train"][0]["target"].startswith(target)
        assert found["test"][0]["target"].startswith("« t")


def test_what_mtnt_has_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'en-de': MTNT has en-fr.*pairs of your own with --data"):
        MODULE.translation_splits(language_pair="en-de")
    with pytest.raises(UserError, match="--reading tfds is of MTNT"):
        MODULE.translation_splits(data=own(tmp_path / "a.jsonl", 3), reading="tfds")


def test_what_data_is(tmp_path: Path) -> None:
    (tmp_path / "MTNT").mkdir()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.en").write_text("x")
    for spec in ("sample", "release", str(tmp_path), "no/MTNT", "MTNT.1.1.tar.gz"):
        assert MODULE.is_mtnt(spec)
    for spec in (
        "a.tsv",
        "a.en:a.de",
        "owner/name",
        str(tmp_path / "own"),
        "a.csv,b.csv",
        "a.tmx.gz",
    ):
        assert not MODULE.is_mtnt(spec)


def test_other_data_is_scored_whole(tmp_path: Path) -> None:
    spec = own(tmp_path / "a.jsonl", 5)
    assert len(MODULE.translation_split("test", spec, "en-de")) == 5
    with pytest.raises(UserError, match="--split valid: other data"):
        MODULE.translation_split("valid", spec, "en-de")
    assert MODULE.translation_split("valid", "sample", "en-fr") == mtnt("valid")


def test_a_line_break_ends_no_answer_that_has_some(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{"source": f"a\n{i}", "target": f"b{i}"} for i in range(9)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"data": str(file), "language_pair": "en-de"}
    assert MODULE.one_line(MODULE.translation_splits(**options))
    rows[4]["target"] = "b\nc"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = MODULE.translation_splits(**options)
    assert not MODULE.one_line(found)
    assert "note: 1 translations with line breaks: none ends an answer" in checks.summary(found)
    assert MODULE.one_line(found, "tfds")
    assert not MODULE.one_line(MODULE.translation_splits(extra_data=str(file)))


def test_bad_rows_of_pairs_count_once(tmp_path):
    file = tmp_path / "own.csv"
    file.write_text("source,target\n" + "a,b\n" * 30 + ",c\n")
    found = MODULE.translation_splits(data=str(file), on_bad_row="skip")
    assert {split: rows.skipped for split, rows in found.items()} == {
        "train": 1,
        "valid": 0,
        "test": 0,
    }
