"""Translation memories: languages with variants, markup, and XML that is refused."""

import gzip
from pathlib import Path

import pytest

from ft.data.tables import open_pairs, read_table
from ft.errors import UserError

HEAD = (
    '<?xml version="1.0"?>\n<!DOCTYPE tmx SYSTEM "tmx14.dtd">\n<tmx version="1.4"><header/><body>\n'
)


def memory(path: Path, *units: str) -> str:
    """A file of units, one a line from line 4 on; each is ``lang text | lang text``."""
    lines = []
    for unit in units:
        variants = (part.strip().split(" ", 1) for part in unit.split("|"))
        tuvs = "".join(f'<tuv xml:lang="{lang}"><seg>{text}</seg></tuv>' for lang, text in variants)
        lines.append(f"<tu>{tuvs}</tu>")
    path.write_text(HEAD + "\n".join(lines) + "\n</body></tmx>\n", encoding="utf-8")
    return str(path)


def read(spec: str, pair: str = "en-de", **options):
    rows = open_pairs(spec, pair=pair, **options)
    return [tuple(row.values()) for row in rows]


def test_languages_by_code_and_region(tmp_path: Path) -> None:
    spec = memory(
        tmp_path / "a.tmx",
        "EN-us good morning | de-DE guten Morgen | fr bonjour",
        "de Tee &amp; Milch | en tea &amp; milk",
    )
    assert read(spec) == [("good morning", "guten Morgen"), ("tea & milk", "Tee & Milch")]
    assert read(spec, "de-en") == [pair[::-1] for pair in read(spec)]
    with pytest.raises(UserError, match=r"a\.tmx:5: no segment in French \(fr\); there is de, en"):
        read(spec, "en-fr")
    assert read(spec, "en-fr", on_bad_row="skip") == [("good morning", "bonjour")]


def test_of_several_variants_one_is_named(tmp_path: Path) -> None:
    spec = memory(tmp_path / "a.tmx", "en-GB lorry | en-US truck | de Lkw")
    with pytest.raises(UserError, match=r"a\.tmx:4: 2 segments in English \(en-GB, en-US\); name"):
        read(spec)
    assert read(spec, "en_US-de") == [("truck", "Lkw")]
    assert read(spec, "en_GB-en_US") == [("lorry", "truck")]
    same = memory(tmp_path / "b.tmx", "en-GB tea | en-US tea | de-AT x | de Tee")
    assert read(same) == [("tea", "Tee")]


def test_markup_is_no_text(tmp_path: Path) -> None:
    spec = memory(
        tmp_path / "a.tmx",
        'en <bpt i="1">{\\b </bpt>bold<ept i="1">}</ept> <hi>and</hi> on<ph/> | de <![CDATA[a<b]]>',
    )
    assert read(spec) == [("bold and on", "a<b")]


def test_older_attribute_other_encoding_gzip(tmp_path: Path) -> None:
    text = Path(memory(tmp_path / "a.tmx", "en a | de ä")).read_text(encoding="utf-8")
    text = text.replace("xml:lang", "lang")
    (tmp_path / "b.tmx.gz").write_bytes(gzip.compress(text.encode("utf-16")))
    assert read(str(tmp_path / "b.tmx.gz")) == [("a", "ä")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (HEAD + "<tu>", r"a\.tmx is broken XML: no element found: line 4"),
        (HEAD + "</body></tmx>", r"no rows in .*a\.tmx: it has no <tu>"),
        (
            HEAD.replace('"tmx14.dtd"', '"tmx14.dtd" [<!ENTITY a "aaaa">]') + "</body></tmx>",
            r"a\.tmx:2: the entity 'a' is not of XML itself",
        ),
        (
            HEAD.replace('SYSTEM "tmx14.dtd"', '[<!ENTITY a SYSTEM "/etc/passwd">]')
            + "</body></tmx>",
            r"a\.tmx:2: the entity 'a' is not of XML itself",
        ),
        (
            HEAD + '<tu><tuv xml:lang="en"><seg>a&nbsp;b</seg></tuv></tu></body></tmx>',
            r"a\.tmx:4: the entity 'nbsp' is not of XML itself",
        ),
    ],
)
def test_xml_that_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.tmx").write_text(content)
    with pytest.raises(UserError, match=message):
        read(str(tmp_path / "a.tmx"), on_bad_row="skip")


def test_an_empty_segment_is_a_bad_row(tmp_path: Path) -> None:
    spec = memory(tmp_path / "a.tmx", "en a | de &#32;", "en b | de B")
    with pytest.raises(UserError, match=r"a\.tmx:4: target is empty"):
        read(spec)


def test_a_memory_is_for_a_recipe_that_translates(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tmx holds translations"):
        read_table(memory(tmp_path / "a.tmx", "en a | de b"))
