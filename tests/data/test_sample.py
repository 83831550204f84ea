"""Checks of the small sample data in ft/data/sample, written for the project."""

import re
import unicodedata
from importlib.resources import files
from pathlib import Path

import pytest

ROOT = Path(str(files("ft"))) / "data" / "sample"
COUNTS = {"train": 300, "valid": 60, "test": 60}
SPLITS = sorted(COUNTS)

# Surface marks of informal writing, looked for in the English side only.
NOISE = {
    "apostrophe left out": r"\b(?:im|ive|dont|doesnt|didnt|isnt|wasnt|arent|wouldnt|couldnt|havent|cant|wont"
    r"|thats|theres|heres|whats|whos|hes|shes|theyre|itll|youre|its (?:a|the|not|just|fixed|still|called|like))\b",
    "abbreviation or slang": r"\b(?:idk|tbh|smh|imo|iirc|afaik|ngl|ftfy|tl;dr|eli5|omg|lol|lmao+|lmaooo|brb|btw|fwiw"
    r"|til|psa|wdym|irl|rn|af|ymmv|rip|pls|plz|thx|ty|u|ur|r|ppl|bc|cuz|yrs?|hrs|mins|bf|gf|gg|op|nta|esh|nvm|aita"
    r"|gonna|wanna|gotta|kinda|prolly|tho|thru|yall|bruh|bro|dude|legit|em|til|w/|nah|nope|yeah|haha|dunno)(?!\w)",
    "letter repeated": r"([a-z])\1\1",
    "shouted word": r"(?-i:\b[A-Z]{4,}\b)",
    "emoji": r"[\u2600-\u27bf\U0001f300-\U0001faff]",
    "punctuation repeated": r"[!?]{2,}|\.{3}",
    "markdown, tag or name": r"\*\w|~~|^> |(?<!\w)[#@]\w|\br/\w",
    "small first letter or small I": r"(?-i:^[a-z]|(?<![\w'.])i(?![\w'.]))",
}


def rows(split):
    text = (ROOT / "MTNT" / split / f"{split}.en-fr.tsv").read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    return [line.split("\t") for line in text[:-1].split("\n")]


def noisy(source):
    return [name for name, mark in NOISE.items() if re.search(mark, source, re.IGNORECASE)]


@pytest.mark.parametrize("split", SPLITS)
def test_count_and_columns(split):
    table = rows(split)
    assert len(table) == COUNTS[split]
    for row in table:
        assert len(row) == 3
        assert all(cell and cell == cell.strip() for cell in row)


@pytest.mark.parametrize("split", SPLITS)
def test_characters(split):
    for _, source, target in rows(split):
        for text in (source, target):
            assert text == unicodedata.normalize("NFC", text)
            assert not any(unicodedata.category(c) in ("Cc", "Zl", "Zp", "Co", "Cn") for c in text)
            assert "  " not in text
            assert "\ufffd" not in text
        assert not re.search("[\u2018\u2019\u201c\u201d\u00ab\u00bb\u00a0\u202f]", target)
        assert '"' not in target or target.count('"') % 2 == 0


@pytest.mark.parametrize("split", SPLITS)
def test_space_before_high_punctuation(split):
    for _, _, target in rows(split):
        target = re.sub(r"https?://\S+", "", target)
        assert not re.search(r"\w[?!;](?!\w)|\w:(?=\s|$)", target.replace("!!!1!", "")), target


def test_ids_ascend_over_all_splits():
    ids = [int(row[0]) for split in ("train", "valid", "test") for row in rows(split)]
    assert ids == sorted(ids)
    assert all(ids.count(i) <= 4 for i in set(ids))
    owners = {}
    for split in SPLITS:
        for row in rows(split):
            assert owners.setdefault(row[0], split) == split


def test_sources_are_unique():
    sources = [row[1] for split in SPLITS for row in rows(split)]
    folded = [re.sub(r"\s+", " ", s.casefold()).strip(" .!?") for s in sources]
    assert len(set(sources)) == len(sources) == 420
    assert len(set(folded)) == len(folded)


def test_no_near_duplicates_between_splits():
    words = {s: [set(re.findall(r"\w+", row[1].casefold())) for row in rows(s)] for s in SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        for left in words[a]:
            for right in words[b]:
                if min(len(left), len(right)) >= 4:
                    assert len(left & right) <= 0.5 * len(left | right), (left, right)


@pytest.mark.parametrize("split", SPLITS)
def test_most_sources_are_noisy(split):
    table = rows(split)
    share = sum(bool(noisy(row[1])) for row in table) / len(table)
    assert share > 0.70


def test_every_kind_of_noise_occurs_in_train():
    found = {name for row in rows("train") for name in noisy(row[1])}
    assert found == set(NOISE)


@pytest.mark.parametrize("split", SPLITS)
def test_lengths(split):
    table = rows(split)
    source = [len(row[1].split()) for row in table]
    target = [len(row[2].split()) for row in table]
    assert min(source) == 1
    assert 60 <= max(source) <= 100
    assert 14 < sum(source) / len(source) < 22
    assert 1.0 < sum(target) / sum(source) < 1.3


def test_most_targets_are_translated():
    table = [row for split in SPLITS for row in rows(split)]
    assert sum(row[1] == row[2] for row in table) <= 0.03 * len(table)


def test_readme_names_counts_and_licence():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("300", "60", "Apache-2.0", "--data release"):
        assert word in text
