"""The checks before a run: what the Hub is asked, what is loaded, what a run keeps of them."""

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import faults
from support.fake_hub import FakeHub

from ft.data.rows import Rows
from ft.errors import UserError
from ft.plan import check_environment as around
from ft.plan import check_text
from ft.plan.case import Case, Seen, no_network, share
from ft.runs import checkpoints

ROOT = Path(__file__).parents[2]
TORCH = ".".join(importlib.metadata.version("torch").split(".")[:2])
TOKEN = "hf_" + "tokenOfMorgane" * 2


def case(**settings) -> Case:
    return Case(settings, dict, None, Path("nowhere"))


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A Hub with one model, and its client."""
    from huggingface_hub import close_session, constants

    with FakeHub({TOKEN: "morgane"}) as fake:
        monkeypatch.setenv("HF_ENDPOINT", fake.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        close_session()
        weights = {"config.json": b"{}", "model.safetensors": b"x" * 200_000_000}
        fake.create("google/some", private=False).add("main", "model", weights)
        yield fake
        close_session()


@pytest.mark.parametrize(
    ("built", "code", "wrong"),
    [
        ("2.9.0", "raise RuntimeError('operator torchvision::nms does not exist')", True),
        ("2.9.0", "", False),  # which works all the same
        (f"{TORCH}.7", "raise RuntimeError", False),
    ],
)
def test_a_companion_of_another_pytorch_is_named(built, code, wrong, tmp_path, monkeypatch):
    """As pip leaves it where it replaces PyTorch alone; transformers fails at it with the import of a model's code."""
    metadata = f"Name: sight\nVersion: 0.24.0\nRequires-Dist: torch=={built}\n"
    files = {"sight/__init__.py": code, "sight-0.24.0.dist-info/METADATA": metadata}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert "torchvision" in around.COMPANIONS
    monkeypatch.setattr(around, "COMPANIONS", ("sight", "hearing"))
    seen = around.versions(case())
    sys.modules.pop("sight", None)
    assert (seen.status == "ERROR") == wrong
    assert (f"sight 0.24.0 is for torch {built} and fails with {TORCH}" in seen.text) == wrong
    assert ("nms does not exist): pip install --upgrade sight" in seen.text) == wrong


def test_the_hub_is_asked_once_for_each_thing(server):
    looked = case(model_name_or_path="google/some", push_to_hub="morgane/mine")
    seen = around.hub_access(looked)
    assert seen == Seen("ok", "hub", "token of morgane, google/some: 0.2 GB to fetch")
    assert looked.to_fetch == 200_000_000
    assert server.requests == ["whoami", "info"]


def test_a_model_that_is_not_there(server):
    with pytest.raises(UserError, match="the Hub has no model 'google/other'"):
        around.hub_access(case(model_name_or_path="google/other"))


def test_a_token_that_is_refused(server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 6)
    with pytest.raises(UserError, match=r"refuses your token \(401\)"):
        around.hub_access(case(model_name_or_path="google/some"))


def test_offline_nothing_is_asked(server):
    looked = case(model_name_or_path="google/some")
    looked.offline = True
    assert around.hub_access(looked).status == "--"
    assert server.requests == []


def test_what_is_here_needs_no_hub(server, tmp_path):
    looked = case(model_name_or_path=str(tmp_path), data="sample")
    assert around.hub_access(looked).text == "not needed: model and data are here"
    assert server.requests == []


def test_no_network_is_for_as_long_as_it_lasts(monkeypatch):
    import os

    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with no_network(True):
        assert constants.is_offline_mode() if hasattr(constants, "is_offline_mode") else True
        assert constants.HF_HUB_OFFLINE
        assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert not constants.HF_HUB_OFFLINE
    assert "HF_HUB_OFFLINE" not in os.environ


def test_no_share_is_rounded_to_nothing_or_all():
    assert [share(n, 10_000) for n in (0, 1, 5000, 9999, 10_000)] == [
        *("0%", "0.1%", "50.0%", "99.9%", "100%")
    ]


def test_a_line_that_goes_on_stays_in_its_column():
    assert str(Seen("ok", "data", "a\nb")).splitlines()[1].index("b") == 18


def test_no_torch_is_loaded(tmp_path):
    bench = faults.Bench(tmp_path)
    words = [str(ROOT / "recipes" / "dolly_qlora.py"), "--model", str(bench.model())]
    words += ["--data", str(bench.data(faults.chats())), "--template", "chat", "--output-dir"]
    words += [str(tmp_path / "run"), "--valid-rows", "4", "--test-rows", "4", "--gpu", "rtx4090"]
    code = (
        f"from ft.__main__ import main; main(['check', *{words!r}])\n"
        "import sys; heavy = {'torch', 'transformers', 'trl', 'peft', 'datasets', 'numpy'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_run_keeps_what_was_checked_and_its_card_shows_it(tmp_path):
    from support.recipe_runs import train

    folder = train("mtnt_lora", tmp_path)
    kept = {seen["name"]: seen for seen in json.loads((folder / "run.json").read_text())["checks"]}
    assert {"versions", "model", "template", "tokens", "length", "lora", "disk"} <= set(kept)
    assert kept["tokens"]["status"] == "ok"
    assert "- ok tokens: one BOS in every row" in (folder / "README.md").read_text()


def test_a_recipe_ends_at_the_errors_before_torch_is_loaded(tmp_path):
    from support.recipe_runs import train

    with pytest.raises(UserError, match="wandb needs wandb.*\n.*no linear layer has that name"):
        train("mtnt_lora", tmp_path, "--report-to", "wandb", "--target-modules", "nothing")
    assert not (tmp_path / "run").exists()


def test_a_prompt_without_an_answer_is_compared_with_one():
    asked = {"instruction": "Add 1 and 1.", "context": "", "system": "Be short."}
    talk = check_text._talk(asked)
    assert [m["role"] for m in talk] == ["system", "user", "assistant"]
    assert check_text._talk(asked | {"response": "2"})[-1]["content"] == "2"
    assert check_text._talk({"messages": talk}) == talk
    assert check_text._talk({"messages": talk[:-1]}) == talk


def test_room_is_needed_for_states_of_the_adapter_that_a_run_starts_with(tmp_path, monkeypatch):
    monkeypatch.setattr(around, "TOKENIZER", 0)
    (tmp_path / "adapter_model.safetensors").write_bytes(bytes(3_000_000))

    def needed(**settings) -> float:
        return float(re.search(r"needs ([\d.]+) MB", around.disk(case(**settings)).text)[1])

    with_states = needed(run=str(tmp_path)) - needed()
    assert with_states == pytest.approx(9 * (checkpoints.KEPT + 2) + 3, abs=0.2)


@pytest.mark.parametrize(
    ("train", "valid", "shared"),
    [("", "", True), ("train", "valid", False), ("", "valid", True), ("train", "", True)],
)
def test_a_shard_to_train_on_and_to_validate_on_is_told(train, valid, shared):
    splits = {
        split: Rows([{"shard": name, "part": part}], "here", "0")
        for split, name, part in (("train", "a.txt", train), ("valid", "a.txt", valid))
    }
    seen = check_text.data(Case({}, lambda: splits, None, Path("nowhere")))
    assert seen.status == ("WARN" if shared else "ok")
    assert ("a.txt to train on and to validate on" in seen.text) == shared
