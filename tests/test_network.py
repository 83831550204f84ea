"""Nothing goes out unasked: training and every command run with all connections refused and written down."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny_gguf

ROOT = Path(__file__).parents[1]
# imported by Python itself at its start, in every process that a command begins
REFUSE = """\
import os, socket

def refuse(name):
    def asked(*words, **_):
        host = words[1][0] if name == "connect" and isinstance(words[1], tuple) else words[0]
        if host not in ("127.0.0.1", "::1", "localhost", socket.gethostname()):
            with open(os.environ["ASKED"], "a") as file:
                file.write(f"{name} {host}\\n")
            raise OSError("no network in this test")
        return original(*words, **_)
    original = getattr(socket.socket if name == "connect" else socket, name)
    return asked

socket.getaddrinfo = refuse("getaddrinfo")
socket.socket.connect = refuse("connect")
"""


def without_network(place: Path, code: str) -> list[str]:
    """What a Python program asked the network for, as a user starts it: online, not under CI."""
    (place / "sitecustomize.py").write_text(REFUSE)
    asked = place / "asked.txt"
    quiet = ("CI", "HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    kept = {k: v for k, v in os.environ.items() if k not in quiet}
    new = {"PYTHONPATH": f"{place}:{ROOT}", "ASKED": str(asked), "HF_HOME": str(place / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | new, cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return asked.read_text().splitlines() if asked.exists() else []


def test_training_and_every_command_ask_nobody(tmp_path: Path) -> None:
    base = tiny_gguf.model_folder(tmp_path / "base", "gemma3_text", max_position_embeddings=4096)
    flags = f"--model {base} --max-length 2000 --max-steps 2 --eval-limit 2 --output-dir run"
    short = ["--max-new-tokens", "2"]
    verbs = [
        ["check", str(ROOT / "recipes" / "mtnt_lora.py"), "--model", str(base)],
        ["plan", str(ROOT / "recipes" / "mtnt_lora.py"), "--model", str(base)],
        ["translate", "run", "hello", *short],
        ["eval", "run", "--limit", "2"],
        ["generate", "run", "hello", *short],
        ["score", "run", "--text", "bonjour"],
        ["summary", "run"],
        ["merge", "run", "merged"],
        ["generate", "merged", "hello", *short],
        ["export", "run", "run.gguf"],
        ["chat", "run", *short],
    ]
    code = f"""
import io, runpy, sys
sys.argv = ["mtnt_lora.py", *{flags.split()!r}]
runpy.run_path({str(ROOT / "recipes" / "mtnt_lora.py")!r}, run_name="__main__")
from ft.__main__ import main
for words in {json.dumps(verbs)}:
    sys.stdin = io.StringIO("hello\\n")
    main(words)
"""
    assert without_network(tmp_path, code) == []
    assert (tmp_path / "merged" / "model.safetensors").exists()
    assert (tmp_path / "run.gguf").exists()


@pytest.mark.parametrize("first", ["ft", "huggingface_hub.constants"])
def test_libraries_are_told_not_to_report_also_when_they_came_first(first, tmp_path) -> None:
    said = "import huggingface_hub.constants as c; assert c.HF_HUB_DISABLE_TELEMETRY"
    assert without_network(tmp_path, f"import {first}; import ft; {said}") == []


@pytest.mark.parametrize("first", ["ft", "huggingface_hub.constants"])
@pytest.mark.parametrize(("value", "quiet"), [("0", False), ("true", True)])
def test_who_sets_the_variable_is_heard(first, value, quiet, tmp_path) -> None:
    own = f"import os; os.environ['HF_HUB_DISABLE_TELEMETRY'] = {value!r}"
    said = "import huggingface_hub.constants as c"
    code = f"{own}; import {first}; import ft; {said}; assert c.HF_HUB_DISABLE_TELEMETRY is {quiet}"
    assert without_network(tmp_path, code) == []


def test_that_test_can_fail(tmp_path: Path) -> None:
    code = (
        "from huggingface_hub.utils import send_telemetry as s; s('x'); import time; time.sleep(1)"
    )
    assert without_network(tmp_path, code) != []
