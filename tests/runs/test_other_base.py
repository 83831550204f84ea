"""A run whose base has changed since: every command that puts its adapter on one refuses, or is told to insist."""

import io
import json
import shutil
from pathlib import Path

import pytest
from support import finished_run, learner, tiny

from ft import __main__ as cli
from ft import models
from ft.files import sampled_hash, write_json
from ft.generate.decoding import Decoder
from ft.models import lora, sources
from ft.runs import merge, opened

SHORT = ["--max-new-tokens", "2", "--precision", "fp32"]
COMMANDS = {
    "merge": ["merge", "run", "out"],
    "export": ["export", "run", "out.gguf"],
    "eval": ["eval", "run", "--limit", "1", *SHORT],
    "translate": ["translate", "run", "hello", *SHORT],
    "translate --base": ["translate", "run", "hello", "--base", *SHORT],
    "score": ["score", "run", "--text", "hello", "--precision", "fp32"],
    "generate": ["generate", "run", "hello", *SHORT],
    "chat": ["chat", "run", *SHORT],
    "serve": ["serve", "run", "--port", "0", "--precision", "fp32"],
}


@pytest.fixture
def changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, and in its base's folder other weights of the same shapes than it was trained on."""
    run = learner.finished(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["model"]["sha256"] = sampled_hash(tmp_path / "base")
    write_json(run / "run.json", record)
    shutil.rmtree(tmp_path / "base")
    tiny.folder("gemma3_text", tmp_path / "base", seed=9, max_position_embeddings=4096)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("ft.chat.openai_server.Server.run", lambda self: None)
    monkeypatch.setattr("ft.cli.export.export.architecture", lambda folder: None)
    monkeypatch.setattr("ft.cli.export.export.write", lambda *_, **__: Path("out.gguf").touch())
    return run


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_refuses_other_weights_and_can_insist(command, changed: Path, capsys) -> None:
    record = json.loads((changed / "run.json").read_text())
    with pytest.raises(SystemExit) as stopped:
        cli.main(COMMANDS[command])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    for known in (record["model"]["sha256"], sampled_hash(changed.parent / "base")):
        assert known[:12] in said
    assert not list(changed.parent.glob("out*"))
    cli.main([*COMMANDS[command], "--any-base"])


def test_a_chat_with_a_merged_run_ends(tmp_path: Path, monkeypatch, capsys) -> None:
    """Where the run's answers did, long before the most that an answer may have."""
    merge.merge_run(opened.finished(learner.finished(tmp_path / "run")), tmp_path / "merged")
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    steps = []
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda *a: steps.append(a) or step(*a))
    cli.main(["chat", str(tmp_path / "merged"), "--precision", "fp32"])
    assert len(steps) < 200
    assert capsys.readouterr().out.endswith("\n")


def test_a_relative_base_is_the_folder_that_it_was(tmp_path: Path, monkeypatch) -> None:
    """Working in another folder, in which the same words mean another model."""
    run = learner.finished(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    record["model"]["base_model"] = str(tmp_path / "base")
    write_json(run / "run.json", record)
    (run / "config.yaml").write_text("model_name_or_path: base\nlanguage_pair: en-fr\n")
    (tmp_path / "elsewhere" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert opened.finished(run).base == str(tmp_path / "base")
    shutil.move(tmp_path / "base", tmp_path / "moved")
    assert opened.finished(run).base == "base"


COMMIT = "5f3ee1d4a8" * 4


@pytest.fixture
def in_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model in the Hub's cache at a commit, after which the repository moved on."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--google--gemma-tiny"
    tiny.folder("gemma3_text", place / "snapshots" / COMMIT)
    tiny.folder("gemma3_text", place / "snapshots" / ("a" * 40), seed=9)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return place / "snapshots" / COMMIT


def test_a_base_of_the_hub_is_kept_at_its_commit(in_cache: Path, tmp_path: Path) -> None:
    pinned = f"google/gemma-tiny@{COMMIT}"
    assert sources.fetch(pinned) == in_cache
    assert sources.fetch("google/gemma-tiny") != in_cache
    base = models.load(pinned, precision="fp32")
    assert base.model.name_or_path == sources.published_name(pinned) == "google/gemma-tiny"
    lora.attach(base, r=2, alpha=4).save_pretrained(str(tmp_path / "adapter"))
    kept = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert kept["revision"] == COMMIT
    assert merge._base_of(tmp_path / "adapter") == pinned


def test_a_run_goes_back_to_the_commit_that_it_was_trained_on(in_cache: Path, tmp_path) -> None:
    run = finished_run.write(tmp_path / "run")
    (run / "config.yaml").write_text("model_name_or_path: google/gemma-tiny\n")
    model = {"name": "google/gemma-tiny", "sha256": sampled_hash(in_cache), "revision": COMMIT}
    write_json(run / "run.json", finished_run.RUN | {"model": model})
    found = opened.finished(run)
    assert sources.fetch(found.base) == in_cache
    opened.check_base(found)
    assert opened.finished(run, any_base=True).base == "google/gemma-tiny"
