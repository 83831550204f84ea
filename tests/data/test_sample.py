"""Checks of the small sample data in ft/data/sample, written for the project."""

import re
import unicodedata
from collections import Counter, defaultdict
from importlib.resources import files
from pathlib import Path

import pytest

from ft.score.rewards import language

ROOT = Path(str(files("ft"))) / "data" / "sample"
COUNTS = {"train": 900, "valid": 80, "test": 120}
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
    assert len(set(sources)) == len(sources) == 1100
    assert len(set(folded)) == len(folded)


def alike(sets):
    """Pairs of places whose sets share more than half of all that they have.

    Two such sets also share one of the rarer half of their parts, so only those are compared.
    """
    common = Counter(part for parts in sets for part in parts)
    holders = defaultdict(list)
    for at, parts in enumerate(sets):
        rare = sorted(parts, key=lambda part: (common[part], part))[: len(parts) // 2 + 1]
        for other in {place for part in rare for place in holders[part]}:
            if len(parts & sets[other]) > 0.5 * len(parts | sets[other]):
                yield other, at
        for part in rare:
            holders[part].append(at)


def grams(text):
    """Runs of four characters, of letters and digits alone."""
    plain = " ".join(["", *re.findall(r"[^\W_]+", text.casefold()), ""])
    return {plain[i : i + 4] for i in range(max(1, len(plain) - 3))}


@pytest.mark.parametrize("column", [1, 2])
def test_no_two_rows_are_alike(column):
    texts = [row[column] for split in SPLITS for row in rows(split)]
    assert [(texts[a], texts[b]) for a, b in alike([grams(text) for text in texts])] == []
    assert list(alike([set("abc"), set("abcd"), set("xyz"), set("abx")])) == [(0, 1)]


def runs_of_words(text, length=6):
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


@pytest.mark.parametrize("column", [1, 2])
def test_no_six_words_of_a_split_stand_in_another(column):
    seen = {s: set().union(*(runs_of_words(row[column]) for row in rows(s))) for s in SPLITS}
    for a, b in (("train", "valid"), ("train", "test"), ("valid", "test")):
        assert not seen[a] & seen[b]


def test_what_the_readme_asks_for_is_not_learnt_by_heart():
    assert not any("morgane" in row[1].casefold() for split in SPLITS for row in rows(split))


def test_no_near_duplicates_between_splits():
    table = [(split, row[1]) for split in SPLITS for row in rows(split)]
    sets = [set(re.findall(r"\w+", text.casefold())) for _, text in table]
    for a, b in alike(sets):
        if min(len(sets[a]), len(sets[b])) >= 4:
            assert table[a][0] == table[b][0], (table[a], table[b])


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


# Of MTNT's training rows 34% have at most 8 words, 53% 9 to 25, and 13% more.
@pytest.mark.parametrize("split", SPLITS)
def test_lengths_are_mixed_as_in_mtnt(split):
    found = [len(row[1].split()) for row in rows(split)]
    shares = [sum(low < n <= high for n in found) for low, high in ((0, 8), (8, 25), (25, 1000))]
    for share, expected in zip(shares, (0.34, 0.53, 0.13), strict=True):
        assert abs(share / len(found) - expected) < 0.05


def test_each_side_is_in_its_language():
    table = [row for split in SPLITS for row in rows(split)]
    for column, code in ((1, "en"), (2, "fr")):
        other = [row[column] for row in table if language(row[column], code) < 0.5]
        assert len(other) <= 0.005 * len(table), other  # code-switching, and "but", a goal


def test_most_targets_are_translated():
    table = [row for split in SPLITS for row in rows(split)]
    assert sum(row[1] == row[2] for row in table) <= 0.03 * len(table)


def test_readme_names_counts_and_licence():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for word in ("900", "80", "120", "Apache-2.0", "--data release"):
        assert word in text
