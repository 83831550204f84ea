"""MTNT: what is read of it, from where, and what is said where it cannot be; punctuation."""

import hashlib
import http.server
import importlib
import io
import random
import re
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ft.data.doubles import overlap
from ft.data.mtnt import mtnt, normalize_punctuation
from ft.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data"
REAL = SHARED / "mtnt" / "MTNT"
ROW = {"source": "idk lol", "target": "jsp mdr"}
MODULE = importlib.import_module("ft.data.mtnt")  # the face has the function of that name
real = pytest.mark.real


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(tmp_path_factory.mktemp("cache") / "ft"))


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("no shared/data beside the repository")
    return SHARED


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def release(root: Path, content: str | bytes, split: str = "train", pair: str = "en-fr") -> Path:
    """A folder in the release's layout with one file."""
    write(root / "MTNT" / split / f"{split}.{pair}.tsv", content)
    return root


# MTNT in folders


@real
@pytest.mark.parametrize(
    ("split", "pair", "reading", "count"),
    [
        ("train", "en-fr", "text", 1401),
        ("valid", "en-fr", "text", 852),
        ("test", "en-fr", "text", 1020),
        ("valid", "fr-en", "text", 886),
        ("test", "fr-en", "text", 1022),
        ("valid", "en-fr", "tfds", 811),
        ("test", "en-fr", "tfds", 1020),
    ],
)
def test_counts_of_the_real_files(
    shared: Path, split: str, pair: str, reading: str, count: int
) -> None:
    rows = mtnt(split, pair, shared / "mtnt", reading=reading)
    file = REAL / split / f"{split}.{pair}.tsv"
    assert len(rows) == count
    assert rows.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert rows.origin == f"MTNT {pair} {split}, {file}"
    assert all(row.keys() == {"source", "target"} for row in rows)
    assert not any(text.endswith(("\r", "\n")) for row in rows for text in row.values())


@real
def test_reading_three_splits_takes_milliseconds(shared: Path) -> None:
    start = time.process_time()
    first = [mtnt(split, source=shared / "mtnt")[0] for split in ("train", "valid", "test")]
    assert time.process_time() - start < 0.15  # 0.03 on a slow core
    assert first[1] == {"source": "yea", "target": "Oui"}


@real
def test_the_stand_in_for_training_shares_no_source_with_the_other_splits(shared: Path) -> None:
    train, valid, test = (mtnt(s, source=shared / "mtnt") for s in ("train", "valid", "test"))
    assert overlap(train, valid, test) == []
    assert len(overlap(valid, valid)) == len(valid)


def test_a_folder_may_contain_mtnt_or_be_it(tmp_path: Path) -> None:
    folder = release(tmp_path, "1\tidk lol\tjsp mdr\n")
    outside, inside = mtnt("train", source=folder), mtnt("train", source=str(folder / "MTNT"))
    assert outside.rows == inside.rows == [ROW]
    assert outside == inside


def test_only_newline_and_tab_separate(tmp_path: Path) -> None:
    text = '7\t"a\u2028b\x0b c\x85\x1c\t «\u00a0d\r\n8\t""" x\ty "\t\r\n\t no id\tz\n'
    rows = mtnt("train", source=release(tmp_path, text))
    assert rows.rows == [
        {"source": '"a\u2028b\x0b c\x85\x1c', "target": " «\u00a0d"},
        {"source": '""" x', "target": 'y "'},
        {"source": " no id", "target": "z"},
    ]


def test_the_two_readings_of_quotes(tmp_path: Path) -> None:
    text = '1\t"a\tb\n2\tc"\td\n3\te\tf\n\n4\tonly two\n5\t"g\th\n6\ti\tj\n'
    folder = release(tmp_path, text, "valid")
    tfds = mtnt("valid", source=folder, reading="tfds")
    assert tfds.rows == [{"source": "a\tb\n2\tc", "target": "d"}, {"source": "e", "target": "f"}]
    assert tfds.skipped == 3  # a blank line, a short one, and the rest, which a quote swallows
    plain = mtnt("valid", source=folder, on_bad_row="skip")
    assert [row["source"] for row in plain] == ['"a', 'c"', "e", '"g', "i"]
    assert plain.skipped == 2
    assert plain.sha256 == tfds.sha256


def test_tfds_reading_says_why_it_cannot(tmp_path: Path) -> None:
    wide = release(tmp_path / "wide", "1\t2\ta\tb\n")
    with pytest.raises(UserError, match=r"train\.en-fr\.tsv has MTNT2019's four columns"):
        mtnt("train", source=wide, reading="tfds")
    with pytest.raises(UserError, match=r"no rows in MTNT en-fr train.*none of three columns"):
        mtnt("train", source=release(tmp_path / "thin", "1\ta\n"), reading="tfds")
    with pytest.raises(UserError, match=r"tsv: invalid UTF-8 at offset 4 of the file"):
        mtnt("train", source=release(tmp_path / "latin", b"1\ta\t\xe9\n"), reading="tfds")
    huge = release(tmp_path / "huge", '1\t"' + "x" * 140_000 + "\n")
    with pytest.raises(UserError, match=r"cannot be read as CSV .*use reading 'text'"):
        mtnt("train", source=huge, reading="tfds")


@pytest.mark.parametrize("folder", ["MTNT2019", "."])
def test_mtnt2019_has_its_pair_in_the_last_two_columns(tmp_path: Path, folder: str) -> None:
    text = "1\t65239\tidk lol\tjsp mdr\n2\t81688\tyes\toui\r\n"
    write(tmp_path / folder / "en-fr.final.tsv", text)
    rows = mtnt("test", source=tmp_path)
    assert rows.rows == [ROW, {"source": "yes", "target": "oui"}]
    assert rows.origin.startswith("MTNT2019 en-fr test, ")
    with pytest.raises(UserError, match=r"has no en-fr train: there is no MTNT/train/train\.en-fr"):
        mtnt("train", source=tmp_path)


def test_bad_rows_are_named_together(tmp_path: Path) -> None:
    text = b"1\ta\tb\n2\tonly\n\n4\t \tb\n5\ta\t\n6\ta\tb\xff\n7\ta\tb\tc\n8\t\t\n"
    folder = release(tmp_path, text)
    file, offset = folder / "MTNT" / "train" / "train.en-fr.tsv", text.index(0xFF)
    with pytest.raises(UserError) as caught:
        mtnt("train", source=folder)
    assert str(caught.value).split("\n") == [
        f"7 bad rows in MTNT en-fr train, {file}:",
        f"  {file}:2: wrong number of columns: 2 instead of 3",
        f"  {file}:3: wrong number of columns: 1 instead of 3",
        f"  {file}:4: source is empty",
        f"  {file}:5: target is empty",
        f"  {file}:6: invalid UTF-8: byte 0xff at offset {offset} of the file",
        f"  {file}:7: wrong number of columns: 4 instead of 3",
        f"  {file}:8: source is empty; target is empty",
        "Mend the data, or leave such rows out with --on-bad-row skip.",
    ]
    rows = mtnt("train", source=folder, on_bad_row="skip")
    assert (len(rows), rows.skipped) == (1, 7)


def test_a_long_list_of_bad_rows_is_cut(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"57 bad rows") as caught:
        mtnt("train", source=release(tmp_path, "1\ta\tb\n" + "2\tx\n" * 57))
    assert str(caught.value).count("wrong number") == 20
    assert "\n  ... and 37 more\n" in str(caught.value)


def test_empty_splits(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no rows in MTNT en-fr train, .*tsv: it is empty"):
        mtnt("train", source=release(tmp_path, ""))
    with pytest.raises(UserError, match=r"all 2 are bad; the first is .*tsv:1: wrong number"):
        mtnt("train", source=release(tmp_path, "1\n2\n"), on_bad_row="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"split": "validation"},
            r"split is 'validation'; it must be one of .*Did you mean 'valid'",
        ),
        ({"pair": "en_fr"}, r"pair is 'en_fr'; it must be one of .*Did you mean 'en-fr'"),
        ({"reading": "csv"}, r"reading is 'csv'; it must be one of 'text', 'tfds'"),
        ({"on_bad_row": "drop"}, r"on_bad_row is 'drop'; it must be one of 'error', 'skip'"),
        (
            {"pair": "fr-en"},
            r"has no fr-en train: there is no MTNT/train/train\.fr-en\.tsv or train",
        ),
        ({"source": "sample", "pair": "fr-en"}, r"sample has no fr-en, it has en-fr only"),
        ({"source": "nowhere/MTNT"}, r"no MTNT at nowhere/MTNT: .*Name a folder or \.tar\.gz"),
    ],
)
def test_what_cannot_be_found(tmp_path: Path, options: dict[str, str], message: str) -> None:
    given = {"split": "train", "source": str(release(tmp_path, "1\ta\tb\n"))} | options
    with pytest.raises(UserError, match=message):
        mtnt(**given)  # pyright: ignore[reportArgumentType]


def test_the_sample_says_what_it_is() -> None:
    if not MODULE.SAMPLE.is_dir():
        pytest.skip("the sample is not there yet")
    for split in ("train", "valid", "test"):
        rows = mtnt(split, source="sample")
        assert len(rows) > 10
        assert rows.origin.startswith(f"bundled sample (not MTNT) en-fr {split}, ")


# Archives


def archive(path: Path, members: dict[str, bytes], *odd: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        for info in odd:
            tar.addfile(info)
    return path


MEMBERS = {
    "MTNT/README.md": b"read me",
    "./MTNT/train/train.en-fr.tsv": b"1\tidk lol\tjsp mdr\n",
    "MTNT/test/test.en-ja.tsv": "1\tyes\tはい\n".encode(),
    "MTNT/train/train.fr-en.tsv": b"1\tonly\n",
}


def test_an_archive_is_read_where_it_lies(tmp_path: Path) -> None:
    file = archive(tmp_path / "MTNT.1.1.tar.gz", MEMBERS)
    rows = mtnt("train", source=file)
    assert rows.rows == [ROW]
    assert rows.sha256 == hashlib.sha256(MEMBERS["./MTNT/train/train.en-fr.tsv"]).hexdigest()
    assert rows.origin == f"MTNT en-fr train, {file}/MTNT/train/train.en-fr.tsv"
    assert mtnt("test", "en-ja", file).rows == [{"source": "yes", "target": "はい"}]
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(UserError, match=r"MTNT.1.1.tar.gz has no en-fr valid: there is no MTNT/va"):
        mtnt("valid", source=file)
    with pytest.raises(UserError, match=r"gz/MTNT/train/train\.fr-en\.tsv:1: wrong number of col"):
        mtnt("train", "fr-en", file)


def test_a_replaced_archive_is_read_anew(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.tar.gz", MEMBERS)
    assert len(mtnt("train", source=file)) == 1
    twice = MEMBERS | {"./MTNT/train/train.en-fr.tsv": b"1\ta\tb\n2\tc\td\n"}
    archive(tmp_path / "b.tar.gz", twice).replace(file)
    assert len(mtnt("train", source=file)) == 2


def odd(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (odd("../evil", tarfile.REGTYPE), r"refused: '\.\./evil' is outside its folder"),
        (odd("MTNT/../../evil", tarfile.REGTYPE), r"'MTNT/\.\./\.\./evil' is outside its folder"),
        (odd("/tmp/evil", tarfile.REGTYPE), r"refused: '/tmp/evil' is outside its folder"),
        (odd("MTNT/x", tarfile.SYMTYPE, "/etc/passwd"), r"'MTNT/x' is a link or a device"),
        (odd("MTNT/x", tarfile.LNKTYPE, "../y"), r"'MTNT/x' is a link or a device"),
        (odd("MTNT/x", tarfile.FIFOTYPE), r"'MTNT/x' is a link or a device"),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(
    tmp_path: Path, member: tarfile.TarInfo, message: str
) -> None:
    file = archive(tmp_path / "a.tar.gz", MEMBERS, member)
    with pytest.raises(UserError, match=message):
        mtnt("train", source=file)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [b"", b"text", b"\x1f\x8b\x08 and no more"])
def test_no_archive(tmp_path: Path, content: bytes) -> None:
    file = write(tmp_path / "a.tar.gz", content)
    with pytest.raises(UserError, match=r"a\.tar\.gz is no MTNT folder nor a whole \.tar\.gz"):
        mtnt("train", source=file)


def test_a_cut_archive(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(50_000)
    whole = archive(tmp_path / "a.tar.gz", MEMBERS | {"MTNT/x": noise}).read_bytes()
    file = write(tmp_path / "b.tar.gz", whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"b\.tar\.gz is no MTNT folder nor a whole \.tar\.gz"):
        mtnt("train", source=file)


# The download


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[[bytes | None], str]]:
    """Starts a server that answers with the bytes given, or with 404; gives its address."""
    servers = []

    def start(content: bytes | None) -> str:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/MTNT.1.1.tar.gz"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


def kept() -> list[Path]:
    return [file for file in MODULE.cache_dir().rglob("*") if file.is_file()]


def test_download_once(
    tmp_path: Path, serve: Callable[[bytes | None], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = archive(tmp_path / "a.tar.gz", MEMBERS).read_bytes()
    monkeypatch.setattr(MODULE, "RELEASE_URL", serve(content))
    monkeypatch.setattr(MODULE, "RELEASE_SHA256", hashlib.sha256(content).hexdigest())
    rows = mtnt("train", source="release")
    assert rows.rows == [ROW]
    assert sorted(file.name for file in kept()) == [
        "test.en-ja.tsv",
        "train.en-fr.tsv",
        "train.fr-en.tsv",
    ]
    monkeypatch.setattr(MODULE, "RELEASE_URL", "http://127.0.0.1:9/no-one-asks")
    assert mtnt("train", source="release") == rows


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("changed", r"came with sha256 [0-9a-f]{64}, not 9c9d22fd.*nothing of it was kept"),
        ("missing", r"cannot download http.*HTTP Error 404: Not Found\. Name a folder"),
        ("refused", r"cannot download http://127\.0\.0\.1:1/x: .*refused.*Name a folder"),
    ],
)
def test_a_failed_download_leaves_nothing(
    serve: Callable[[bytes | None], str],
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
    message: str,
) -> None:
    url = "http://127.0.0.1:1/x"
    if failure != "refused":
        url = serve(b"not it" if failure == "changed" else None)
    monkeypatch.setattr(MODULE, "RELEASE_URL", url)
    with pytest.raises(UserError, match=message):
        mtnt("train", source="release")
    assert kept() == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FT_CACHE", str(write(tmp_path / "file", "") / "cache"))
    with pytest.raises(UserError, match=r"cannot write .*mtnt-1\.1: Not a directory\..*FT_CACHE"):
        mtnt("train", source="release")


# Punctuation


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("C’est l‘été", "C'est l'été"),
        ("« Bonjour », dit-il", '"Bonjour", dit-il'),
        ("«\u202fBonjour\u00a0»", '"Bonjour"'),
        ("“a” et „b”", '"a" et "b"'),
        ("Eh bien…", "Eh bien..."),
        ("10\u00a0000\u2009€", "10 000 €"),
        ("Quoi? Non!", "Quoi ? Non !"),
        ("Quoi?!!", "Quoi ?!!"),
        ("Quoi\u00a0?", "Quoi ?"),
        ("Exemple: « ça »?", 'Exemple : "ça" ?'),
        ("(vraiment?)", "(vraiment ?)"),
        ("oui — non – si", "oui - non - si"),
        ("2009–2010 à 12:30", "2009–2010 à 12:30"),
        ("http://a.fr/?b=c!d :) 8-9; x%", "http://a.fr/?b=c!d :) 8-9; x%"),
        ("Cœur de /r/france\n!", "Cœur de /r/france\n!"),
    ],
)
def test_french_punctuation(text: str, wanted: str) -> None:
    assert normalize_punctuation(text) == wanted
    assert normalize_punctuation(wanted) == wanted


def test_punctuation_of_other_languages() -> None:
    assert normalize_punctuation("It’s “so”… no? « a »", "en") == 'It\'s "so"... no? « a »'
    with pytest.raises(UserError, match=r"language is 'ja'; it must be one of 'fr', 'en'"):
        normalize_punctuation("はい", "ja")


@pytest.mark.parametrize("language", ["fr", "en"])
def test_normalising_twice_changes_nothing(language: str) -> None:
    chance = random.Random(0)
    for _ in range(3000):
        text = "".join(chance.choices("ab1 \n\u00a0\u202f’‘'\"«»“„…?!:;.)(—–-", k=12))
        once = normalize_punctuation(text, language)
        assert normalize_punctuation(once, language) == once, text


@real
def test_validation_targets_hardly_change_and_the_stand_in_does(shared: Path) -> None:
    def changed(split: str) -> float:
        rows = mtnt(split, source=shared / "mtnt")
        return sum(normalize_punctuation(r["target"]) != r["target"] for r in rows) / len(rows)

    assert changed("valid") < 0.15
    assert changed("train") > 0.6


def test_import_is_cheap() -> None:
    code = "import sys, ft.data.mtnt; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(found.stdout.split())
    assert "ft.data.mtnt" in loaded
    heavy = "torch|transformers|datasets|pyarrow|numpy|tqdm|tarfile|urllib.request"
    assert not [name for name in loaded if re.fullmatch(heavy, name)]
