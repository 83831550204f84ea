"""Translation memories (TMX): the segments of two languages, read without entities and without other files."""

import xml.parsers.expat
from dataclasses import dataclass, field

from ft.data.rows import Record
from ft.errors import UserError
from ft.text.languages import Language

_CODES = {"bpt", "ept", "it", "ph", "ut", "sub"}  # markup of a segment that is no text of it


@dataclass
class _Unit:
    """A translation unit while it is read: its line, and each variant's language and text."""

    line: int
    variants: list[tuple[str, str]] = field(default_factory=list)


def records(data: bytes, origin: str, source: Language, target: Language) -> list[Record]:
    """``{"source", "target"}`` of each unit, by the line that it begins at, or why it has none.

    A segment's language is its ``xml:lang``, with any region where the wanted one has none: of
    several the one that is called exactly so. Formatting codes inside a segment are left out. Raises
    ``UserError`` for XML that is broken, and for one that defines entities, which could be of any size.
    """
    parser = xml.parsers.expat.ParserCreate()
    found: list[Record] = []
    unit, language, depth = _Unit(0), "", 0  # depth: of codes inside a segment
    text: list[str] | None = None

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal unit, language, text, depth
        if name == "tu":
            unit = _Unit(parser.CurrentLineNumber)
        elif name == "tuv":
            language = attributes.get("xml:lang", attributes.get("lang", ""))
        elif name == "seg":
            text, depth = [], 0
        elif name in _CODES:
            depth += 1

    def end(name: str) -> None:
        nonlocal text, depth
        if name == "tu":
            found.append((unit.line, _pair(unit, source, target)))
        elif name == "seg" and text is not None:
            unit.variants.append((language, "".join(text).strip()))
            text = None
        elif name in _CODES:
            depth -= 1

    def characters(piece: str) -> None:
        if text is not None and not depth:
            text.append(piece)

    def refuse(*named: object) -> None:
        raise UserError(
            f"{origin}:{parser.CurrentLineNumber}: the entity {named[0]!r} is not of XML itself; none is "
            "read, for a file can make them of any size: write the character instead"
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = characters
    parser.EntityDeclHandler = parser.SkippedEntityHandler = refuse
    try:
        parser.Parse(data, True)
    except xml.parsers.expat.ExpatError as error:
        raise UserError(f"{origin} is broken XML: {error}") from None
    if not found:
        raise UserError(f"no rows in {origin}: it has no <tu>, as a TMX file has")
    return found


def _pair(unit: _Unit, source: Language, target: Language) -> dict[str, str] | str:
    """The two segments of a unit, or why they are not there."""
    row = {}
    for side, wanted in (("source", source), ("target", target)):
        called = [(name, text) for name, text in unit.variants if wanted.is_called(name)]
        exactly = [variant for variant in called if wanted.is_called(variant[0], exactly=True)]
        texts = {text for _, text in exactly or called}
        if not texts:
            there = ", ".join(name or "none" for name, _ in unit.variants) or "no segment"
            return f"no segment in {wanted.name} ({wanted.code}); there is {there}"
        if len(texts) > 1:
            names = ", ".join(name for name, _ in exactly or called)
            return (
                f"{len(texts)} segments in {wanted.name} ({names}); name one as in --language-pair "
                f"{source.code}-{target.code}_XX, or keep one in each unit"
            )
        (row[side],) = texts
    return row
