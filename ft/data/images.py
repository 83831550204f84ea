"""Rows of images, a prompt and its completion; every image is opened once, whole, upright and in RGB."""

import dataclasses
import io
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ft import files
from ft.data import pictures as drawn
from ft.data.rows import Record, Row, Rows, checked, digest, fault, held_out
from ft.data.tables import read_table
from ft.errors import UserError
from ft.text.meaning import AROUND, surrounds

if TYPE_CHECKING:
    from PIL.Image import Image

DRAWN = "pictures"  # the name of generated pictures as data
MARKER = "<image>"  # where an image stands in a prompt; without any, all come first
LEAST, MOST = 8, 16_384  # pixels of a side
PIXELS = 2**27  # of an image: 400 MB in RGB


def read(source: str | Path, *, on_bad_row: str = "error") -> Rows:
    """Rows ``{"images", "prompt", "completion", "where"}`` of a jsonl, json, csv, tsv or parquet file.

    Its columns are ``image`` (a path) or ``images`` (a list of paths), ``prompt`` and ``completion``.
    Paths are relative to the file. A row without images is text. A prompt that names places with
    ``<image>`` names as many as it has images. The hash is of the table and of every image.
    Raises UserError for bad rows (an image that is missing, damaged or of a useless size included)
    unless ``on_bad_row="skip"``, and where no row has an image.
    """
    place = Path(source).expanduser()
    if not place.is_file():
        raise UserError(
            f"{source}: there is no such file; image rows are read from a table with paths"
        )
    records, origin, sha256, where = read_table(place)
    known: dict[Path, str] = {}  # what is wrong with an image, or its hash

    def one(record: dict[str, Any]) -> Row | str:
        faults = [found for column in ("prompt", "completion") if (found := fault(record, column))]
        paths = _paths(record)
        if isinstance(paths, str):
            return "; ".join([paths, *faults])
        found = [place.parent / Path(path).expanduser() for path in paths]
        for path, written in zip(found, paths, strict=True):
            if path not in known:
                known[path] = _judged(path, written)
            if not known[path].startswith("sha256:"):
                faults.append(known[path])
        if beyond := [name for name in record if _beyond(name) and record[name]]:
            faults.append(f"the column {beyond[0]!r} has no place beside images; remove it")
        marks = str(record.get("prompt", "")).count(MARKER)
        if marks and marks != len(found):
            faults.append(f"the prompt has {MARKER} {marks} times, the row {len(found)} images")
        if MARKER in str(record.get("completion", "")):
            faults.append(
                f"the completion has {MARKER}, which stands for an image in a prompt alone"
            )
        row: Row = {"images": [str(path) for path in found], "where": record[_WHERE]}
        return "; ".join(faults) or row | {key: record[key] for key in ("prompt", "completion")}

    numbered = _numbered(records, where)
    made = {
        "read": one,
        "used": ("image", "images", "prompt", "completion", _WHERE, *_TALKS, *AROUND),
    }
    rows = checked(numbered, origin, sha256, where, on_bad_row=on_bad_row, **made)
    if not any(row["images"] for row in rows):
        raise UserError(
            f"no row of {origin} has an image: they stand in a column 'image' (a path) or 'images' (a list)"
        )
    seen = " ".join(dict.fromkeys(known[Path(path)] for row in rows for path in row["images"]))
    return dataclasses.replace(rows, sha256=digest(f"{sha256} {seen}".encode()))


def splits(
    source: str | Path = DRAWN,
    *,
    pictures: int,
    valid_rows: int | None = None,
    test_rows: int | None = None,
    seed: int,
    on_bad_row: str = "error",
) -> dict[str, Rows]:
    """``read``'s rows as train, valid and test, drawn by ``seed``.

    Of ``pictures``, which are drawn into the user's cache, that many are to train on. Without
    ``valid_rows`` and ``test_rows`` each is a tenth of the rows, 100 and 300 at most. Raises UserError
    as ``read`` does, and where no row is left to train on.
    """
    if source == DRAWN:
        valid_rows, test_rows = valid_rows or 100, test_rows or 300
        n = pictures + valid_rows + test_rows
        source = drawn.write(files.cache_dir() / f"pictures-v{drawn.VERSION}-{n}-{seed}", n, seed)
    rows = read(source, on_bad_row=on_bad_row)
    of_test = held_out(rows, test_rows, 300)
    train, held = rows.split(held_out(rows, valid_rows, 100) + of_test, seed)
    valid, test = held.split(of_test, seed)
    return {"train": train, "valid": valid, "test": test}


_WHERE = "\0where"  # a key that no table has
_TALKS = ("messages", "conversations")


def _beyond(name: str) -> bool:
    """Whether a column would change what is learnt."""
    return surrounds(name) or name in _TALKS


def _numbered(records: Iterable[Record], where: str) -> Iterable[Record]:
    """The records, each told where it stands, with a bar where that takes long."""
    from tqdm import tqdm

    for number, record in tqdm(records, desc="images", unit="row", delay=2, leave=False):
        yield number, record if isinstance(record, str) else {**record, _WHERE: f"{where}{number}"}


def _paths(record: dict[str, Any]) -> list[str] | str:
    """The paths of a row's images, or what is wrong with them."""
    if record.get("image") is not None and record.get("images") is not None:
        return "both 'image' and 'images'; give one of them"
    given = record["image"] if record.get("image") is not None else record.get("images")
    paths = [] if given is None or given == "" else [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(p, str) and p.strip() for p in paths):
        return f"images are not paths but {str(given)[:60]!r}"
    return paths


def _judged(path: Path, written: str) -> str:
    """The hash of an image that can be used, or why it cannot."""
    try:
        open_image(written if "://" in written else path)
    except UserError as error:
        return str(error)
    return f"sha256:{files.sha256(path)}"


def open_image(path: str | Path) -> "Image":
    """The image in a file (PNG, JPEG, WebP, …; the first of several), as a new one in RGB.

    Turned as its EXIF data says; what is transparent becomes white; 16-bit grey becomes 8-bit grey.
    Raises ``UserError`` that names the file and what is wrong with it: missing, damaged, no image, or
    of a size out of bounds, which is known before the pixels are read.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    if re.match(r"(https?|ftp|data):", str(path)):
        raise UserError(f"image {str(path)[:80]}: an address; download it and give the file")
    files.check_regular(Path(path).expanduser())
    try:
        data = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise UserError(f"image {path}: {error.strerror}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of size and odd metadata: sizes are judged here
            with Image.open(io.BytesIO(data)) as image:
                if wrong := _size_fault(*image.size):
                    raise UserError(f"image {path}: {wrong}")
                image.load()
                return _rgb(ImageOps.exif_transpose(image), path)
    except UserError:
        raise
    except UnidentifiedImageError:
        kind = "an empty file" if not data else "not an image of a known format"
        raise UserError(f"image {path}: {kind}") from None
    except Image.DecompressionBombError:
        raise UserError(f"image {path}: {_too_large(PIXELS)}") from None
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"image {path}: damaged: {' '.join(str(error).split())}") from None


def _size_fault(width: int, height: int) -> str:
    """What is wrong with a size; an empty string for nothing."""
    if min(width, height) < LEAST:
        return f"{width}×{height} pixels show nothing; a side has {LEAST} at least"
    if max(width, height) > MOST:
        return f"{width}×{height} pixels; a side has {MOST:,} at most: cut or shrink it"
    return f"{width}×{height}: {_too_large(PIXELS)}" if width * height > PIXELS else ""


def _too_large(most: int) -> str:
    return f"more than {most:,} pixels: shrink it"


def _rgb(image: "Image", path: str | Path) -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")
    if image.mode in ("I", "F"):
        raise UserError(
            f"image {path}: pixels of 32 bits, whose black and white are not known; save it with 8 or 16"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    return image.convert("RGB")
