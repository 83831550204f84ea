"""The run folder: refused when in use, never half-written, rewound on resume; threads are shared."""

import contextlib
import os

import pytest
import torch

from ft import machine
from ft.errors import UserError
from ft.runs import folder as run
from ft.runs import record


def start(place, overwrite=False, resume=None):
    target = run.Target(place, overwrite, resume)
    return record.begin(target, recipe=__file__, config_yaml="seed: 1\n", seed=1)


def test_a_folder_in_use_is_refused_unless_told(tmp_path):
    start(tmp_path)
    (tmp_path / "old.txt").touch()
    with pytest.raises(UserError, match="not empty; choose another --output-dir.*--resume last"):
        start(tmp_path)
    start(tmp_path, overwrite=True)
    assert not (tmp_path / "old.txt").exists()


def test_a_folder_that_is_no_run_is_never_deleted(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds no earlier run"):
        start(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UserError, match="run: that is a file"):
        start(tmp_path / "run")
    with pytest.raises(UserError, match="choose another --output-dir"):
        start(tmp_path / "run" / "below")


def test_a_link_that_leads_nowhere_is_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="link: that is a link that leads nowhere; choose another"):
        run.check_folder(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="not writable"):
        start(tmp_path / "run")


def test_a_resumed_run_writes_nothing_until_it_begins(tmp_path):
    start(tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    resumed = start(tmp_path, resume="last")
    resumed.note(data="other")
    resumed.write("examples.txt", "text")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    resumed.begin()
    assert run.read(tmp_path)["data"] == "other"
    assert (tmp_path / "examples.txt").read_text() == "text"


def test_rewinding_forgets_what_will_be_written_again(tmp_path):
    r = start(tmp_path)
    for step in range(4):
        r.log({"step": step, "loss": float(step)})
    with open(tmp_path / run.METRICS, "a") as stream:
        stream.write('{"step": 4, "lo')  # cut short by a kill
    r.rewind(2)
    assert [line["step"] for line in r.metrics()] == [0, 1, 2]


def test_only_the_main_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    r = start(tmp_path / "run")
    r.log({"step": 1})
    r.write("x.txt", "x")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_record_is_named(tmp_path):
    with pytest.raises(UserError, match="no run.json"):
        run.read(tmp_path)
    (tmp_path / run.RECORD).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        run.read(tmp_path)


def test_adopted_files_replace_and_leave_no_folder(tmp_path):
    r = start(tmp_path / "run")
    (tmp_path / "run" / "a").write_text("old")
    for fault in (OSError("disk full"), None):
        with contextlib.suppress(OSError), run.adopted(r) as made:
            made.mkdir()
            (made / "a").write_text("new")
            if fault:
                raise fault
        assert (tmp_path / "run" / "a").read_text() == ("old" if fault else "new")
        assert not made.exists()


def test_local_processes_share_the_cores(monkeypatch):
    before = torch.get_num_threads()
    cores = len(os.sched_getaffinity(0))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(cores))
    try:
        said = machine.use_all_cores()
        assert torch.get_num_threads() == 1
        assert said == f"1 threads in each of {cores} processes ({cores} cores)"
    finally:
        torch.set_num_threads(before)


LEFT = [".run.json.x7_2abcd", ".loss.png.aaaaaaaa", ".README.md.b", ".config.yaml.tmp", ".lock"]


@pytest.mark.parametrize(
    "name", [*LEFT, ".staging/", ".adapter/", ".model/", ".checkpoint-4.old.x/"]
)
def test_what_a_killed_run_left_hidden_is_nothing_and_goes(name, tmp_path):
    left = tmp_path / name
    left.mkdir() if name.endswith("/") else left.touch()
    start(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.yaml", "run.json"]


@pytest.mark.parametrize("name", [".git", ".env", "notes.md", ".hidden.json", "checkpoint-4.old"])
def test_what_is_the_users_own_is_in_the_way(name, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match="not empty"):
        start(tmp_path)
    assert (tmp_path / name).exists()


def test_a_folder_that_is_a_link_is_emptied_and_stays_one(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    start(tmp_path / "run")
    (tmp_path / "run" / "old.txt").touch()
    start(tmp_path / "run", overwrite=True)
    assert (tmp_path / "run").is_symlink()
    assert not (tmp_path / "disk" / "old.txt").exists()
    assert (tmp_path / "disk" / "run.json").exists()


def test_a_checkpoint_of_another_run_does_not_go_on_over_this_one(tmp_path):
    start(tmp_path / "b")
    other = str(tmp_path / "a" / "checkpoint-4")
    with pytest.raises(UserError, match="is of another run"):
        start(tmp_path / "b", resume=other)
    start(tmp_path / "new", resume=other)
    start(tmp_path / "b", resume=other, overwrite=True)
    assert not (tmp_path / "b" / "run.json").exists()
