"""Checkpoints: sealed, found whole again, and never gone on from where anything of them is missing or changed."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ft.errors import UserError
from ft.runs import checkpoints, folder

MADE_WITH = {"learning_rate": 0.1}


def make(folder: Path, *steps: int) -> None:
    for step in steps:
        place = folder / f"checkpoint-{step}"
        (place / "state").mkdir(parents=True)
        (place / "optimizer.pt").write_text(f"moments {step}")
        (place / "state" / "rng.pth").write_text("")
        checkpoints.seal(place, MADE_WITH)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def change(file: Path) -> None:
    file.write_bytes(b"M" + file.read_bytes()[1:])


def harmed(how: str, place: Path) -> None:
    match how:
        case "missing":
            (place / "optimizer.pt").unlink()
        case "cut":
            cut(place / "optimizer.pt")
        case "changed":
            change(place / "optimizer.pt")
        case "list":
            (place / checkpoints.STATE).write_text("{")


SAID = {
    "missing": "optimizer.pt is missing",
    "cut": "optimizer.pt has 8 bytes in place of 9",
    "changed": "optimizer.pt has changed",
    "list": "ft_state.json is missing, cut or changed",
}


@pytest.mark.parametrize("how", SAID)
def test_last_goes_back_to_the_newest_that_is_whole_and_says_so(how, tmp_path, capsys):
    make(tmp_path, 2, 4)
    assert checkpoints.resumable(tmp_path, "last", MADE_WITH) == tmp_path / "checkpoint-4"
    assert capsys.readouterr().out == ""
    harmed(how, tmp_path / "checkpoint-4")
    assert checkpoints.resumable(tmp_path, "last", MADE_WITH) == tmp_path / "checkpoint-2"
    assert f"checkpoint-4: {SAID[how]}: going on from checkpoint-2" in capsys.readouterr().out


@pytest.mark.parametrize("how", SAID)
def test_a_harmed_one_is_refused_by_name(how, tmp_path):
    make(tmp_path, 4)
    harmed(how, tmp_path / "checkpoint-4")
    for resume in ("last", str(tmp_path / "checkpoint-4")):
        with pytest.raises(UserError, match=SAID[how].replace(".", r"\.")):
            checkpoints.resumable(tmp_path, resume, MADE_WITH)


def test_a_run_that_ended_before_its_first_is_not_sent_in_a_circle(tmp_path):
    with pytest.raises(UserError, match="complete checkpoint; start without --resume$"):
        checkpoints.resumable(tmp_path, "last", MADE_WITH)
    (tmp_path / folder.RECORD).write_text("{}")
    with pytest.raises(UserError, match="start without --resume, and with --overwrite-output-dir"):
        checkpoints.resumable(tmp_path, "last", MADE_WITH)


def test_what_differs_is_named(tmp_path):
    make(tmp_path, 4)
    with pytest.raises(UserError, match=r"something else.*\n  learning_rate: 0.1 -> 0.2"):
        checkpoints.resumable(tmp_path, "last", {"learning_rate": 0.2})


def test_the_last_two_stay_and_the_best(tmp_path):
    make(tmp_path, 2, 4, 6, 8, 10)
    checkpoints.prune(tmp_path, [4])
    assert [p.name for p in checkpoints.complete(tmp_path)] == [
        "checkpoint-4",
        "checkpoint-8",
        "checkpoint-10",
    ]


def test_going_on_from_an_older_one_takes_the_newer_ones_away(tmp_path, capsys):
    make(tmp_path, 4, 8)
    checkpoints.rewind(tmp_path, tmp_path / "checkpoint-4")
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["checkpoint-4"]
    assert "checkpoint-8 is deleted" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["checkpoint-4-copy", "checkpoint-4 (1)", "checkpoint-best"])
def test_a_copy_under_another_name_is_the_users_own(name, tmp_path):
    make(tmp_path, 2, 4, 6)
    shutil.copytree(tmp_path / "checkpoint-4", tmp_path / name)
    assert checkpoints.resumable(tmp_path, "last", MADE_WITH) == tmp_path / "checkpoint-6"
    checkpoints.rewind(tmp_path, tmp_path / "checkpoint-2")
    checkpoints.prune(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint-2", name}
    with pytest.raises(UserError, match=f"{re.escape(name)}: a checkpoint is named after its step"):
        checkpoints.resumable(tmp_path, str(tmp_path / name), MADE_WITH)


def test_a_link_to_a_checkpoint_is_that_checkpoint(tmp_path, monkeypatch):
    make(tmp_path / "run", 2, 4)
    (tmp_path / "newest").symlink_to(tmp_path / "run" / "checkpoint-4")
    found = checkpoints.resumable(tmp_path / "other", str(tmp_path / "newest"), MADE_WITH)
    assert found == tmp_path / "run" / "checkpoint-4"
    monkeypatch.chdir(found)
    assert checkpoints.resumable(tmp_path / "other", ".", MADE_WITH) == found


def test_going_on_elsewhere_takes_what_was_along_and_leaves_it_there(tmp_path):
    make(tmp_path / "a", 2, 4, 6)
    (tmp_path / "a" / "metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')
    (tmp_path / "b").mkdir()
    run = folder.Run(tmp_path / "b", {}, "seed: 1\n")
    place = folder.go_on(run, str(tmp_path / "a" / "checkpoint-4"), MADE_WITH)
    assert place == tmp_path / "a" / "checkpoint-4"
    assert folder.read(tmp_path / "b")["resumed_from"] == "checkpoint-4"
    assert [p.name for p in checkpoints.complete(tmp_path / "b")] == [
        "checkpoint-2",
        "checkpoint-4",
    ]
    assert len(checkpoints.complete(tmp_path / "a")) == 3
    assert json.loads((tmp_path / "b" / "metrics.jsonl").read_text())["step"] == 2
    assert not checkpoints.fault(tmp_path / "b" / "checkpoint-4")


def test_every_file_is_readable_as_new_files_are(tmp_path):
    (tmp_path / "new").touch()
    make(tmp_path, 2)
    file = tmp_path / "checkpoint-2" / "optimizer.pt"
    file.chmod(0o600)
    checkpoints.seal(tmp_path / "checkpoint-2", MADE_WITH)
    assert file.stat().st_mode == (tmp_path / "new").stat().st_mode
