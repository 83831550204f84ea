"""A run from English into German on pairs of one's own: trained, scored, translated with."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from support.recipe_runs import train

from ft import __main__ as cli
from ft.errors import UserError
from ft.runs import opened

WORDS = {"tea": "Tee", "train": "Zug", "station": "Bahnhof", "friend": "Freund", "river": "Fluss"}
PAIRS = [
    (f"{how} {word}", f"{wie} {wort}")
    for how, wie in (("my", "mein"), ("the", "der"), ('"a"', '"ein"'), ("no", "kein"))
    for word, wort in WORDS.items()
]


def table(path: Path, pairs: list[tuple[str, str]], header: tuple[str, str] = ("en", "de")) -> str:
    with path.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t", lineterminator="\n").writerows([header, *pairs])
    return str(path)


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("german")
    data = table(place / "pairs.tsv", PAIRS)
    return train("mtnt_lora", place, "--data", data, "--language-pair", "en-de")


def test_the_record_holds_direction_data_and_scores(german: Path) -> None:
    record = json.loads((german / "run.json").read_text())
    assert yaml.safe_load((german / "config.yaml").read_text())["language_pair"] == "en-de"
    assert record["template"]["name"] == "translate from English into German"
    assert record["template"]["stop"] == ["\n"]
    origin = record["data"]["train"]["origin"]
    assert origin.endswith("pairs.tsv (read as quoted), without 4 held out by seed 42")
    assert record["data"]["test"]["rows"] == 2
    test = record["evaluation"]["test"]
    assert "tok:13a" in test["signatures"]["bleu"]
    assert test["ask"].startswith("Translate this from English into German:\n")
    assert {tuple(s[k] for k in ("source", "reference")) for s in test["samples"]} <= set(PAIRS)
    assert "language:\n- en\n- de\n" in (german / "README.md").read_text()


def test_it_is_scored_on_other_pairs(german: Path, tmp_path: Path, capsys) -> None:
    spec = table(tmp_path / "own.tsv", PAIRS[:3] + [('"so"', '"also"')], ("source", "target"))
    result = tmp_path / "result.json"
    short = ["--precision", "fp32", "--max-new-tokens", "4"]
    cli.main(["eval", str(german), "--data", spec, "--json", str(result), *short])
    assert json.loads(result.read_text())["n"] == 4
    assert "own.tsv (read as quoted)" in capsys.readouterr().out
    cli.main(["eval", str(german), "--limit", "1", *short])  # its own test split
    assert "held out by seed 42" in capsys.readouterr().out
    cli.main(["eval", str(german), "--data", spec, "--quoting", "raw", *short])
    assert "own.tsv (read as raw)" in capsys.readouterr().out
    broken = table(tmp_path / "lines.tsv", [("a", "b\nc")])
    with pytest.raises(SystemExit):
        cli.main(["eval", str(german), "--data", broken])
    assert "1 translations have line breaks, at which this run's" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["eval", str(german), "--data", table(tmp_path / "f.tsv", PAIRS, ("en", "fr"))])
    assert "Columns may also be called 'en' and 'de'" in capsys.readouterr().err


def test_it_translates_line_by_line(german: Path, tmp_path: Path, capsys) -> None:
    file = tmp_path / "in.txt"
    short = ["--precision", "fp32", "--max-new-tokens", "3"]
    file.write_bytes("\ufeffone\u2028two\r\n\nthree\x0c\x85four\nfive\rsix\n".encode())
    cli.main(["translate", str(german), "--file", str(file), *short])
    out = capsys.readouterr().out
    assert len(out.split("\n")) - 1 == 4
    assert out.split("\n")[1] == ""
    file.write_text("fine\nfour <end_of_turn> <bos>\n")
    with pytest.raises(SystemExit):
        cli.main(["translate", str(german), "--file", str(file), *short])
    assert f"{file}:2, source: the text contains '<end_of_turn>'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["translate", str(german), "ok", "no <eos>", *short])
    assert "text 2, source: the text contains '<eos>'" in capsys.readouterr().err
    file.write_bytes(b"fine\n\xe9\n")
    with pytest.raises(SystemExit):
        cli.main(["translate", str(german), "--file", str(file), *short])
    assert f"{file}:2: invalid UTF-8: byte 0xe9" in capsys.readouterr().err


def test_answers_of_several_lines_are_learnt_to_their_end(tmp_path: Path, capsys) -> None:
    pairs = [(f"{a}\n{b}", f"{b}\n\n{a}") for a, b in PAIRS[:9]]
    data = table(tmp_path / "pairs.csv.tsv", pairs)
    folder = train("mtnt_lora", tmp_path, "--data", data, "--language-pair", "en-de")
    assert "translations with line breaks: none ends an answer" in capsys.readouterr().out
    run = opened.finished(str(folder))
    assert run.template.stop == ()
    assert run.template.trim("a\n\nb\n") == "a\n\nb"
    example = (folder / "examples.txt").read_text()
    assert "\n\n" in example[example.index("⟦") : example.index("⟧")]


@pytest.mark.parametrize("recipe", ["mtnt_full", "mtnt_recurrent"])
def test_whole_models_learn_them_too(recipe: str, tmp_path: Path) -> None:
    data = table(tmp_path / "pairs.tsv", PAIRS)
    folder = train(
        recipe, tmp_path, "--data", data, "--language-pair", "en-de", "--max-length", "200"
    )
    record = json.loads((folder / "run.json").read_text())
    assert {split: found["rows"] for split, found in record["data"].items()} == {
        "train": 16,
        "valid": 2,
    }
    assert record["template"]["name"] == "translate from English into German"


def test_an_unknown_language_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    data = table(tmp_path / "pairs.tsv", PAIRS)
    with pytest.raises(UserError, match="'qq' is not a language that is known here"):
        train("mtnt_lora", tmp_path, "--data", data, "--language-pair", "en-qq")
    assert not (tmp_path / "run").exists()
