"""Pushes and pulls, with the real client of the Hub against a server on this machine."""

import json
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import finished_run
from support.fake_hub import FakeHub, Refused

from ft import __main__ as cli
from ft.errors import UserError
from ft.runs import hub
from ft.runs.published import without_paths

# huggingface_hub up to 2.4.0 uploads a large file by httpx's older keyword
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

TOKEN = "hf_" + "tokenOfMorgane" * 2
OTHER = "hf_" + "tokenOfSomeone" * 2


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return finished_run.write(tmp_path / "run")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The server, which the client takes for the Hub, and a client without waits or a past."""
    from huggingface_hub import close_session, constants

    with FakeHub({TOKEN: "morgane", OTHER: "someone"}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda _: None)  # the client's waits between tries
        close_session()
        yield fake
        close_session()


def test_a_run_of_an_older_version_is_pushed_and_pulled(server: FakeHub, tmp_path: Path) -> None:
    older = Path(__file__).parents[1] / "fixtures" / "older_run" / "run"
    run = shutil.copytree(older, tmp_path / "older")
    cli.main(["push", str(run), "--repo", "morgane/older"])
    pulled = contents(hub.pull("morgane/older"))
    assert pulled["run.json"] == (older / "run.json").read_bytes()
    assert pulled["adapter_model.safetensors"] == (older / "adapter_model.safetensors").read_bytes()


def test_no_path_of_this_machine_is_pushed(server: FakeHub, tmp_path: Path) -> None:
    older = Path(__file__).parents[1] / "fixtures" / "older_run" / "run"
    run = shutil.copytree(older, tmp_path / "run")
    data = tmp_path / "my data.jsonl"
    data.touch()
    record = json.loads((run / "run.json").read_text())
    record["model"]["base_model"] = str(tmp_path / "base")
    record["data"]["train"]["origin"] = f"20 rows drawn by seed 1 of {data}, /home/zoe/x.tsv"
    record["command"] = f"python {tmp_path}/recipes/mtnt_lora.py --data '{data}' --out ~/runs/a"
    (run / "run.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(f'data: "{data}"\noutput_dir: {run}\nseed: 1\n')
    adapter = json.loads((run / "adapter_config.json").read_text())
    adapter["base_model_name_or_path"] = str(data)
    (run / "adapter_config.json").write_text(json.dumps(adapter))
    (run / "README.md").unlink()
    hub.push(run, "morgane/clean")
    for name, content in server.repositories["morgane/clean"].branches["main"].files.items():
        for private in (str(tmp_path), "/home/", "~/", "zoe/"):
            assert private.encode() not in content, (name, private)
    pushed = server.repositories["morgane/clean"].branches["main"].files
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == data.name
    assert str(tmp_path) in (run / "run.json").read_text()  # here it stays


@pytest.mark.parametrize(
    "text",
    ["/r/france and/or 1/2, https://huggingface.co/google/gemma-2b", "owner/name", "a: b/c", "~ 5"],
)
def test_what_is_no_path_of_a_machine_stays(text: str) -> None:
    assert without_paths(text, "README.md") == text


def test_push_makes_a_private_repository_in_one_commit(
    server: FakeHub, run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = contents(run_folder)
    url = hub.push(run_folder, "morgane/mtnt")
    repository = server.repositories["morgane/mtnt"]
    assert url == f"{server.url}/morgane/mtnt"
    assert repository.private
    assert [c.message for c in repository.commits] == [
        "initial commit",
        "Upload a fine-tuned Gemma",
    ]
    files = repository.branches["main"].files
    assert set(files) - {".gitattributes"} == {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json"),
        *("README.md", "run.json", "config.yaml", "samples.txt"),
    }
    for name in set(files) - {".gitattributes", "README.md"}:
        assert files[name] == before[name]
    readme = before["README.md"].decode()
    there = 'tuned = "morgane/mtnt"'
    assert files["README.md"].decode() == readme.replace(hub.HERE, there)
    assert there in files["README.md"].decode()
    assert contents(run_folder) == before
    out, err = capfd.readouterr()
    assert "created the private model repository" in out
    assert TOKEN not in out + err
    assert not any(TOKEN.encode() in content for content in files.values())


def test_a_full_run_travels_as_a_model_and_comes_back(
    server: FakeHub, run_folder: Path, tmp_path: Path
) -> None:
    for name in hub.ADAPTER:
        (run_folder / name).unlink()
    for name in (*hub.MODEL, "generation_config.json"):
        (run_folder / name).write_text("{}")
    hub.push(run_folder, "morgane/whole")
    files = set(server.repositories["morgane/whole"].branches["main"].files)
    assert {*hub.MODEL, "generation_config.json", "tokenizer.json", "run.json"} <= files
    pulled = hub.pull("morgane/whole", tmp_path / "pulled")
    assert {file.name for file in pulled.iterdir()} == files - {".gitattributes"}


def test_public_only_when_asked(server: FakeHub, run_folder: Path) -> None:
    hub.push(run_folder, "morgane/open", private=False)
    assert not server.repositories["morgane/open"].private


def test_bare_name_is_ones_own(server: FakeHub, run_folder: Path) -> None:
    assert hub.push(run_folder, "mtnt") == f"{server.url}/morgane/mtnt"


def test_run_without_readme_gets_its_card(server: FakeHub, run_folder: Path) -> None:
    (run_folder / "README.md").unlink()
    hub.push(run_folder, "morgane/mtnt")
    readme = server.repositories["morgane/mtnt"].branches["main"].files["README.md"].decode()
    assert "base_model: google/gemma-3-270m" in readme
    assert not (run_folder / "README.md").exists()


def test_push_to_an_existing_repository_adds_a_commit(
    server: FakeHub, run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    repository = server.create("morgane/mtnt", private=True)
    repository.add("main", "theirs", {"notes.md": b"keep me"})
    hub.push(run_folder, "morgane/mtnt", message="second try")
    assert [c.message for c in repository.commits] == ["initial commit", "theirs", "second try"]
    assert repository.branches["main"].files["notes.md"] == b"keep me"
    assert "exists and is private: adding a commit" in capfd.readouterr().out
    hub.push(run_folder, "morgane/mtnt")
    assert len(repository.commits) == 3
    assert "no file has changed" in capfd.readouterr().out


def test_private_push_never_goes_to_a_public_repository(server: FakeHub, run_folder: Path) -> None:
    repository = server.create("morgane/open", private=False)
    with pytest.raises(UserError, match="morgane/open exists and is public.*--public"):
        hub.push(run_folder, "morgane/open")
    assert len(repository.commits) == 1
    hub.push(run_folder, "morgane/open", private=False)
    assert len(repository.commits) == 2


def test_push_and_pull_of_a_branch(server: FakeHub, run_folder: Path, tmp_path: Path) -> None:
    url = hub.push(run_folder, "morgane/mtnt", revision="r16")
    repository = server.repositories["morgane/mtnt"]
    assert url.endswith("/morgane/mtnt/tree/r16")
    assert "run.json" in repository.branches["r16"].files
    assert "run.json" not in repository.branches["main"].files
    with pytest.raises(UserError, match="no adapter_model.safetensors and no adapter_config.json"):
        hub.pull("morgane/mtnt")
    found = hub.pull("morgane/mtnt", revision="r16")
    assert (found / "run.json").read_bytes() == (run_folder / "run.json").read_bytes()
    with pytest.raises(UserError, match="'morgane/mtnt' has no such branch, tag or commit"):
        hub.pull("morgane/mtnt", revision="r17")


@finished_run.peft_asks_by_an_older_name
def test_pulled_adapter_is_the_same_and_loads(server: FakeHub, tmp_path: Path) -> None:
    import torch

    real_run = finished_run.write_real(tmp_path / "run")
    hub.push(real_run, "morgane/mtnt")
    server.repositories["morgane/mtnt"].add("main", "theirs", {"evil.pkl": b"", "x.bin": b""})
    found = hub.pull("morgane/mtnt", tmp_path / "copy")
    assert found == tmp_path / "copy"
    pushed = server.repositories["morgane/mtnt"].branches["main"].files
    wanted = {n: b for n, b in pushed.items() if n not in (".gitattributes", "evil.pkl", "x.bin")}
    assert contents(found) == wanted
    ids = torch.arange(10, 30)[None]
    base = real_run.parent / "base"
    with torch.no_grad():
        here = finished_run.load(real_run, base)(ids).logits
        there = finished_run.load(found, base)(ids).logits
    assert torch.equal(here, there)


def test_cache_serves_without_a_network(
    server: FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(run_folder, "morgane/mtnt")
    found = hub.pull("morgane/mtnt")
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    assert hub.pull("morgane/mtnt") == found


def test_local_folder_is_pulled_as_it_is(run_folder: Path, tmp_path: Path) -> None:
    assert hub.pull(run_folder) == run_folder
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match="empty is not a finished run: no adapter_model.safetensors"
    ):
        hub.pull(tmp_path / "empty")
    with pytest.raises(UserError, match="missing/run/x' is neither a folder here nor a name"):
        hub.pull("missing/run/x")


def test_pull_never_overwrites(server: FakeHub, run_folder: Path) -> None:
    before = contents(run_folder)
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        hub.pull("morgane/mtnt", run_folder)
    assert contents(run_folder) == before
    assert not server.requests


@pytest.mark.parametrize(
    ("step", "status"),
    [
        ("lfs", 500),
        ("lfs", 403),
        ("batch", 500),
        ("preupload", 500),
        ("commit", 500),
        ("commit", 412),
    ],
)
def test_failure_in_the_middle_commits_nothing(
    server: FakeHub, run_folder: Path, step: str, status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    repository = server.create("morgane/mtnt", private=True)
    before = contents(run_folder)
    server.fail[step] = status
    with pytest.raises(UserError, match=rf"{status}.*nothing was committed, run the same") as error:
        hub.push(run_folder, "morgane/mtnt")
    assert "\n" not in str(error.value)
    assert [c.message for c in repository.commits] == ["initial commit"]
    assert contents(run_folder) == before
    assert TOKEN not in "".join(capfd.readouterr())
    server.fail.clear()
    hub.push(run_folder, "morgane/mtnt")
    assert "adapter_model.safetensors" in repository.branches["main"].files


def test_failed_pull_leaves_no_folder(server: FakeHub, run_folder: Path, tmp_path: Path) -> None:
    hub.push(run_folder, "morgane/mtnt")
    server.fail["resolve"] = 500
    with pytest.raises(UserError, match="the Hub answered 500 for 'morgane/mtnt'"):
        hub.pull("morgane/mtnt", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_wrong_token(server: FakeHub, run_folder: Path) -> None:
    wrong = "hf_" + "x" * 30
    refused = r"refuses your token \(401\).*hf auth login"
    with pytest.raises(UserError, match=refused) as error:
        hub.push(run_folder, "morgane/mtnt", token=wrong)
    assert wrong not in str(error.value)
    with pytest.raises(UserError, match=refused):
        hub.pull("morgane/mtnt", token=wrong)
    assert not server.repositories


def test_token_that_cannot_be_sent_stays_secret(server: FakeHub, run_folder: Path) -> None:
    with pytest.raises(UserError, match="not logged in to the Hub with a usable token") as error:
        hub.push(run_folder, "morgane/mtnt", token=f"{TOKEN}\nX")
    assert TOKEN not in str(error.value)


def test_not_logged_in(server: FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match="not logged in .* usable token: `hf auth login`"):
        hub.push(run_folder, "morgane/mtnt")
    server.create("morgane/secret", private=True)
    with pytest.raises(UserError, match="the Hub has no model 'morgane/secret'"):
        hub.pull("morgane/secret")


def test_no_permission(server: FakeHub, run_folder: Path) -> None:
    for make in (lambda: None, lambda: server.create("someone/theirs", private=False)):
        make()
        with pytest.raises(UserError, match="may not do that with 'someone/theirs' .403."):
            hub.push(run_folder, "someone/theirs", private=False)
    assert len(server.repositories["someone/theirs"].commits) == 1


def test_push_without_permission_is_one_line_and_status_2(
    server: FakeHub, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["push", str(run_folder), "--repo", "someone/theirs"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: this token may not do that with 'someone/theirs' (403)")
    assert error.count("\n") == 1
    assert not server.repositories


def test_gated(server: FakeHub, run_folder: Path) -> None:
    def refuse(*_: object) -> None:
        raise Refused(403, "accept the license", "GatedRepo")

    server.create("google/gated", private=False)
    server._info = refuse  # type: ignore[method-assign]
    with pytest.raises(UserError, match="'google/gated' is gated: accept its licence at"):
        hub.pull("google/gated")


@pytest.mark.parametrize(
    "name", ["a/b/c", "morgane/-x", "x" * 97, "morgane/a--b", "a b", "", "x.git"]
)
def test_invalid_name(server: FakeHub, run_folder: Path, name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not a name on the Hub"):
        hub.push(run_folder, name)
    assert not server.requests


def test_folder_is_not_a_run(server: FakeHub, run_folder: Path) -> None:
    (run_folder / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="run is not a finished run: no adapter_model.safetensors"):
        hub.push(run_folder, "morgane/mtnt")
    assert not server.requests


@pytest.mark.parametrize("name", ["run.json", "config.yaml", "README.md", "samples.txt"])
def test_token_in_a_file_stops_the_push(server: FakeHub, run_folder: Path, name: str) -> None:
    with open(run_folder / name, "a") as stream:
        stream.write(f"--hub-token {TOKEN}\n")
    with pytest.raises(UserError, match=f"{name} holds what looks like an access token") as error:
        hub.push(run_folder, "morgane/mtnt", token=OTHER)
    assert TOKEN not in str(error.value)
    assert not server.requests


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_no_network(server: FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused_port()}")
    with pytest.raises(
        UserError, match="no connection to the Hub .ConnectError.: check the network"
    ):
        hub.push(run_folder, "morgane/mtnt")
    with pytest.raises(
        UserError, match="no connection to the Hub .ConnectError.: check the network"
    ):
        hub.pull("morgane/mtnt")


def test_offline_mode(server: FakeHub, run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import close_session, constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    with pytest.raises(UserError, match="while HF_HUB_OFFLINE is set"):
        hub.push(run_folder, "morgane/mtnt")
    with pytest.raises(UserError, match="while HF_HUB_OFFLINE is set"):
        hub.pull("morgane/mtnt")
    assert not server.requests
