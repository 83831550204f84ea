"""MTNT, translations of noisy Reddit text (the bundled sample, a folder, an archive, a download), beside the other data."""

import csv
import functools
import hashlib
import io
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from ft.data.encodings import lines_of
from ft.data.rows import Record, Rows, checked, digest
from ft.errors import UserError, one_of
from ft.files import cache_dir, read_bytes, write_bytes

SPLITS = ("train", "valid", "test")
PAIRS = ("en-fr", "fr-en", "en-ja", "ja-en")
SAMPLE = Path(__file__).parent / "sample"
RELEASE_URL = "https://github.com/pmichel31415/mtnt/releases/download/v1.1/MTNT.1.1.tar.gz"
RELEASE_SHA256 = "9c9d22fd71def6f70fc68f3a86bb87f6d7e58f63e6dc85e2acd2c9d828dca6b4"
"""As TensorFlow Datasets pins it (translate/mtnt/checksums.tsv; 36,786,600 bytes)."""

_MEMBER = re.compile(
    r"(?:MTNT/)?(train|valid|test)/\1\.[a-z]{2}-[a-z]{2}\.tsv"
    r"|(?:MTNT2019/)?[a-z]{2}-[a-z]{2}\.final\.tsv"
)
_OTHERWISE = "Name a folder or .tar.gz of MTNT, or 'sample' for the sample that comes with ft."


def mtnt(
    split: str,
    pair: str = "en-fr",
    source: str | Path = "sample",
    *,
    reading: str = "text",
    on_bad_row: str = "error",
) -> Rows:
    """The rows of one split of MTNT (Michel & Neubig 2018) in one direction.

    ``source`` is ``"sample"`` (written for this project in MTNT's layout; en-fr only), or
    ``"release"`` (MTNT 1.1 from the cache; the first use downloads its 37 MB), or a folder that
    contains ``MTNT/`` or is it, or the release's ``.tar.gz``, which is read without unpacking. A
    folder or archive of MTNT2019 has split test only; of its four columns the last two are read.

    ``reading="text"`` takes quotes as text: 852 validation rows of en-fr, as in the paper.
    ``reading="tfds"`` reads CSV with quoting, as TensorFlow Datasets does: 811 rows, some of which
    hold several lines; rows of fewer than three columns are skipped, no other is found bad.
    Raises UserError for what is missing, and for bad rows unless ``on_bad_row="skip"``.
    """
    one_of("split", split, SPLITS)
    one_of("pair", pair, PAIRS)
    one_of("reading", reading, ("text", "tfds"))
    where, data = _find(split, pair, source)
    name = "bundled sample (not MTNT)" if str(source) == "sample" else "MTNT"
    if where.endswith(".final.tsv"):
        name = "MTNT2019"
    origin = f"{name} {pair} {split}, {where}"
    if reading == "tfds":
        return _tfds(data, origin, where)
    records = _text(*lines_of(data))
    return checked(records, origin, digest(data), f"{where}:", on_bad_row=on_bad_row)


def _text(lines: list[str], bad: dict[int, str]) -> Iterator[Record]:
    rows = [line.removesuffix("\r").split("\t") for line in lines]
    widths = Counter(map(len, rows))
    width = 4 if widths[4] > widths[3] else 3
    for number, cells in enumerate(rows, 1):
        while len(cells) > width and not cells[-1]:  # test.fr-en has a row that ends in a tab
            cells.pop()
        if number in bad:
            yield number, bad[number]
        elif len(cells) != width:
            yield number, f"wrong number of columns: {len(cells)} instead of {width}"
        else:
            yield number, {"source": cells[-2], "target": cells[-1]}


def _tfds(data: bytes, origin: str, where: str) -> Rows:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: invalid UTF-8 at offset {error.start} of the file") from None
    try:
        cells = list(csv.reader(io.StringIO(text, newline=None), delimiter="\t"))
    except csv.Error as error:
        raise UserError(f"{where} cannot be read as CSV ({error}); use reading 'text'") from None
    widths = Counter(map(len, cells))
    if widths[4] > widths[3]:
        raise UserError(f"{where} has MTNT2019's four columns; read it with reading 'text'")
    rows = [{"source": row[1], "target": row[2]} for row in cells if len(row) >= 3]
    if not rows:
        raise UserError(f"no rows in {origin}: it has none of three columns")
    return Rows(rows, origin, digest(data), len(cells) - len(rows))


def _find(split: str, pair: str, source: str | Path) -> tuple[str, bytes]:
    """Name and bytes of a split's file."""
    inside = f"{split}/{split}.{pair}.tsv"
    names = [f"MTNT/{inside}", inside]
    if split == "test":
        names += [f"MTNT2019/{pair}.final.tsv", f"{pair}.final.tsv"]
    root = Path(source).expanduser()
    if str(source) == "sample":
        root = SAMPLE
        if pair != "en-fr":
            raise UserError(f"the bundled sample has no {pair}, it has en-fr only")
    elif str(source) == "release":
        root = cache_dir() / "mtnt-1.1"
        if not (root / names[0]).is_file():
            _download(root)
    if root.is_dir():
        if file := next((root / name for name in names if (root / name).is_file()), None):
            return str(file), read_bytes(file)
    elif root.is_file():
        members = _members(root, root.stat().st_mtime_ns)
        if name := next((name for name in names if name in members), None):
            return f"{root}/{name}", members[name]
    else:
        raise UserError(
            f"no MTNT at {root}: there is no such folder or archive ('release' fetches it once). {_OTHERWISE}"
        )
    raise UserError(f"{root} has no {pair} {split}: there is no {' or '.join(names)} in it")


@functools.lru_cache(maxsize=1)
def _members(archive: Path, modified: int = 0) -> dict[str, bytes]:
    """The data files of an archive, by name, read in memory; ``modified`` only keys the cache.

    An archive that could write outside the folder it is unpacked in is refused whole.
    """
    import tarfile
    import zlib

    found = {}
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError(f"{archive} is refused: {member.name!r} is outside its folder")
                if not (member.isfile() or member.isdir()):
                    raise UserError(f"{archive} is refused: {member.name!r} is a link or a device")
                if _MEMBER.fullmatch(str(name)) and (file := tar.extractfile(member)):
                    found[str(name)] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{archive} is no MTNT folder nor a whole .tar.gz: {error}") from None
    return found


def _download(folder: Path) -> None:
    """Fetch the release, check it, keep its data files; safe beside another that does the same."""
    from http.client import HTTPException
    from ssl import SSLError
    from urllib.error import URLError
    from urllib.request import urlopen

    from tqdm import tqdm

    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".download-")
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}. Name another cache with FT_CACHE."
        ) from None
    sha256, archive = hashlib.sha256(), Path(name)
    bar = tqdm(desc="MTNT 1.1", unit="B", unit_scale=True, delay=2, leave=False)
    try:
        with os.fdopen(handle, "wb") as file, urlopen(RELEASE_URL, timeout=30) as answer, bar:
            while chunk := answer.read(1 << 18):
                file.write(chunk)
                sha256.update(chunk)
                bar.update(len(chunk))
        if sha256.hexdigest() != RELEASE_SHA256:
            raise UserError(
                f"{RELEASE_URL} came with sha256 {sha256.hexdigest()}, not {RELEASE_SHA256}: it is "
                f"incomplete or was changed, and nothing of it was kept. Try again. {_OTHERWISE}"
            )
        for member, content in _members(archive).items():
            (folder / member).parent.mkdir(parents=True, exist_ok=True)
            write_bytes(folder / member, content)
    except (URLError, HTTPException, SSLError, ConnectionError, TimeoutError) as error:
        why = str(error).strip("<>")
        raise UserError(f"cannot download {RELEASE_URL}: {why}. {_OTHERWISE}") from None
    finally:
        archive.unlink(missing_ok=True)


_MARKS = str.maketrans(
    dict.fromkeys("’‘", "'")
    | dict.fromkeys("“”„", '"')
    | dict.fromkeys("\u00a0\u202f\u2009", " ")
    | {"…": "..."}
)


def normalize_punctuation(text: str, language: str = "fr") -> str:
    """Punctuation as most targets of MTNT's validation split write it; idempotent.

    Typographic apostrophes and quotes become ' and ", … becomes ..., a no-break or thin space a
    plain one. In French also: « a » becomes "a", a dash between spaces -, and "a?" "a!" "a:" at a
    word's end "a ?" "a !" "a :". Meant for training targets, never for references.
    """
    one_of("language", language, ("fr", "en"))
    text = text.translate(_MARKS)
    if language == "fr":
        text = re.sub(r"« *| *»", '"', text)
        text = re.sub(r"(?<!\S)[—–](?!\S)", "-", text)
        text = re.sub(r"(?<=[\w\"')])([?!]+|:)(?=[\s\")]|$)", r" \1", text)
    return text
