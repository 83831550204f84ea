"""Where a base model is found, and the one line that a user gets when it is not."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ft.errors import UserError
from ft.models import embedded, sources


def test_a_folder_a_hub_id_and_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert sources.resolve(str(tmp_path)) == tmp_path.resolve()
    assert sources.published_name(str(tmp_path)) == str(tmp_path.resolve())
    assert sources.resolve("google/gemma-2b-it") == "google/gemma-2b-it"
    assert sources.published_name("google/gemma-2b-it") == "google/gemma-2b-it"
    monkeypatch.setattr(embedded, "folder", lambda: tmp_path)
    assert sources.resolve("embedded") == tmp_path
    assert sources.published_name("embedded") == "google/gemma-3-270m"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("embeded", "'embeded' is neither a folder here, nor a Hub id.*Did you mean 'embedded'"),
        ("./no/such/folder", "neither a folder here"),
        ("gemma.gguf", "is one file.*GGUF files and pickles are not loaded"),
        ("model/pytorch_model.bin", "is one file"),
    ],
)
def test_names_that_mean_nothing(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        sources.resolve(name)


def test_folders_that_are_something_else(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no config.json"):
        sources.resolve(str(tmp_path))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(UserError, match="GGUF files are not loaded"):
        sources.resolve(str(tmp_path))
    adapter = {"base_model_name_or_path": "google/gemma-2-2b"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(UserError, match="is an adapter.*google/gemma-2-2b.*ft eval"):
        sources.resolve(str(tmp_path))


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"no \*\.safetensors.*Pickled weights"):
        sources.fetch(str(tmp_path))
    assert sources.fetch(str(tmp_path), weights=False) == tmp_path.resolve()


# The real client of the Hub against a small local server, in a process of its own: the client
# reads HF_ENDPOINT and HF_HUB_OFFLINE when it is imported.


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as the Hub does for repositories named after the answer."""

    def do_GET(self) -> None:
        listing = '{"id": "x/gated", "sha": "%s", "siblings": []}' % ("a" * 40)
        files = '[{"type": "file", "path": "config.json", "size": 2, "oid": "%s"}]' % ("b" * 40)
        if "x/gated" in self.path and "/resolve/" in self.path:
            self.answer(403, {"X-Error-Code": "GatedRepo"})
        elif "x/gated" in self.path:
            self.answer(200, {}, files if "/tree/" in self.path else listing)
        elif "x/missing" in self.path:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
        elif "x/private" in self.path:
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif "x/badtoken" in self.path:
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        else:
            self.answer(418, {})

    do_HEAD = do_GET

    def answer(self, status: int, headers: dict[str, str], body: str = "") -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def ask(names: list[str], home: Path, **environment: str) -> dict[str, str]:
    """What ``fetch`` says for each name, asked in a new process."""
    code = (
        "import json, sys\nfrom ft import errors\nfrom ft.models import sources\nanswers = {}\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        answers[name] = str(sources.fetch(name, weights=False))\n"
        "    except errors.UserError as error:\n        answers[name] = str(error)\n"
        "print(json.dumps(answers))"
    )
    strip = ("HF_", "HUGGING", "HTTP", "ALL_PROXY")
    clean = {k: v for k, v in os.environ.items() if not k.upper().startswith(strip)}
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        env=clean
        | {"PYTHONPATH": str(Path(__file__).parents[2]), "HF_HOME": str(home), "HF_TOKEN": "hf_x"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_what_the_hub_refuses(endpoint: str, tmp_path: Path) -> None:
    names = ["x/gated", "x/missing", "x/private", "x/badtoken", "x/teapot"]
    said = ask(names, tmp_path, HF_ENDPOINT=endpoint)
    assert "accept its licence at https://huggingface.co/x/gated" in said["x/gated"]
    assert "hf auth login" in said["x/gated"]
    assert "the Hub has no model 'x/missing', or it is private" in said["x/missing"]
    assert "the Hub has no model 'x/private', or it is private" in said["x/private"]
    assert "refuses your token (401) for 'x/badtoken'" in said["x/badtoken"]
    assert "the Hub answered 418 for 'x/teapot'" in said["x/teapot"]
    for line in said.values():
        assert "\n" not in line
        assert "hf_x" not in line


def test_no_connection_and_offline(tmp_path: Path) -> None:
    refused = ask(["x/y"], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")["x/y"]
    assert "no connection to the Hub (ConnectError): check the network" in refused
    assert "Use `embedded`" in refused
    offline = ask(["x/y"], tmp_path, HF_HUB_OFFLINE="1")["x/y"]
    assert "may not be asked for 'x/y' while HF_HUB_OFFLINE is set" in offline
    assert "Use `embedded`" in offline
