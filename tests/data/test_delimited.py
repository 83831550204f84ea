"""csv and tsv: quotes as they were written, parts, long cells, and what one header may not say."""

import csv
import io
import random
from pathlib import Path

import pytest

from ft.data import delimited
from ft.data.encodings import text_lines
from ft.data.tables import pairs
from ft.errors import UserError

HEADER = ["source", "target"]
ROWS = [
    ['He said "hi" to me', 'Il m\'a dit "salut"'],
    ["plain", "simple"],
    ['"Quoted whole"', '"Cité"'],
    ["two\nlines", "deux\r\nlignes"],
    ["a\tb", ","],
]


def pandas_writes(rows: list[list[str]], quoting: int = csv.QUOTE_MINIMAL, part: str = "\t") -> str:
    """What ``DataFrame.to_csv(sep=part)`` and Python's csv write."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=part, quoting=quoting, lineterminator="\n")
    writer.writerows([HEADER, *rows])
    return stream.getvalue()


def raw(rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in [HEADER, *rows])


def read(text: str, suffix: str = ".tsv", quoting: delimited.Quoting = "auto"):
    """Cells, bad rows, and the note."""
    lines, bad = text_lines(text.encode(), "f")
    found, note = delimited.records(lines, bad, "f", suffix, quoting)
    found = list(found)
    good = [list(row.values()) for _, row in found if isinstance(row, dict)]
    return good, [(n, why) for n, why in found if isinstance(why, str)], note


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
def test_what_pandas_writes_is_read_back(quoting: int) -> None:
    text = pandas_writes(ROWS, quoting)
    assert read(text) == (ROWS, [], "read as quoted")
    assert read(text.replace("\n", "\r\n").replace("\r\r", "\r"))[0][:3] == ROWS[:3]
    assert read(pandas_writes(ROWS, quoting, ","), ".csv")[0] == ROWS


@pytest.mark.parametrize(
    "rows",
    [
        [['"Hello" she said', "x"], ["a", "b"]],
        [['"whole"', '"tout"'], ["a", "b"]],
        [['"opened', "x"], ["y", 'closed"']],
        [['5" screen', 'écran 5"'], ['"', '""']],
        [["a, b", "c"], ['"d, e"', "f"]],
    ],
)
def test_text_with_quotes_is_read_as_it_is(rows: list[list[str]]) -> None:
    good, bad, note = read(raw(rows))
    assert (good, bad) == (rows, [])
    assert note in ("read as raw", "")


def test_excel_quotes_a_comma_in_tsv() -> None:
    assert read('source\ttarget\n"a, b"\tc\nd\te\n')[0] == [["a, b", "c"], ["d", "e"]]


def test_quotes_that_contradict_each_other_are_asked_about() -> None:
    text = pandas_writes(ROWS) + '"so" he said\tx\n'
    with pytest.raises(
        UserError, match=r"line 2 has cells quoted.*line 9 has quotes that are none"
    ):
        read(text)
    assert read(text, quoting="raw")[2] == "read as raw"
    with pytest.raises(UserError, match=r"f:9: broken CSV from this row on.*--quoting raw"):
        read(text, quoting="quoted")


def test_random_tables_of_quotes_and_parts_come_back() -> None:
    draw = random.Random(0)
    for _ in range(400):
        alphabet = 'ab "",\t\n' if draw.random() < 0.5 else 'ab "'
        rows = [
            ["".join(draw.choices(alphabet, k=draw.randint(1, 6))) for _ in HEADER]
            for _ in range(draw.randint(3, 30))
        ]
        good, bad, _ = read(pandas_writes(rows))
        assert (good, bad) == (rows, [])


def test_a_record_of_several_lines_leaves_no_fragment() -> None:
    text = pandas_writes(ROWS[:2]) + '"one\ntwo\tx\nthree"\t"four\n\nfive"\tsix\n' + "good\tbon\n"
    good, bad, _ = read(text)
    assert good == [*ROWS[:2], ["good", "bon"]]
    assert bad == [(4, "wrong number of columns: 3, but the header has 2")]
    broken = text.encode().replace(b"three", b"thr\xff")
    found, _ = delimited.records(*text_lines(broken, "f"), "f", ".tsv")
    assert [n for n, row in found if isinstance(row, str)] == [4]


def test_cells_of_any_length(tmp_path: Path) -> None:
    long = "x, " * 60_000
    for suffix, part in ((".csv", ","), (".tsv", "\t")):
        file = tmp_path / f"a{suffix}"
        file.write_text(f'source{part}target\n"{long}"{part}b\nc{part}"{long}"\n')
        assert [len(row["source"] + row["target"]) for row in pairs(file)] == [180_001, 180_001]


def test_a_header_names_a_column_once() -> None:
    with pytest.raises(UserError, match=r"f:1: the header names the column 'target' 2 times"):
        read("source,target, target\na,b,c\n", ".csv")
    assert read(",source,target,\n0,a,b,\n", ".csv")[1] == []  # pandas' index has no name


@pytest.mark.parametrize("part", [";", "\t", "|"])
def test_csv_may_be_parted_otherwise(part: str) -> None:
    good, bad, note = read(pandas_writes(ROWS, part=part), ".csv")
    assert (good, bad) == (ROWS, [])
    assert note == f"parted by {part!r}"


def test_line_ends_of_an_old_mac() -> None:
    assert read('source,target\r"a ""b""",c\rd,e\r', ".csv")[0] == [['a "b"', "c"], ["d", "e"]]
    assert read("source\ttarget\ra\tb\rc\td")[0] == [["a", "b"], ["c", "d"]]


def test_a_quoted_header_says_that_all_is_quoted() -> None:
    """R's write.table doubles no quotes but puts a backslash: no cell can be trusted then."""
    with pytest.raises(UserError, match=r"f:2: broken CSV"):
        read('"source"\t"target"\n"He said \\"hi\\""\t"x"\n')


@pytest.mark.parametrize("part", [";", "\t", ","])
def test_excels_line_of_the_separator_and_its_empty_rows(part: str) -> None:
    text = f"sep={part}\r\nid;en;fr\r\n1;a, b;c\r\n;;\r\n2;d\r\n".replace(";", part)
    if part == ",":
        text = text.replace("a, b", '"a, b"')
    good, bad, _ = read(text, ".csv")
    assert good == [["1", "a, b", "c"]]
    assert bad == [(5, "wrong number of columns: 2, but the header has 3")]


def test_a_table_may_begin_with_empty_lines() -> None:
    assert read('\n\nsource\ttarget\n"a ""b"""\tc\n')[0] == [['a "b"', "c"]]


def test_columns_without_a_name_are_told_by_their_place() -> None:
    found, _ = delimited.records([",en,", "0,a,x"], {}, "f", ".csv")
    assert list(found) == [(2, {"(column 1)": "0", "en": "a", "(column 3)": "x"})]
