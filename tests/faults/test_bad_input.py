"""Paths, numbers and configurations that no one means: one line that names them, before any work."""

import errno
import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from support import finished_run, tiny

from ft import __main__ as cli
from ft import files
from ft.config import parse
from ft.errors import UserError, exit_cleanly
from ft.generate import answers, samplers
from ft.models import sources
from ft.runs import folder


@dataclass(frozen=True)
class Config:
    """Settings of a recipe."""

    steps: int = 1
    start: str = ""
    place: Path = Path()


def refused(capsys, *words: str) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(list(words))
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    return said


@pytest.fixture
def run(tmp_path: Path) -> Path:
    made = finished_run.write_real(tmp_path / "run")
    (made / "config.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'base'}\nlanguage_pair: en-fr\n"
    )
    return made


# Places to write, of which the fault is known before a model is loaded


@pytest.fixture
def no_model(monkeypatch):
    module = importlib.import_module("ft.models.load")  # the package's face has the function
    monkeypatch.setattr(module, "load", lambda *_, **__: pytest.fail("a model was loaded"))


@pytest.mark.parametrize(
    "words",
    [("merge", "run", "{}"), ("export", "run", "{}.gguf"), ("eval", "run", "--json", "{}.json")],
)
@pytest.mark.parametrize("place", ["locked/new", "file/new", "run", "loop/new", "n" * 300])
def test_where_nothing_can_be_written(words, place, run, tmp_path, no_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ft.cli.export.export.architecture", lambda folder: None)
    (tmp_path / "locked").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    access = os.access
    locked = tmp_path / "locked"
    monkeypatch.setattr(
        os, "access", lambda p, mode: locked != Path(p).absolute() and access(p, mode)
    )
    before = sorted(tmp_path.rglob("*"))
    out = [word.format(place) for word in words]
    if out[-1].startswith("run."):
        (tmp_path / out[-1]).mkdir()
        before = sorted(tmp_path.rglob("*"))
    assert place[:5] in refused(capsys, *out)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_mounted_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    (tmp_path / "disk").mkdir()
    with pytest.raises(UserError, match="disk is where a disk is mounted: name a folder in it"):
        files.check_new_dir(tmp_path / "disk")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP])
def test_what_the_system_says_of_a_path_is_one_line(number, capsys):
    with pytest.raises(SystemExit), exit_cleanly():
        raise OSError(number, os.strerror(number), "some/place")
    assert capsys.readouterr().err == f"error: some/place: {os.strerror(number)}\n"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
        RuntimeError("Error while serializing: I/O error: File too large (os error 27)"),
    ],
)
def test_a_disk_that_takes_no_more_is_one_line(error, capsys):
    with pytest.raises(SystemExit) as stopped, exit_cleanly():
        raise error
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: the disk is full, or takes no file so large")


def test_words_of_another_encoding_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["generate", "embedded", "caf\udce9"])
    assert stopped.value.code == 2
    assert "command line: b'caf\\xe9' is not utf-8" in capsys.readouterr().err
    Path("caf\udce9").mkdir()  # a name may be of any bytes
    cli._check_words(["report", "caf\udce9"])


class OutOfMemoryError(RuntimeError):
    """As torch's own is called."""


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OutOfMemoryError(
                "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 23.64 GiB of which "
                "1.25 GiB is free. Including non-PyTorch memory, this process has 22.3 GiB memory in use. See "
                "documentation for Memory Management"
            ),
            "of which 1.25 GiB is free. A training",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(h)`"),
            "CUBLAS_STATUS_ALLOC_FAILED. A training",
        ),
        (MemoryError(), "Python could allocate no more. A training"),
        (None, "can't allocate memory: you tried to allocate"),
    ],
    ids=["gpu", "cublas", "python", "cpu"],
)
def test_a_full_memory_is_one_line_with_what_takes_less(error, said, capsys):
    def fail():
        if error:
            raise error
        torch.empty(2**47)

    with pytest.raises(SystemExit) as stopped, exit_cleanly():
        fail()
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the memory is full: ")
    assert said in line
    assert "`ft plan RECIPE --fit 24GB` finds what fits" in line


def test_another_error_of_a_runtime_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="shapes"), exit_cleanly():
        raise RuntimeError("shapes do not fit")


# What is read


@pytest.fixture
def pipe(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "pipe")
    return str(tmp_path / "pipe")


@pytest.mark.parametrize("device", ["/dev/zero", "pipe"])
def test_devices_and_pipes_are_not_read(device, pipe, run, capsys):
    name = pipe if device == "pipe" else device
    for words in (
        ["translate", str(run), "--file", name],
        ["score", str(run), "--file", name],
        ["generate", str(run), "hello", "--image", name],
        ["eval", str(run), "--data", name],
    ):
        assert name in refused(capsys, *words)
    with pytest.raises(UserError, match="is a device or a pipe"):
        parse(Config, ["--config", name])


def test_numbers_of_ten_thousand_digits(tmp_path, run):
    (run / "run.json").write_text('{"seed": %s}' % ("9" * 10_000))
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        folder.read(run)


def test_what_is_no_number_is_null_in_json(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5], "b": {"c": float("-inf")}})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    read = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert read == {"a": [None, 1.5], "b": {"c": None}}


def test_more_answers_than_memory_holds():
    with pytest.raises(UserError, match=r"n = 1,000,000,000,000: at most 10,000 answers"):
        answers.check(samplers.Sample(), max_new_tokens=1, n=10**12)


def test_numbers_to_base_60_stay_words(tmp_path):
    (tmp_path / "c.yaml").write_text("start: 1:30\n")
    assert parse(Config, ["--config", str(tmp_path / "c.yaml")]).start == "1:30"
    (tmp_path / "c.yaml").write_text("steps: 1:30\n")
    with pytest.raises(UserError, match="c.yaml:1: steps: got '1:30'"):
        parse(Config, ["--config", str(tmp_path / "c.yaml")])


def test_no_path_holds_a_nul(tmp_path):
    (tmp_path / "c.yaml").write_text('place: "a\\0b"\n')
    with pytest.raises(UserError, match="expected path"):
        parse(Config, ["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize("value", ["1000000000000", "-1000000000000"])
def test_absurd_sizes(value):
    with pytest.raises(UserError, match="steps: got .*must be"):
        parse(Config, ["--steps", value])


# Configurations of models

SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "intermediate_size",
)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((key, value) for key in SIZES for value in (0, -1, "64", 1.5, True, [], 10**12)),
        ("num_key_value_heads", 3),
        ("head_dim", {}),
        ("max_position_embeddings", "long"),
        ("sliding_window", 0),
        ("layer_types", "full_attention"),
        ("layer_types", [1, 2]),
        ("hidden_activation", "sparkle"),
        ("hidden_activation", 1),
        ("rms_norm_eps", "tiny"),
        ("rms_norm_eps", float("inf")),
        ("rope_parameters", [1]),
        ("text_config", "none"),
    ],
)  # fmt: skip
def test_absurd_configurations_are_refused_by_their_key(key, value, tmp_path):
    raw = tiny.config("gemma3_text").to_dict()
    (tmp_path / "config.json").write_text(json.dumps(raw | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json: {key} is ") as error:
        sources.read_config(tmp_path, "model")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_configurations_of_models_are_taken(kind, tmp_path):
    raw = tiny.config(kind).to_dict()
    sources.check_config(raw, tmp_path / "config.json")


def test_a_quantised_base_names_the_one_in_16_bits(tmp_path, monkeypatch):
    raw = tiny.config("gemma3_text").to_dict() | {"quantization_config": {"bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    for name in ("unsloth/gemma-3-4b-it-bnb-4bit", "unsloth/gemma-3-4b-it-unsloth-bnb-4bit"):
        with pytest.raises(UserError, match=r"16-bit model, such as unsloth/gemma-3-4b-it;"):
            sources.read_config(tmp_path, name)
