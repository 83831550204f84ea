"""Peers against a run: the schedule that ends with the time, lines that none has seen, answers that are kept, the table."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support import recipe_runs

from ft import config, data, files
from ft.data.rows import Rows
from ft.errors import UserError
from ft.runs import opened
from ft.score import translation

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path += [str(BENCHMARKS), str(BENCHMARKS / "harness")]

import quality  # noqa: E402  # pyright: ignore[reportMissingImports]
from harness import judged, rivals  # noqa: E402
from harness.timed import Clock, Job  # noqa: E402


class Time:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("seconds_per_step", [0.5, 2.0, 7.0])
def test_the_rate_falls_to_0_as_the_time_ends_whatever_a_step_takes(
    seconds_per_step: float,
) -> None:
    time = Time()
    clock = Clock(70.0, now=time)
    assert clock.factor(0) == 1.0
    time.now += 1000  # loading is not counted
    clock.begin()
    rates, step = [], 0
    while not clock.over:
        rates.append(clock.factor(step))
        time.now += seconds_per_step
        clock.begin()  # of every step; the first one counts
        step += 1
    steps = 70 / seconds_per_step
    assert step == steps
    assert rates == pytest.approx([1 - i / steps for i in range(step)])
    assert clock.factor(step) == 0.0


def test_warm_up_by_steps_or_by_time_is_that_of_transformers() -> None:
    import torch
    from transformers import get_linear_schedule_with_warmup

    ways: list[dict[str, Any]] = [{"warmup_steps": 5}, {"warmup_share": 0.25}]
    for options in ways:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
        schedule = get_linear_schedule_with_warmup(optimizer, 5, 20)
        time = Time()
        clock = Clock(20.0, **options, now=time)
        clock.begin()
        for step in range(20):
            assert clock.factor(step) == pytest.approx(schedule.get_last_lr()[0])
            time.now += 1.0
            optimizer.step()
            schedule.step()


def job(**changed: Any) -> dict[str, Any]:
    same: dict[str, Any] = {"model": "m", "rows": "r.jsonl", "rows_sha256": "aa", "settings": None}
    return same | {"precision": "auto", "seconds": 40.0, "max_length": 64} | changed


OWN = {
    "learning_rate": 3e-4,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ["q_proj"],
    "warmup_ratio": 0.05,
}


def test_a_peer_has_its_own_settings_or_those_of_the_run() -> None:
    default, ours = Job(**job(output="o")), Job(**job(output="o", settings=OWN))
    assert default.lora() == {}
    assert "learning_rate" not in default.arguments()
    assert "bf16" not in default.arguments()
    assert ours.lora() == {
        key: OWN[key] for key in ("r", "lora_alpha", "lora_dropout", "target_modules")
    }
    assert ours.arguments()["learning_rate"] == 3e-4
    assert Job(**job(output="o", precision="fp32")).arguments()["bf16"] is False


def stand_in(place: Path, text: str) -> list[str]:
    """The command of a peer that does nothing but ``text``."""
    script = place / "peer.py"
    head = "import json, sys, pathlib\njob = json.load(open(sys.argv[1]))\nout = pathlib.Path(job['output'])\n"
    script.write_text(head + text)
    return [sys.executable, str(script)]


def test_a_peer_trains_once_for_each_job(tmp_path: Path) -> None:
    count = (
        "n = out.parent / 'n'\nn.write_text(str(int(n.read_text()) + 1) if n.exists() else '1')\n"
    )
    done = stand_in(tmp_path, count + "(out / 'result.json').write_text('{\"steps\": 3}')")
    for _ in range(2):
        folder = rivals.trained("trl", job(), tmp_path / "work", done)
        assert rivals.made(folder) == {"steps": 3}
        assert (tmp_path / "work" / "n").read_text() == "1"
    with pytest.raises(UserError, match=r"seconds 40.0, not 50.0.*--work"):
        rivals.trained("trl", job(seconds=50.0), tmp_path / "work", done)


def test_a_peer_that_was_stopped_or_failed_is_trained_again(tmp_path: Path) -> None:
    failing = stand_in(tmp_path, "raise ValueError('no GPU')")
    with pytest.raises(UserError, match=r"trl ended with status 1(.|\n)*ValueError: no GPU"):
        rivals.trained("trl", job(), tmp_path / "work", failing)
    done = stand_in(tmp_path, "(out / 'result.json').write_text('{\"steps\": 1}')")
    assert rivals.made(rivals.trained("trl", job(), tmp_path / "work", done)) == {"steps": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> opened.Finished:
    """A run of two steps on the bundled sample, greedy, with two scored lines."""
    place = tmp_path_factory.mktemp("quality")
    return opened.finished(recipe_runs.train("mtnt_lora", place, "--decoding", "greedy"))


def test_lines_that_were_trained_on_are_left_out_and_said(
    run: opened.Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = Rows([{"source": "Hello  THERE", "target": "Salut"}], "seen", "00")
    lines = [{"en": "hello there", "fr": "Salut"}, {"en": "New", "fr": "Neuf"}]
    table = tmp_path / "other.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = judged.other(run, str(table), (seen,))
    assert found.rows == [{"source": "New", "target": "Neuf"}]
    assert (
        "1 of 2 lines are asked in the run's training or validation rows" in capsys.readouterr().out
    )
    table.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(UserError, match=r"no row of .*other.jsonl is left"):
        judged.other(run, str(table), (seen,))


def test_mtnt_is_judged_by_the_split_that_is_named(run: opened.Finished) -> None:
    valid = judged.other(run, "sample:valid", (), limit=3)
    assert [row["source"] for row in valid.rows] == [
        row["source"] for row in data.mtnt("valid").head(3)
    ]
    assert judged.other(run, "sample", ()).rows == list(data.mtnt("test"))


def test_answers_are_asked_for_once_and_kept_on_the_way(tmp_path: Path) -> None:
    rows = [{"source": f"line {i}", "target": ""} for i in range(judged.CHUNK + 2)] * 2
    asked: list[str] = []

    def ask(part: list[dict[str, str]]) -> list[str]:
        if len(asked) == judged.CHUNK and not files.read_json(file).get("stop"):
            raise KeyboardInterrupt  # the second part is not answered
        asked.extend(row["source"] for row in part)
        return [row["source"].upper() for row in part]

    file = tmp_path / "answers" / "trl.json"
    with pytest.raises(KeyboardInterrupt):
        judged.Answers(file).to(rows, ask)
    files.write_json(file, files.read_json(file) | {"stop": "yes"})
    assert judged.Answers(file).to(rows, ask) == [row["source"].upper() for row in rows]
    assert asked == [f"line {i}" for i in range(judged.CHUNK + 2)]
    assert len(judged.Answers(file).to(rows[:1], ask)) == 1


SOURCES = [
    f"idk what {word} means lol" for word in ["one", "two", "three", "four", "five", "six"]
] * 2
TARGETS = [
    f"je sais pas ce que {word} veut dire"
    for word in ["un", "deux", "trois", "quatre", "cinq", "six"]
] * 2


def test_the_table_compares_with_the_same_decoding_and_with_ft_as_it_answers() -> None:
    rows = [{"source": s, "target": t} for s, t in zip(SOURCES, TARGETS, strict=True)]
    one = judged.Set("test", "made here", rows)
    near = [target.replace("sais", "sait") for target in TARGETS]
    far = ["rien du tout"] * len(rows)
    answers = {"greedy": {"ft": near, "trl": far}, "4 beams": {"ft": TARGETS, "trl": near}}
    found = judged.compared(one, answers, "4 beams", pair="en-fr")
    beams, greedy = found["ways"]["4 beams"], found["ways"]["greedy"]
    assert beams["ft"]["chrf"]["score"] == pytest.approx(100)
    assert beams["ft"]["answers"] is beams["ft"]["likewise"] is greedy["ft"]["likewise"] is None
    assert greedy["trl"]["answers"]["ahead"] == pytest.approx(100 - greedy["trl"]["chrf"]["score"])
    assert greedy["trl"]["likewise"]["ahead"] < greedy["trl"]["answers"]["ahead"]
    # what is the same text has the same score, whatever made it
    assert beams["trl"]["likewise"]["ahead"] == greedy["ft"]["answers"]["ahead"] > 0
    plain = translation.scores({"ft": near, "trl": far}, TARGETS)
    assert greedy["trl"]["likewise"]["p"] == plain["p_value"]["trl"]
    assert found["kinds"] == {"caps": 0, "emoji": 0, "slang": 12, "typos": 0, "none": 0}
    assert greedy["trl"]["chrf_by_kind"] == {"slang": pytest.approx(greedy["trl"]["chrf"]["score"])}
    said = judged.table("test", found, {"ft": 7, "trl": 5}).splitlines()
    assert said[0] == "test: 12 lines, made here"
    assert [line.split(" | ")[:3] for line in said[4:8]] == [
        ["| ft", "greedy", "7"],
        ["| trl", "greedy", "5"],
        ["| ft", "4 beams", "7"],
        ["| trl", "4 beams", "5"],
    ]
    assert len({line.count("|") for line in said[2:8]}) == 1


def test_ft_answers_as_it_does_even_where_peers_do_not() -> None:
    rows = [{"source": s, "target": t} for s, t in zip(SOURCES, TARGETS, strict=True)]
    near = [target.replace("sais", "sait") for target in TARGETS]
    answers = {"greedy": {"ft": near, "trl": near}, "4 beams": {"ft": TARGETS}}
    one = judged.Set("test", "made here", rows)
    found = judged.compared(one, answers, "4 beams", pair="en-fr")["ways"]
    assert found["greedy"]["trl"]["likewise"] == {"ahead": 0, "p": {"bleu": 1.0, "chrf": 1.0}}
    assert found["greedy"]["trl"]["answers"]["ahead"] > 0
    assert list(found["4 beams"]) == ["ft"]


def test_flags_that_cannot_be_meant() -> None:
    wrong = quality.Config(peer=("trl", "axolotl"), seconds=0.0, limit=1).check()
    assert [line.partition(":")[0].split()[0] for line in wrong] == [
        "--peer",
        "--seconds",
        "--limit",
    ]
    assert quality.Config(peer=("trl", "trl")).check() == [
        "--peer: name one or more peers, each once"
    ]


def test_a_run_and_a_peer_of_this_environment(
    run: opened.Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--run", str(run.folder), "--peer", "trl-ours", "--seconds", "0.4", "--limit", "2"]
    flags += ["--also", "sample:valid", "--precision", "fp32", "--work", str(tmp_path / "work")]
    flags += ["--out", str(tmp_path / "quality.json")]
    quality.main(config.parse(quality.Config, flags, doc=quality.__doc__))
    found = json.loads((tmp_path / "quality.json").read_text())
    peer, own = found["peers"]["trl-ours"], files.read_json(run.folder / "adapter_config.json")
    assert peer["steps"] >= 1
    assert peer["seconds"] >= 0.4
    assert (peer["r"], peer["target_modules"]) == (own["r"], own["target_modules"])
    assert peer["examples_per_step"] == run.settings["per_device_train_batch_size"] == 2
    assert (peer["weights"], peer["autocast_bf16"]) == ("float32", False)
    assert list(found["sets"]) == ["test", "sample:valid"]
    scored = found["sets"]["test"]["ways"]["greedy"]
    kept = run.record["evaluation"]["test"]
    assert scored["ft"]["chrf"]["score"] == pytest.approx(kept["tuned"]["chrf"]["score"])
    assert capsys.readouterr().out.count("| trl-ours | greedy |") == 2
