"""Several sources as one: what a list of them names, how many rows each gives, and what is refused."""

import json
from collections import Counter

import pytest

from ft.data import mixture
from ft.data.instructions import dolly, splits
from ft.data.rows import Rows, digest, summary
from ft.data.translation import translation_splits
from ft.errors import UserError

SIZES = {"a": 100, "b": 60, "c": 40}


def one(place: str, split: str) -> Rows:
    rows = [{"source": f"{place}{i}", "target": split} for i in range(SIZES[place])]
    return Rows(rows, f"{place} there", digest(place.encode()), 1)


def mixed(spec: str, max_rows: int | None = None, seed: int = 1) -> Rows:
    return mixture.mixed(spec, one, seed=seed, max_rows=max_rows)


def counts(rows: Rows) -> dict[str, int]:
    return dict(Counter(row["source"][0] for row in rows))


@pytest.mark.parametrize(
    ("spec", "max_rows", "wanted"),
    [
        ("a,b", None, {"a": 100, "b": 60}),
        ("a,b", 16, {"a": 10, "b": 6}),
        ("a,b=0.2", None, {"a": 100, "b": 25}),
        ("b=0.2,a", None, {"a": 100, "b": 25}),
        ("a,c,b=0.3", None, {"a": 100, "c": 40, "b": 60}),
        ("a=0.5,b=.5", None, {"a": 60, "b": 60}),
        ("a=0.5,b=0.3,c=0.2", None, {"a": 100, "b": 60, "c": 40}),
        ("a,b=0.75", 80, {"a": 20, "b": 60}),
        ("a=0.3333333,b=0.3333333,c=0.3333334", 10, {"a": 3, "b": 3, "c": 4}),
        ("a,b,c", 11, {"a": 6, "b": 3, "c": 2}),
        ("a,b", 1000, {"a": 100, "b": 60}),
    ],
)
def test_a_share_is_of_the_mixture(spec, max_rows, wanted):
    rows = mixed(spec, max_rows)
    assert counts(rows) == wanted == rows.by_source()
    assert len({row["source"] for row in rows}) == len(rows)
    assert rows.skipped == len(wanted)


def test_one_source_is_as_it_was():
    alone = mixed("a")
    assert alone == one("a", "train")
    assert alone.by_source() == {}
    assert mixed("a", 7) == alone.sample(7, 1)


def test_the_seed_draws_and_names_the_mixture():
    first, again, other = mixed("a,b=0.2"), mixed("a,b=0.2"), mixed("a,b=0.2", seed=2)
    assert first == again
    assert first.rows != other.rows
    assert len({first.sha256, other.sha256, mixed("a,b=0.1").sha256, mixed("a,b").sha256}) == 4
    assert first.origin == (
        "100 of 100 rows of a there + 25 of 60 rows of b there, drawn by seed 1"
    )
    assert first.rows[:100] == one("a", "train").rows


def test_each_split_knows_its_sources():
    train, valid = mixed("a,b=0.2").split(25, seed=3)
    both = Counter(train.by_source()) + Counter(valid.by_source())
    assert both == {"a": 100, "b": 25}
    assert train.by_source() == counts(train)
    assert train.sample(9, 1).by_source() == counts(train.sample(9, 1))
    said = summary({"train": train, "valid": valid})
    n = valid.by_source()["b"]
    assert (
        f"source b: {25 - n} of train ({(25 - n) / 100:.1%}), {n} of valid ({n / 25:.1%})" in said
    )


@pytest.mark.parametrize(
    ("spec", "max_rows", "said"),
    [
        ("a,b=0.5", None, r"b has 60 rows; to be 0.5 of the mixture .* 100 of 200.*at most 0.375"),
        ("a=0.5,b=0.6", None, r"add up to 1.1; wanted is 1"),
        ("a=0.5,b=0.4", None, r"add up to 0.9; wanted is 1, or a source without one"),
        ("a,b=0.5,c=0.5", None, r"add up to 1, which leaves nothing for a"),
        ("a=0.3", None, r"there is one source; --max-rows"),
        ("a,b=3", None, r"b=3: a source's share of the mixture is above 0 and below 1"),
        ("a,b=30%", None, r"b=30%: a source's share"),
        ("a,b=0", None, r"b=0: a source's share"),
        ("a,b=-0.1", None, r"b=-0.1: a source's share"),
        ("a,,b", None, r"nothing beside a comma"),
        ("a,b,a", None, r"a is named twice"),
        ("a,b=0.01", 10, r"b would give none of the 10 rows"),
    ],
)
def test_what_cannot_be_is_refused_with_its_numbers(spec, max_rows, said):
    with pytest.raises(UserError, match=said):
        mixed(spec, max_rows)


def test_the_advice_of_a_refusal_holds():
    with pytest.raises(UserError, match=r"at most (0.375)\), or --max-rows 120$"):
        mixed("a,b=0.5")
    assert mixed("a,b=0.375").by_source() == {"a": 100, "b": 60}
    assert mixed("a,b=0.5", 120).by_source() == {"a": 60, "b": 60}


def test_names_with_commas_equals_and_colons(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a,b.jsonl", "x=0.5", "one.en", "one,1.de"):
        (tmp_path / name).touch()

    def named(spec: str) -> list[tuple]:
        return [(s.place, s.split, s.share and float(s.share)) for s in mixture.sources(spec)]

    assert named("a,b.jsonl") == [("a,b.jsonl", "train", None)]
    assert named("a,b.jsonl=0.5, c.jsonl") == [
        ("a,b.jsonl", "train", 0.5),
        ("c.jsonl", "train", None),
    ]
    assert named("x=0.5,y=b.jsonl") == [("x=0.5", "train", None), ("y=b.jsonl", "train", None)]
    assert named("x=0.5=0.25,y") == [("x=0.5", "train", 0.25), ("y", "train", None)]
    assert named("one.en:one,1.de=0.5,z") == [
        ("one.en:one,1.de", "train", 0.5),
        ("z", "train", None),
    ]
    assert named(r"C:\a.jsonl=0.3,D:\b.en:D:\b.de") == [
        (r"C:\a.jsonl", "train", 0.3),
        (r"D:\b.en:D:\b.de", "train", None),
    ]
    assert named("hub:o/n:test=0.3,hub:o/n/part,o/n") == [
        ("hub:o/n", "test", 0.3),
        ("hub:o/n/part", "train", None),
        ("o/n", "train", None),
    ]


def test_instructions_are_mixed_across_formats(tmp_path):
    own, chats = tmp_path / "own.jsonl", tmp_path / "chats.jsonl"
    own.write_text(
        "".join(
            json.dumps({"instruction": f"Add {i}.", "response": f"{i}"}) + "\n" for i in range(30)
        )
    )
    chats.write_text(
        "".join(
            json.dumps({"prompt": f"Say {i}.", "completion": f"{i}!"}) + "\n" for i in range(30)
        )
    )
    found = splits(f"{own},{chats}=0.25", valid_rows=4, test_rows=4, seed=1)
    assert sum(rows.by_source()[str(chats)] for rows in found.values()) == 10
    assert sum(map(len, found.values())) == 40
    few = dolly(f"{own},{chats}=0.25", seed=1, max_rows=20)
    assert few.by_source() == {str(own): 15, str(chats): 5}
    assert {row["response"][-1] == "!" for row in few.rows[15:]} == {True}


def test_pairs_are_mixed_and_held_out(tmp_path):
    english, german = tmp_path / "a,1.en", tmp_path / "a,1.de"
    english.write_text("".join(f"English {i}\n" for i in range(40)))
    german.write_text("".join(f"Deutsch {i}\n" for i in range(40)))
    own = tmp_path / "own.tsv"
    own.write_text("en\tde\n" + "".join(f"One {i}\tEins {i}\n" for i in range(40)))
    spec = f"{english}:{german},{own}=0.2"
    found = translation_splits(data=spec, language_pair="en-de", seed=1)
    names = [f"{english}:{german}", str(own)]
    assert list(found["train"].by_source()) == names
    assert [sum(r.by_source()[name] for r in found.values()) for name in names] == [40, 10]
    few = translation_splits(data=spec, language_pair="en-de", seed=1, max_rows=20)
    assert [sum(r.by_source()[name] for r in few.values()) for name in names] == [16, 4]
    with pytest.raises(UserError, match="--max-rows is of your own pairs"):
        translation_splits(max_rows=20)


def test_the_hub_is_asked_for_what_is_called_so(monkeypatch, tmp_path):
    import datasets

    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/name").touch()
    asked = []

    def load_dataset(name, *configuration, split, **_):
        asked.append((name, *configuration, split))
        rows = [{"instruction": f"{name}{i}", "output": "x"} for i in range(4)]
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = dolly("hub:owner/name:test=0.25,other/name,hub:owner/name/part", seed=1)
    assert asked == [
        ("owner/name", "test"),
        ("other/name", "train"),
        ("owner/name", "part", "train"),
    ]
    assert list(rows.by_source().values()) == [2, 4, 4]
