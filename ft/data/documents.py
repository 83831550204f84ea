"""The documents of a shard, read as a stream in pieces, from any place on; every bad row is named."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ft.data.rows import json_object
from ft.data.shards import Shard
from ft.errors import UserError, hub_errors, nearest, one_of

PIECE = 2**14  # bytes of a document that are handed on at once
ROW = 2**28  # bytes of a row of jsonl, which must be read whole
HELD_OUT = 20  # of so many documents (of plain text: pieces) one is held out for validation
MARK = "\ufeff"  # that a file may begin with, and which is no text
POLICIES = ("error", "skip", "replace")


class Place(NamedTuple):
    """Where a shard is read on."""

    offset: int = 0  # in bytes, uncompressed; in jsonl, of the row's beginning
    row: int = 0  # rows, or lines of plain text, before this place
    piece: int = 0  # pieces of this row, or of this plain text, before this place


class Piece(NamedTuple):
    """A whole document, or the next part of a long one."""

    text: str
    ends: bool  # the document ends with it
    unit: int  # number of its row; in plain text, of the piece itself
    after: Place


Record = tuple[Place, dict[str, Any], Place]  # a row's place, its fields, the place after it


class BadRows:
    """What happens to a row that cannot be read: an error names it, or it is left out and counted.

    "replace" puts U+FFFD for what is not UTF-8; any other fault is then an error.
    """

    def __init__(self, policy: str = "error") -> None:
        one_of("on_bad_row", policy, POLICIES)
        self.policy, self.skipped, self.last = policy, 0, ""

    def found(self, where: str, reason: str) -> None:
        """Raises UserError unless such rows are skipped."""
        self.last = f"{where}: {reason}".removesuffix(".")
        if self.policy != "skip":
            raise UserError(
                f"{self.last}{'' if self.last.endswith('?') else '.'} Mend the data, or leave such rows out with --on-bad-row skip"
            )
        self.skipped += 1

    def decode(self, data: bytes, where: str, offset: int) -> str:
        """The text of UTF-8 that begins at ``offset`` of the file; of a row left out, none."""
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            if self.policy == "replace":
                return data.decode(errors="replace")
            byte, at = data[error.start], offset + error.start
            self.found(where, f"invalid UTF-8: byte 0x{byte:02x} at offset {at} of the text")
            return ""


def read(shard: Shard, place: Place, bad: BadRows, text_field: str = "text") -> Iterator[Piece]:
    """The pieces of a shard from ``place`` on; ``text_field`` names a field of jsonl, or several: ``a+b``.

    Raises UserError for a file that cannot be read (any more), for a bad row unless it is skipped,
    and for a field that is not there.
    """
    if shard.format == "text":
        pieces = _plain(shard, place, bad)
    elif shard.format == "lines":
        pieces = _lines(shard, place, bad)
    else:
        records = (_hub if shard.format == "hub" else _jsonl)(shard, place, bad)
        pieces = _fields(shard, place, records, text_field.split("+"), bad)
    for piece in pieces:
        if not shard.part:
            yield piece
            continue
        held_out, then = (unit % HELD_OUT == HELD_OUT // 2 for unit in (piece.unit, piece.unit + 1))
        if held_out == (shard.part == "valid"):  # plain text ends where a piece is taken out of it
            yield piece._replace(ends=piece.ends or (shard.format == "text" and held_out != then))


def _plain(shard: Shard, place: Place, bad: BadRows) -> Iterator[Piece]:
    with _open(shard, place.offset) as stream:
        rest, (offset, row, count) = b"", place
        while data := rest + stream.read(PIECE - len(rest)):
            last = not stream.peek(1)
            at = len(data) if last else _border(data)
            data, rest = data[:at], data[at:]
            try:
                text = data.decode()
            except UnicodeDecodeError:  # line by line, to name or leave out only what is bad
                kept, start = [], offset
                for number, line in enumerate(data.split(b"\n"), row + 1):
                    kept.append(bad.decode(line, f"{shard.name}:{number}", start))
                    start += len(line) + 1
                text = "\n".join(kept)
            after = Place(offset + at, row + data.count(b"\n"), count + 1)
            yield Piece(text.removeprefix(MARK * (offset == 0)), last, count, after)
            offset, row, count = after


def _lines(shard: Shard, place: Place, bad: BadRows) -> Iterator[Piece]:
    with _open(shard, place.offset) as stream:
        rest, (offset, row, count) = b"", place
        while data := rest + stream.readline(PIECE - len(rest)):
            last = data.endswith(b"\n") or len(data) < PIECE
            at = len(data) if last else _border(data)
            data, rest = data[:at], data[at:]
            text = bad.decode(data, f"{shard.name}:{row + 1}", offset)
            text = (text.rstrip("\r\n") if last else text).removeprefix(MARK * (offset == 0))
            after = Place(offset + at, row + last, 0 if last else count + 1)
            if text or count:  # an empty line is no document
                yield Piece(text.replace("\\n", "\n"), last, row, after)
            offset, row, count = after


def _jsonl(shard: Shard, place: Place, bad: BadRows) -> Iterator[Record]:
    with _open(shard, place.offset) as stream:
        offset, row = place.offset, place.row
        while data := stream.readline(ROW):
            start, where = Place(offset, row), f"{shard.name}:{row + 1}"
            offset, row, whole = offset + len(data), row + 1, True
            while len(data) >= ROW and not data.endswith(b"\n"):
                whole, data = False, stream.readline(ROW)
                offset += len(data)
            if not whole:
                bad.found(
                    where, f"a row of more than {ROW >> 20} MiB; JSON is read a row at a time"
                )
                continue
            text = bad.decode(data, where, start.offset).removeprefix(MARK * (start.offset == 0))
            if not text.strip():
                continue
            value = json_object(text)
            if isinstance(value, dict):
                yield start, value, Place(offset, row)
            else:
                bad.found(where, value)


def _hub(shard: Shard, place: Place, _: BadRows) -> Iterator[Record]:
    with hub_errors(shard.name.removeprefix("hub:")):
        for row, record in enumerate(shard.rows.skip(place.row), place.row):
            yield Place(0, row), record, Place(0, row + 1)


def _fields(
    shard: Shard,
    place: Place,
    records: Iterator[Record],
    fields: Sequence[str],
    bad: BadRows,
) -> Iterator[Piece]:
    """The text of rows, in pieces where it is long."""
    for start, record, after in records:
        where = f"{shard.name}:{start.row + 1}"
        if missing := next((field for field in fields if field not in record), None):
            there = ", ".join(map(repr, record)) or "none"
            bad.found(
                where,
                f"no field {missing!r}, its fields are {there}; --text-field names the text's, "
                f"several as a+b.{nearest(missing, record)}",
            )
            continue
        values = [record[field] for field in fields]
        if wrong := [value for value in values if not isinstance(value, str)]:
            kind = "null" if wrong[0] is None else type(wrong[0]).__name__
            bad.found(where, f"the text is not a string but {kind}")
            continue
        text = "".join(values)
        try:
            rest = text.encode()
        except UnicodeEncodeError as error:  # JSON may say "\ud83d" without its other half
            if bad.policy != "replace":
                bad.found(where, f"half a character (U+{ord(text[error.start]):04X})")
                continue
            rest = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
        read_before, count = place.piece if start.row == place.row else 0, 0
        while rest:
            at = len(rest) if len(rest) <= PIECE else _border(rest[:PIECE])
            data, rest, count = rest[:at], rest[at:], count + 1
            if count > read_before:
                where_next = start._replace(piece=count) if rest else after
                yield Piece(data.decode(), not rest, start.row, where_next)


def _border(data: bytes) -> int:
    """Where to cut UTF-8 so that its tokens are those of the whole: before the last space after a word.

    In text without one, between two characters, and never within an escaped line break.
    """
    at = data.rfind(b" ")
    while at > 0 and data[at - 1 : at].isspace():
        at = data.rfind(b" ", 0, at)
    if at > 0:
        return at
    at = len(data)
    for back in (1, 2, 3):  # the last character begins here; is all of it there?
        if data[-back] & 0xC0 != 0x80:
            at -= back if data[-back] >= (0, 0xC0, 0xE0, 0xF0)[back] else 0
            break
    return at - data[:at].endswith(b"\\")


@contextlib.contextmanager
def _open(shard: Shard, offset: int) -> Iterator[io.BufferedReader]:
    """A shard's uncompressed bytes from ``offset`` on; what fails while it is read is a UserError."""
    try:
        packed = Path(shard.name).suffix.lower()
        if packed == ".zst":
            import pyarrow

            compressed = pyarrow.input_stream(shard.name, compression="zstd")
            stream: Any = io.BufferedReader(compressed, 2**20)  # type: ignore[arg-type]
        elif packed == ".gz":
            stream = io.BufferedReader(gzip.GzipFile(shard.name), 2**20)  # type: ignore[arg-type]
        else:
            stream = open(shard.name, "rb")  # noqa: SIM115
        with stream:
            if packed in (".zst", ".gz"):
                while offset and (skipped := stream.read(min(offset, 2**20))):
                    offset -= len(skipped)
            else:
                stream.seek(offset)
            yield stream
    except FileNotFoundError:
        raise UserError(
            f"{shard.name} has vanished since it was found: put it back and go on from the last "
            "checkpoint"
        ) from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise UserError(f"cannot read {shard.name}: {reason}") from None
