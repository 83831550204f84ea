"""A run's folder has one writer; a second one is refused with the number of the first."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ft import files
from ft.errors import UserError
from ft.runs import folder, lock

WRITER = """
import sys, time
from pathlib import Path
from ft.runs import lock
lock.take(Path(sys.argv[1]))
print("writing", flush=True)
time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "writing\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_second_writer_is_refused(overwrite: bool, writer, tmp_path: Path) -> None:
    (tmp_path / folder.CONFIG).touch()
    said = f"process {writer.pid} is writing a run there"
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            folder.check_folder(tmp_path, overwrite, None if overwrite else "last")
        with pytest.raises(UserError, match=said):
            lock.take(tmp_path)
    assert (tmp_path / folder.CONFIG).exists()


def test_a_lock_ends_with_its_process_however_that_ends(writer, tmp_path: Path) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    folder.claim(folder.check_folder(tmp_path))  # what it left is no run
    assert (tmp_path / lock.NAME).read_text() == f"{os.getpid()}\n"
    lock.take(tmp_path)  # by the same process again
    lock.release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_lock_holds_where_its_file_can_be_neither_written_nor_removed(tmp_path, monkeypatch):
    """As on Windows, which locks a file's bytes, and opens no folder."""

    def refuse(self, *_, **__):
        raise PermissionError(self)

    others = dict(lock._held)  # of runs in other tests
    with monkeypatch.context() as windows:
        windows.setattr(Path, "write_text", refuse)
        windows.setattr(Path, "unlink", refuse)
        lock.take(tmp_path)
        assert len(lock._held) == len(others) + 1
        lock.release(tmp_path)
    assert lock._held == others
    lock.check(tmp_path)


def test_windows_writes_files_without_opening_a_folder(tmp_path, monkeypatch):
    class Windows:
        name = "nt"

        def __getattr__(self, name):
            assert name != "open", "of a folder"
            return getattr(os, name)

    monkeypatch.setattr(files, "os", Windows())
    monkeypatch.setitem(sys.modules, "fcntl", None)  # an import of it fails
    files.write_text(tmp_path / "a", "é")
    with files.new_dir(tmp_path / "b") as folder:
        (folder / "c").touch()
    assert (tmp_path / "a").read_bytes() == "é".encode()
    assert (tmp_path / "b/c").exists()
