"""Bytes of the user's text files as lines: gzip and zstd, byte-order marks, UTF-16, and what is no text at all."""

import zlib
from pathlib import Path

from ft.errors import UserError

_MARKS = (  # UTF-32's begins as UTF-16's does
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"


def suffix_of(file: Path) -> str:
    """The suffix that tells a file's format, in lower case: ``.tsv`` of ``pairs.TSV.gz``, ``.jsonl`` of its other names."""
    *_, before, last = ["", "", *(suffix.lower() for suffix in file.suffixes)]
    found = before if last in (".gz", ".zst") else last
    return ".jsonl" if found in (".ndjson", ".jsonlines") else found


def unpacked(data: bytes, name: object) -> bytes:
    """The bytes, taken out of gzip or zstd where they are in it, whatever the file is called.

    Raises ``UserError`` for a file of these that is cut short or damaged.
    """
    if data.startswith(_ZSTD):
        return _of_zstd(data, name)
    if not data.startswith(_GZIP):
        return data
    parts = []
    try:
        while data:  # gzip files may follow one another in one
            one = zlib.decompressobj(wbits=31)
            parts.append(one.decompress(data))
            if not one.eof:
                raise UserError(f"{name}: the gzip file is cut short; copy it again")
            data = one.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise UserError(f"{name}: the gzip file is damaged ({error}); copy it again") from None
    return b"".join(parts)


def _of_zstd(data: bytes, name: object) -> bytes:
    import pyarrow

    try:
        with pyarrow.input_stream(pyarrow.py_buffer(data), compression="zstd") as stream:
            return stream.read()
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name}: the zstd file is damaged ({reason}); copy it again") from None


def text_lines(data: bytes, name: object) -> tuple[list[str], dict[int, str]]:
    r"""``lines_of`` of a file's bytes: lines ended by "\n" only, and why a line is no text, by number.

    What is packed is unpacked; UTF-16 and UTF-32 are told by their byte-order mark; where there is no
    "\n" at all, "\r" ends lines. Raises ``UserError`` for what has so many NUL bytes that it is no UTF-8.
    """
    return _lines(_utf8(data, name))


def text_of(data: bytes, name: object) -> tuple[str, dict[int, str]]:
    r"""A file's bytes as one text of lines ended by "\n", without those that are none, and why, by number."""
    lines, bad = _lines(data := _utf8(data, name))
    kept = [line.removesuffix("\r") for number, line in enumerate(lines, 1) if number not in bad]
    return "\n".join(kept) + "\n" * data.endswith(b"\n"), bad


def _lines(data: bytes) -> tuple[list[str], dict[int, str]]:
    """``lines_of``, where a NUL byte is no text either."""
    lines, bad = lines_of(data)
    if 0 in data:
        for number, line in enumerate(lines, 1):
            if "\0" in line and number not in bad:
                bad[number] = f"a NUL byte at character {line.index(chr(0)) + 1} of the line"
    return lines, bad


def _utf8(data: bytes, name: object) -> bytes:
    """Bytes of text, unpacked, in UTF-8 as far as they are text, with line breaks that are ``lines_of``'s."""
    data = unpacked(data, name)
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            try:
                text = data.decode(encoding)
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{name} begins as {encoding.upper()} does, but is none from offset {error.start} "
                    f"on ({error.reason}); save it as UTF-8"
                ) from None
            data = text.encode(errors="surrogatepass")
            break
    start = data[:4096]
    if start.count(0) * 8 > len(start):
        raise UserError(
            f"{name} is no UTF-8 text: {start.count(0)} of its first {len(start)} bytes are NUL. If it is "
            "UTF-16 without a byte-order mark, save it as UTF-8"
        )
    return data if b"\n" in data else data.replace(b"\r", b"\n")


def lines_of(data: bytes) -> tuple[list[str], dict[int, str]]:
    r"""Lines of text, ended by "\n" only, and why a line is not UTF-8, by its number from 1."""
    bad: dict[int, str] = {}
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text, start = data.decode(errors="replace"), 0
        for number, line in enumerate(data.split(b"\n"), 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte, offset = line[error.start], start + error.start
                bad[number] = f"invalid UTF-8: byte 0x{byte:02x} at offset {offset} of the file"
            start += len(line) + 1
    lines = text.removeprefix("\ufeff").split("\n")
    return lines[:-1] if lines[-1] == "" else lines, bad
