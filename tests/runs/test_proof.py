"""What `ft check --weights` saw goes with the very run that it is of, and with no other."""

import dataclasses
from pathlib import Path

import pytest

from ft import machine
from ft.runs import proof, record

OK = {"status": "ok", "name": "packed", "text": "packed 1.0, padded 1.0"}
BAD = {"status": "ERROR", "name": "cached", "text": "they differ"}
BEFORE = [{"status": "ok", "name": "tokens", "text": "one BOS"}, proof.NONE]
SETTINGS = {"learning_rate": 1.0, "output_dir": "runs/a", "report_to": "none", "push_to_hub": None}
MODEL = {"sha256": "m", "precision": "fp32", "backend": "transformers"}


def holds_for(settings=None, data="d", attention="sdpa", **model):
    given = SETTINGS | (settings or {})
    parts = {"train": data}, {"prompt": "{source}", "stop": ("\n",)}, MODEL | model
    return proof.of(record.made_with(given, "recipe", *parts), given, attention)


def names(checks):
    return [check["name"] for check in checks]


def test_the_same_run_takes_it_with_when_and_where_it_was_measured():
    proof.keep(holds_for(), [BAD])
    assert "carries these lines" in proof.keep(holds_for(), [OK])  # in place of the first
    checks, said = proof.taken(BEFORE, holds_for())
    assert names(checks) == ["tokens", "packed"]
    assert checks[1] | OK == checks[1]
    assert checks[1].keys() - OK == {"measured", "device"}
    assert f"{proof.moment(checks[1])}, taken into the record: packed" in said
    assert "ERROR" not in said


def test_a_user_without_a_home_has_no_proof_and_trains_all_the_same(monkeypatch):
    def homeless():  # as a container's user, of whom /etc/passwd knows nothing
        raise RuntimeError("Could not determine home directory.")

    for name in ("FT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    wanted = "this user has no home folder: name a cache with FT_CACHE"
    assert proof.keep(holds_for(), [OK]) == f"no run will carry this: {wanted}"
    checks, said = proof.taken(BEFORE, holds_for())
    assert checks == BEFORE
    assert said.startswith(wanted)


def test_what_a_failed_one_found_is_said_and_kept():
    proof.keep(holds_for(), [OK, BAD])
    checks, said = proof.taken(BEFORE, holds_for())
    assert [check["status"] for check in checks[1:]] == ["ok", "ERROR"]
    assert said.splitlines()[1:] == ["ERROR cached: they differ"]


def test_settings_that_do_not_decide_what_is_learnt_do_not_matter():
    proof.keep(holds_for(), [OK])
    other = {"output_dir": "b", "report_to": "trackio", "push_to_hub": "me/b", "save_steps": 3}
    assert "packed" in names(proof.taken(BEFORE, holds_for(other))[0])


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"learning_rate": 2.0}},
        {"settings": {"accept_loss": True}},
        {"data": "e"},
        {"sha256": "n"},
        {"precision": "bf16"},
        {"backend": "unsloth"},
        {"attention": "eager"},
    ],
    ids=str,
)
def test_another_run_takes_none(other):
    proof.keep(holds_for(), [OK])
    checks, said = proof.taken(BEFORE, holds_for(**other))
    assert checks == BEFORE
    assert said == f"weights not looked at before this run: {proof.COMMAND}"


@pytest.mark.parametrize("what", ["device", "gpu", "torch", "ft", "sharded"])
def test_on_another_machine_or_version_there_is_none(what, monkeypatch):
    proof.keep(holds_for(), [OK])
    if what == "device":
        monkeypatch.setattr(machine, "hardware", lambda: {"cpu": "another"})
    if what == "gpu":
        other = dataclasses.replace(machine.here(), device="cuda:0", name="a GPU")
        monkeypatch.setattr(machine, "here", lambda: other)
    if what == "torch":
        other = machine.versions() | {"torch": "9.0"}
        monkeypatch.setattr(machine, "versions", lambda: other)
    if what == "ft":
        monkeypatch.setattr(proof, "__version__", "99")
    if what == "sharded":
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert proof.taken(BEFORE, holds_for())[0] == BEFORE


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"of": {}, "seen": [], "measured": ""}',
        "no date",
        "no text",
    ],
)
def test_a_file_that_is_no_proof_is_said_and_ignored(content, tmp_path):
    proof.keep(holds_for(), [OK])
    (file,) = (tmp_path / "cache" / "checks").iterdir()
    whole = file.read_bytes()
    if isinstance(content, str):
        word = {"no date": b'"measured": "2', "no text": b'"text"'}[content]
        content = whole.replace(word, word.replace(b"2", b"x").replace(b"text", b"words"), 1)
        assert content != whole
    file.write_bytes(content)
    checks, said = proof.taken(BEFORE, holds_for())
    assert checks == BEFORE
    assert str(file) in said
    assert said.endswith(f"as if there were no proof; {proof.COMMAND} makes it anew")
    assert "\n" not in said
    proof.keep(holds_for(), [OK])
    assert "packed" in names(proof.taken(BEFORE, holds_for())[0])


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FT_CACHE", str(tmp_path / "file" / "cache"))
    said = proof.keep(holds_for(), [OK])
    assert said.startswith("no run will carry this: ")
    assert "FT_CACHE" in said
    assert proof.taken(BEFORE, holds_for())[0] == BEFORE
