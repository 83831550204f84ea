"""Pretraining the mini-GPT: the recipe from text to a model, going on exactly, and what it refuses."""

import dataclasses
import importlib.util
import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support import tiny

from ft import config
from ft.errors import UserError
from ft.runs import folder
from ft.score import likelihood
from ft.train import pretraining

RECIPE = Path(__file__).parents[2] / "recipes" / "minigpt_pretrain.py"
TINY = {
    "hidden-size": 16,
    "num-hidden-layers": 2,
    "num-attention-heads": 2,
    "max-length": 16,
    "per-device-train-batch-size": 4,
    "learning-rate": 1e-2,
    "warmup-steps": 2,
    "max-steps": 4,
    "max-minutes": "none",
    "eval-steps": 2,
    "save-steps": 2,
    "logging-steps": 1,
    "shuffle-buffer": 8,
    "valid-tokens": 320,
    "workers": 0,
    "precision": "fp32",
    "prompt": "The cat",
}


def load():
    spec = importlib.util.spec_from_file_location("minigpt_pretrain", RECIPE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["minigpt_pretrain"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    """A folder of text to train and to validate on, and a tokenizer beside it."""
    root = tmp_path_factory.mktemp("text")
    lines = [f"The cat sat on mat {i}. Hello, my name is Morgane.\\nParis {i}." for i in range(300)]
    (root / "corpus").mkdir()
    (root / "corpus" / "train.lines").write_text("\n".join(lines[:280]))
    (root / "corpus" / "valid.lines").write_text("\n".join(lines[280:]))
    tokenizer = tiny.tokenizer()
    tokenizer.save_pretrained(root / "tokenizer")
    return root


def settings(text: Path, place: Path, **changes):
    flags = TINY | {"data": text / "corpus", "tokenizer": text / "tokenizer", "output-dir": place}
    changed = {name.replace("_", "-"): value for name, value in changes.items()}
    words = [
        word for name, value in (flags | changed).items() for word in (f"--{name}", str(value))
    ]
    return config.parse(load().Config, words)


def train(text: Path, place: Path, **changes) -> Path:
    torch.set_num_threads(1)
    load().main(settings(text, place, **changes))
    return place


def weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("style", ["book", "modern"])
def test_it_learns_and_leaves_a_model(style, text, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = train(text, tmp_path / "run", style=style, max_steps=40, eval_steps=20)
    said = capsys.readouterr().out
    lines = folder.read_lines(place / folder.METRICS)
    start, *_, end = (line for line in lines if "eval_loss" in line)
    assert f"Start, validation loss: {start['eval_loss']:.4f}" in said
    assert "STEP 40 training loss: " in said
    assert start["eval_loss"] == pytest.approx(math.log(400), rel=0.1)
    assert end["eval_loss"] < start["eval_loss"] - 1
    assert end["perplexity"] == pytest.approx(math.exp(end["eval_loss"]))
    assert end["accuracy"] > start["accuracy"]
    assert end["bits_per_byte"] < start["bits_per_byte"]
    assert end["sample"].startswith("The cat")
    record = folder.read(place)
    assert record["training"]["steps"] == 40
    assert record["training"]["tokens"] == 40 * 4 * 16
    assert record["training"]["bits_per_byte"] == end["bits_per_byte"]
    names = {file.name for file in place.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    assert {"loss.png", "learning_rate.png", "samples.txt", "config.yaml"} <= names
    assert not [name for name in names if name.startswith(".")]
    model = AutoModelForCausalLM.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)
    fixed, size = load().corpus.validation([str(text / "corpus/valid.lines")], tokenizer, 16, 320)
    found = likelihood.of_windows(model, fixed, size, batch_size=4, autocast=torch.enable_grad)
    assert found.eval_loss == pytest.approx(end["eval_loss"], rel=1e-5)


def test_validation_is_cross_entropy_and_bits_per_byte(text):
    from ft.minigpt import MiniGPTForCausalLM

    c = settings(text, Path("unused"))
    model = MiniGPTForCausalLM(load().shape(c, tiny.tokenizer()))
    fixed = torch.randint(0, 380, (5, 17)).numpy()
    found = likelihood.of_windows(model, fixed, 100, batch_size=2, autocast=torch.enable_grad)
    ids = torch.from_numpy(fixed)
    logits = model.eval()(ids[:, :-1]).logits.flatten(0, 1)
    losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    assert found.eval_loss == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(losses.sum().item() / math.log(2) / 100, rel=1e-5)
    right = (logits.argmax(-1) == ids[:, 1:].flatten()).float().mean().item()
    assert found.accuracy == pytest.approx(right)


@pytest.mark.parametrize(
    ("optimizer", "style"), [("adamw", "book"), ("muon", "modern")], ids=["adamw", "muon"]
)
def test_a_resumed_run_ends_with_the_same_bits(optimizer, style, text, tmp_path, monkeypatch):
    same = {"optim": optimizer, "style": style, "dropout": 0.1, "gradient_accumulation_steps": 2}
    whole = train(text, tmp_path / "whole", **same)

    def killed(self, *args):
        if self.step == 3:
            raise KeyboardInterrupt
        return begin(self, *args)

    begin = pretraining.Meter.begin
    with monkeypatch.context() as patch:
        patch.setattr(pretraining.Meter, "begin", killed)
        with pytest.raises(KeyboardInterrupt):
            train(text, tmp_path / "cut", **same)
    cut = tmp_path / "cut"
    assert (cut / "checkpoint-2").is_dir()
    assert not (cut / "model.safetensors").exists()
    resumed = train(text, cut, **same, resume_from_checkpoint="last")
    a, b = weights(whole), weights(resumed)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    lines = [
        [line for line in folder.read_lines(place / folder.METRICS) if "loss" in line]
        for place in (whole, resumed)
    ]
    assert [line["step"] for line in lines[1]] == [1, 2, 3, 4]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]


def test_a_signal_saves_a_checkpoint_to_go_on_from(text, tmp_path, monkeypatch, capsys):
    import os
    import signal

    def asked(self, loss):
        if self.step == 2:  # while the third step runs
            os.kill(os.getpid(), signal.SIGTERM)
        end(self, loss)

    end = pretraining.Meter.end
    with monkeypatch.context() as patch:
        patch.setattr(pretraining.Meter, "end", asked)
        with pytest.raises(SystemExit) as stopped:
            train(text, tmp_path / "run")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in capsys.readouterr().out
    assert (tmp_path / "run" / "checkpoint-3").is_dir()
    train(text, tmp_path / "run", resume_from_checkpoint="last")
    assert folder.read(tmp_path / "run")["training"]["steps"] == 4


def test_what_a_gpu_still_takes_when_a_line_is_logged_is_time_of_the_steps():
    def reduce(value, _):
        time.sleep(0.05)  # as long as the device is behind
        return value

    accelerator = SimpleNamespace(num_processes=1, device="cpu", reduce=reduce)
    lines = []
    record = SimpleNamespace(log=lines.append)
    options = {"step_tokens": 4, "flops": 1.0, "max_steps": 2, "max_minutes": None}
    with pretraining.Meter(accelerator, record, **options) as meter:
        meter.begin()
        meter.end(torch.tensor(1.0))
        before = meter.seconds
        meter.log()
        assert lines[0]["seconds"] >= round(before + 0.05, 3)
        meter.begin()
        meter.end(torch.tensor(1.0))
    assert before + 0.05 <= meter.seconds
    assert meter.figures()["seconds"] == round(meter.seconds, 3)  # counted once


def test_bf16_products_learn_too(text, tmp_path):
    place = train(text, tmp_path / "run", precision="bf16", style="book", max_steps=20)
    record = folder.read(place)
    assert record["model"]["precision"] == "bf16"
    assert record["training"]["eval_loss"] < math.log(400) - 0.5
    assert {tensor.dtype for tensor in weights(place).values()} == {torch.float32}


def test_accumulation_changes_nothing_but_rounding(text, tmp_path):
    one = train(text, tmp_path / "one", shuffle_buffer=0)
    four = train(
        text,
        tmp_path / "four",
        shuffle_buffer=0,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
    )
    a, b = weights(one), weights(four)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)


def test_a_budget_of_time_ends_the_run(text, tmp_path):
    rarely = dict.fromkeys(("eval_steps", "save_steps"), 10**6)
    place = train(text, tmp_path / "run", max_minutes=0.01, max_steps=10**6, **rarely)
    training = folder.read(place)["training"]
    assert training["seconds"] >= 0.6
    rates = [
        line["learning_rate"]
        for line in folder.read_lines(place / folder.METRICS)
        if "learning_rate" in line
    ]
    assert training["steps"] == len(rates)
    assert rates[-1] < max(rates)


def test_a_loss_that_is_not_finite_stops_the_run(text, tmp_path, monkeypatch):
    from ft.minigpt import MiniGPTForCausalLM

    def broken(self, *args, **kwargs):
        found = forward(self, *args, **kwargs)
        if found.loss is not None:
            found.loss = found.loss * math.nan
        return found

    forward = MiniGPTForCausalLM.forward
    monkeypatch.setattr(MiniGPTForCausalLM, "forward", broken)
    with pytest.raises(UserError, match="the loss became nan at step 1; .*--learning-rate"):
        train(text, tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_going_on_with_something_else_is_refused(text, tmp_path):
    place = train(text, tmp_path / "run")
    again = {"resume_from_checkpoint": "last"}
    with pytest.raises(UserError, match=r"learning_rate: 0.01 -> 0.02"):
        train(text, place, **again, learning_rate=0.02)
    other = tmp_path / "text" / "corpus"
    other.mkdir(parents=True)
    for name in ("train.lines", "valid.lines"):
        (other / name).write_text((text / "corpus" / name).read_text() + "\none more document")
    with pytest.raises(UserError, match=r"data: .* -> "):
        train(text, place, **again, data=other)
    before = (text / "corpus" / "train.lines").read_text()
    try:
        (text / "corpus" / "train.lines").write_text(before + "\none more document")
        with pytest.raises(UserError, match=r"train.lines has other content"):
            train(text, place, **again)
    finally:
        (text / "corpus" / "train.lines").write_text(before)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_length": 0}, "--max-length: got 0, must be above 0"),
        ({"dropout": 1.0}, "dropout 1.0 must be from 0 to below 1"),
        ({"prompt": "The cat sat on the mat " * 9}, "the prompt fills the window of 16 tokens"),
        ({"num_attention_heads": 3}, "hidden_size 16 is not a multiple of twice the 3"),
        ({"tokenizer": "no/such"}, "tokenizer no/such: "),
        ({"data": "nowhere.txt"}, "nowhere.txt does not exist"),
        ({"resume_from_checkpoint": "last"}, "holds no complete checkpoint"),
    ],
)
def test_what_cannot_be_is_refused(changes, said, text, tmp_path):
    with pytest.raises(UserError, match=said):
        train(text, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_without_flags_there_is_text_and_a_tokenizer_of_its_own(tmp_path, monkeypatch, capsys):
    """On a small part of it, and with a small vocabulary."""
    from ft import files
    from ft.data import shards

    part = files.cache_dir() / "part.jsonl"
    part.parent.mkdir(parents=True)
    found = (text for _, text in zip(range(400), shards.builtin_documents(), strict=False))
    part.write_text("".join(json.dumps({"text": text}) + "\n" for text in found))
    monkeypatch.setattr(shards, "builtin", lambda: part)
    flags = {k: v for k, v in TINY.items() if k != "prompt"} | {"output-dir": tmp_path / "run"}
    words = [w for name, value in flags.items() for w in (f"--{name}", str(value))]
    for vocab_size in (600, 600):
        load().main(
            config.parse(
                load().Config, [*words, "--vocab-size", str(vocab_size), "--overwrite-output-dir"]
            )
        )
    said = capsys.readouterr().out
    assert said.count("600 pieces in") == 1  # the second time it is there
    assert "This function" in (tmp_path / "run" / "samples.txt").read_text()


def test_presets_are_the_books_and_its_equal(text):
    from ft.minigpt import MiniGPTForCausalLM

    sizes = {}
    for name in ("book", "modern"):
        c = config.parse(load().Config, ["--preset", name])
        shape = load().shape(c, tiny.tokenizer())
        shape.vocab_size = 32_000
        with torch.device("meta"):
            sizes[name] = MiniGPTForCausalLM(shape).num_parameters()
    assert sizes["book"] == 41_800_768
    assert sizes["modern"] == pytest.approx(sizes["book"], rel=0.01)
    assert dataclasses.asdict(c)["max_length"] == 256


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.5, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [0.5, 0.8536, 0.5, 0.1464, 0.0]),
    ],
)
def test_the_learning_rate_rises_and_falls(schedule, expected):
    found = [
        pretraining.rate(step, step / 4, peak=1.0, warmup_steps=2, schedule=schedule)
        for step in range(5)
    ]
    assert found == pytest.approx(expected, abs=1e-4)


def test_two_processes_train_what_one_does(text, tmp_path):
    cached = {"token_cache": tmp_path / "tokens", "max_steps": 3}
    one = train(text, tmp_path / "one", **cached)
    c = settings(text, tmp_path / "two", per_device_train_batch_size=2, **cached)
    words = [
        word
        for name, value in config.to_dict(c).items()
        if value not in (None, False, [])
        for word in (f"--{name}", ",".join(value) if isinstance(value, list) else str(value))
    ]
    words += ["--max-minutes", "none"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    done = subprocess.run(
        [*command, "2", str(RECIPE), *words], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Start, validation loss") == 1
    for place in (one, tmp_path / "two"):
        assert folder.read(place)["training"]["tokens"] == 3 * 4 * 16
    a, b = weights(one), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4, msg=name)


def test_too_little_text_for_all_processes_is_refused_before_a_folder_is_made(text, tmp_path):
    c = settings(text, tmp_path / "run")
    few = tmp_path / "few.lines"
    few.write_text("\n".join(f"A line, {i}." for i in range(3)))
    with pytest.raises(UserError, match=r"fewer than one window of 65"):
        load().main(dataclasses.replace(c, data=(str(few),), valid_data=c.data, max_length=64))
    assert not (tmp_path / "run").exists()


def test_the_best_validation_is_kept_also_after_a_resume(text, tmp_path, monkeypatch):
    """Validations as they are told here: the second of four is the best."""
    told = iter([6.0, 3.0, 2.0, 4.0, 5.0, 4.0, 5.0, 4.0])
    plain = likelihood.of_windows

    def fixed(*args, **kwargs):
        return dataclasses.replace(plain(*args, **kwargs), eval_loss=next(told))

    monkeypatch.setattr(likelihood, "of_windows", fixed)
    whole = train(text, tmp_path / "run", max_steps=8)
    kept = folder.read(whole)["training"]["kept_step"]
    assert kept == 4
    names = sorted(p.name for p in whole.glob("checkpoint-*"))
    assert names == ["checkpoint-4", "checkpoint-6", "checkpoint-8"]
    ours, theirs = weights(whole), weights(whole / "checkpoint-4")
    names = ours.keys() & theirs.keys()  # but for one tensor that has two names
    assert len(names) >= len(ours) - 1 > 5
    assert all(torch.equal(ours[name], theirs[name]) for name in names)

    shutil.rmtree(whole / "checkpoint-8")
    (whole / "model.safetensors").unlink()
    train(text, whole, max_steps=8, resume_from_checkpoint="last")
    assert folder.read(whole)["training"]["kept_step"] == 4
    again = weights(whole)
    assert all(torch.equal(again[name], ours[name]) for name in ours)
    last = train(text, tmp_path / "last", max_steps=2, keep="last")
    assert folder.read(last)["training"]["kept_step"] == 2
