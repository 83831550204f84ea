"""Killed at any file operation, a run goes on to the same files: nothing lost, nothing stuck, nothing left over."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from support import finished_run, kills, learner, tiny_gguf, toy
from support.recipe_runs import RECIPES, load, train

from ft import config
from ft.cli import export as export_command
from ft.errors import UserError
from ft.runs import merge, opened

# what tells the time, or how it was started, and what hashes that
TIMES = ("run.json", "README.md", "metrics.jsonl", "ft_state.json", "report.md", "round.json")
TIMES += (
    "config.yaml",
    "report.html",
    "rng_state.pth",
    "trainer_state.json",
    "done.json",
    "state.json",
    ".png",
)


def lines(folder: Path) -> list[dict]:
    """The metrics without times and rates."""
    kept = ("step", "loss", "eval_loss", "learning_rate", "reward")
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: line[key] for key in kept if key in line} for line in map(json.loads, text)]


def spread(points: int, count: int) -> list[int]:
    """So many of the operations 1 to ``count``, the first and the last among them."""
    return sorted({1 + round(i * (count - 1) / (points - 1)) for i in range(points)})


def go_on(act, folder: Path) -> None:
    """What a user does next: resume, or start anew where there is nothing to go on from."""
    for flags in (["--resume", "last"], [], ["--overwrite-output-dir"]):
        with contextlib.suppress(UserError):
            return act(*flags)
    raise AssertionError(f"stuck: {sorted(folder.rglob('*'))}")


SHORT = ("--max-steps", "2", "--eval-steps", "1", "--no-gradient-checkpointing")
REJECT = ("--prompts", "4", "--n", "3", "--rounds", "2", "--per-device-train-batch-size", "2")
REJECT += ("--eval-limit", "2", "--valid-rows", "2", "--max-new-tokens", "16", "--watch-rows", "2")
REJECT += ("--precision", "fp32", "--max-kl", "50", "--max-drift", "50", "--min-distinct", "0")


def recipe(stem: str, place: Path):
    """A function that starts a tiny run in a folder, with a recipe's flags."""
    if stem in ("LoRA", "full"):

        def fit(*flags: str) -> None:
            options = {"resume": "last"} if "--resume" in flags else {}
            options |= {"overwrite": True} if "--overwrite-output-dir" in flags else {}
            toy.go(place / "run", epochs=1, dropout=0.1, full=stem == "full", **options)

        return fit
    if stem == "mtnt_reject":
        start = learner.finished(place / "start")
        module = load(next(path for path in RECIPES if path.stem == stem))

        def reject(*flags: str) -> None:
            words = ["--run", str(start), "--output-dir", str(place / "run"), *REJECT, *flags]
            module.main(config.parse(module.Config, words))

        return reject
    short = () if stem == "minigpt_pretrain" else SHORT
    return lambda *flags: train(stem, place, *short, *flags)


@pytest.mark.parametrize(
    ("stem", "points"),
    [("LoRA", 24), ("full", 16), ("minigpt_pretrain", 6), ("dolly_qlora", 3), ("mtnt_reject", 3)],
)
def test_a_killed_run_goes_on_to_the_same(stem, points, tmp_path) -> None:
    act, run = recipe(stem, tmp_path), tmp_path / "run"
    count = kills.operations(run, act)  # and what comes but once, such as caches
    told = lambda name: name.endswith(TIMES)  # noqa: E731
    wanted, metrics = kills.content(run, told), lines(run)
    shutil.rmtree(run)
    assert count > 3 * points
    for at in kills.left(run, act, spread(points, count), tmp_path / "left"):
        with kills.layer(run):
            go_on(act, run)
        assert kills.content(run, told) == wanted, f"killed at {at} of {count}"
        assert lines(run) == metrics


@pytest.fixture
def done(tmp_path: Path) -> Path:
    finished_run.write_real(tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(f"model_name_or_path: {tmp_path / 'base'}\n")
    return tmp_path / "run"


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_merge_is_repeated(there, done: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    (place / "out").mkdir(parents=True) if there else place.mkdir()
    act = lambda: merge.merge_run(opened.finished(done), place / "out")  # noqa: E731
    count = kills.operations(place, act)
    wanted = kills.content(place)
    shutil.rmtree(place)
    (place / "out").mkdir(parents=True) if there else place.mkdir()
    for at in kills.left(place, act, spread(12, count), tmp_path / "left"):
        with contextlib.suppress(UserError):  # it was done but for its last words
            act()
        assert kills.content(place) == wanted, f"killed at {at} of {count}"


def test_a_killed_export_is_repeated(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model, place = tiny_gguf.model_folder(tmp_path / "m", "gemma3_text"), tmp_path / "place"
    place.mkdir()
    act = lambda: export_command.command(str(model), place / "out.gguf", "f16")  # noqa: E731
    count = kills.operations(place, act)
    wanted = kills.content(place)
    shutil.rmtree(place)
    place.mkdir()
    for at in kills.left(place, act, spread(40, count), tmp_path / "left"):
        with contextlib.suppress(UserError):
            act()
        assert kills.content(place) == wanted, f"killed at {at} of {count}"
