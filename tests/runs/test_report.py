"""A run's page: what it says, that it is whole in itself, and that what a row says stays text."""

import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.reported_run import ATTACK, METRICS, RUN, SAMPLES, made

from ft.cli import report as command
from ft.errors import UserError
from ft.runs import curves, lock, report, report_facts, report_rows
from ft.runs.folder import Run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "run")


def text_of(page: str) -> str:
    """What a reader of a page without a style reads."""
    import html

    body = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub("<.*?>", " ", body)).split())


def test_the_page_says_what_the_folder_holds(folder: Path) -> None:
    page = report.page(folder)
    read = text_of(page)
    for said in (
        "Better than its base: chrF 12.0 → 42.3 on 1,020 rows of test (p = 0.002)",
        "kept are the weights of step 2 of 4, the best on valid (2.250, 2.500 at the last)",
        "best validation loss 2.250 from 3.000, at step 2",
        "time 10 min 0 s 4 steps in 4 min 0 s",
        "tokens a second 512 128 of them learnt",
        "peak memory 3.0 GiB 2.0 GiB were planned",
        "planned 2.00 GiB measured 3.00 GiB",
        "validations and checkpoints 1 min 0 s",
        "scores and answers, base and tuned 2 min 0 s",
        "42.3 [41.0, 43.6]",
        "1-8 10 9-16 5",
        "WARN data 2 duplicates <b>",
        "1 of 2 found nothing wrong",
        "learning_rate: 0.0005",
        "MTNT train.en-fr.tsv 1,401",
        "slang 1 row, few",
    ):
        assert said in read, said
    assert "best: 2.250 at step 2" in page  # in the drawing
    assert (
        page.count('class="row"') == 1 + len(SAMPLES) + 1
    )  # what every run is asked, and a heat map


def test_what_a_row_says_stays_text(folder: Path) -> None:
    page = report.page(folder)
    assert page.count("<script") == 1
    assert "<img" not in page
    assert text_of(page).count(ATTACK) == 3  # asked, tuned, reference


def test_the_page_is_whole_in_itself(folder: Path) -> None:
    page = report.page(folder)
    assert not re.search(r"""(?:src|href|url)\s*[=(]\s*["']?(?!data:)[\w./]""", text_free(page))
    assert set(re.findall(r"https?://[^\"' <]+", page)) <= {
        "http://www.w3.org/2000/svg",  # names, which nothing fetches
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in page
    assert "/home/morgane" not in page


def text_free(page: str) -> str:
    """A page's tags alone."""
    return "".join(re.findall(r"<[a-z][^<>]*>", page))


def test_a_page_of_little_says_little(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    page = report.page(tmp_path)
    assert re.findall("<h2>(.*?)</h2>", page) == ["Record"]
    older = Path(__file__).parents[1] / "fixtures" / "older_run" / "run"
    assert "<h2>Scores on test" in report.page(older)


@pytest.mark.parametrize(("file", "text"), [("run.json", "{"), ("config.yaml", "a: [")])
def test_a_file_that_does_not_parse_is_named(folder: Path, file: str, text: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match="run"):
        report.page(folder)


def test_the_page_is_live_until_the_run_has_ended(tmp_path: Path) -> None:
    run = Run(tmp_path, {"recipe": "mtnt_lora"}, "max_steps: 8\n")
    run.begin()
    lock.take(tmp_path)
    page = tmp_path / report.REPORT
    for step, loss in ((0, 3.0), (2, 2.5)):
        run.log({"step": step, "loss": 3.0})
        assert not step or f"step {step}" not in page.read_text()
        run.log({"step": step, "eval_loss": loss})
        assert 'http-equiv="refresh"' in page.read_text()
    assert "Under way: step 2 of 8; validation loss 3.000 → 2.500" in text_of(page.read_text())
    lock.release(tmp_path)
    assert "Stopped: step 2 of 8; validation loss" in text_of(report.page(tmp_path))
    run.note(finished="2030-01-02T03:14:05+00:00")
    run.report()
    assert 'http-equiv="refresh"' not in page.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_page_that_cannot_be_made_ends_no_training(tmp_path: Path, capsys: Any) -> None:
    run = Run(tmp_path, {"data": 3}, "")
    run.begin()
    run.log({"step": 0, "eval_loss": 1.0})
    assert "report.html was not written: " in capsys.readouterr().out
    assert run.metrics() == [{"step": 0, "eval_loss": 1.0}]


def test_a_loss_that_is_no_number_is_neither_best_nor_last() -> None:
    lines = [{"step": step, "eval_loss": loss} for step, loss in enumerate((3.0, 2.0, math.nan))]
    seen = report_facts.validations({}, lines)
    assert seen["best"] == seen["last"] == (1, 2.0)
    assert "<svg" in curves.svg({"run": lines}, {"run": 1})


def test_a_verdict_follows_the_figures() -> None:
    def of(before: float, after: float, p: float) -> str:
        found = {"n": 9, "base": {"chrf": before}, "tuned": {"chrf": after}}
        record = {"finished": "", "evaluation": {"test": found | {"p_value": {"chrf": p}}}}
        return report_facts.verdict(record, {}, []).partition(":")[0]

    assert of(10.0, 20.0, 0.01) == "Better than its base"
    assert of(20.0, 10.0, 0.01) == "Worse than its base"
    assert of(10.0, 20.0, 0.2) == of(10.0, 10.0, 0.001) == "No clear difference to its base"


def test_differing_words_are_marked_and_nothing_is_lost() -> None:
    base, tuned = "le chat dort bien", "le  chien dort\ntrès bien ici"
    pieces = report_rows.marked(tuned, base, "Le chien, dort-il ? Très bien.")
    assert "".join(text for text, _ in pieces) == tuned
    assert [(text.strip(), mark) for text, mark in pieces if mark] == [
        ("chien", "hit"),
        ("très", "hit"),
        ("ici", "miss"),
    ]
    assert report_rows.marked("a b", "a b", "") == [("a b", "")]
    assert report_rows.marked("", "a", "a") == []


def test_a_slice_holds_its_rows() -> None:
    found = {each["kind"]: each for each in report_rows.slices(SAMPLES)}
    assert found["slang"]["n"] == 1
    assert found["slang"]["base"] < found["slang"]["tuned"]
    assert sum(each["n"] for each in found.values()) >= len(SAMPLES)
    assert report_rows.slices(SAMPLES[2:]) == []  # no noise at all
    assert report_rows.slices([{"prompt": "a"}]) == []


def test_the_shades_are_those_of_ft_score() -> None:
    from ft.cli.score import SHADES

    assert tuple(least for least, _ in SHADES) == report_rows.SHADES
    assert [report_rows.shade(loss) for loss in (0.1, 1.0, 4.0, 6.0, 900.0)] == [0, 1, 2, 3, 4]


def test_a_drawing_has_the_colours_of_its_page() -> None:
    style = (Path(report.__file__).parent / "page" / "style.css").read_text()
    drawn = curves.svg({"a<b$": METRICS, "_c": METRICS}, {"a<b$": 2, "_c": None})
    assert "a&lt;b$" in drawn
    assert "_c" in drawn
    assert not re.search(r"#[0-9a-f]{6}", drawn)
    used = set(re.findall(r"var\((--\w+)\)", drawn + style))
    assert used
    assert all(len(re.findall(rf"{name}:", style)) == 2 for name in used)  # light and dark
    assert curves.svg({"run": METRICS[:1]}, {}) == ""


def test_a_folder_named_after_variables_that_no_shell_read_has_its_curves(tmp_path: Path) -> None:
    folder = made(tmp_path / "$MODEL_$SEED")  # as `output_dir: runs/$MODEL_$SEED` of a YAML file
    for draw in (curves.curve, curves.learning_rate):
        draw(folder)
        assert (folder / {curves.curve: "loss.png"}.get(draw, "learning_rate.png")).is_file()


def test_runs_are_compared(tmp_path: Path) -> None:
    found = RUN["evaluation"]["test"] | {"signatures": {"bleu": "nrefs:1|case:mixed|tok:13a"}}
    worse = found | {"samples": [sample | {"tuned": "z"} for sample in SAMPLES]}
    one = made(tmp_path / "one", evaluation={"test": found})
    two = made(tmp_path / "two", evaluation={"test": worse})
    (two / "config.yaml").write_text("language_pair: en-fr\nlearning_rate: 0.5\n")
    out = tmp_path / "both.html"
    command.command([str(one), str(two)], out)
    page = text_of(out.read_text())
    assert "learning_rate 0.0005 0.5" in page
    assert "language_pair" not in page
    tests = {
        (t["metric"], t["p"] < 0.05, t["a"] > t["b"])
        for t in command.paired({"one": one, "two": two})
    }
    assert tests == {("BLEU", True, True), ("chrF", True, True)}
    same = shutil.copytree(one, tmp_path / "same")
    assert {t["p"] for t in command.paired({"one": one, "same": same})} == {1.0}
    with pytest.raises(UserError, match="named twice"):
        command.command([str(one), str(one)], out)


def test_names_of_runs_tell_them_apart(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("x/run", "y/run", "z")]
    for place in places:
        place.mkdir(parents=True)
    assert list(command.named([str(p) for p in places])) == ["x/run", "y/run", f"{tmp_path.name}/z"]
    assert list(command.named([str(p) for p in places[1:]])) == ["run", "z"]
