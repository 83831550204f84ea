"""Every recipe: a header that tells what it needs, settings that are explained, two tiny steps."""

import ast
import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from support import tiny
from support.recipe_runs import RECIPES, dolly, load, train, words

from ft import __main__ as cli
from ft import config
from ft.errors import UserError
from ft.plan import devices
from ft.runs import folder as run
from ft.train import sft

REWARDED = {
    "mtnt_reject",
    "mtnt_dpo",
    "mtnt_grpo",
    "preference",
}  # from a finished run: test_reward_recipes.py


def test_there_are_recipes():
    names = ["dolly_qlora", "gsm8k_lora", "minigpt_pretrain", "mtnt_full", "mtnt_lora"]
    names += ["mtnt_recurrent", "text_lora", "vision_lora", *REWARDED]
    assert [p.stem for p in RECIPES] == sorted(names)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_header_tells_what_it_takes(path):
    header = ast.get_docstring(ast.parse(path.read_text())) or ""
    for word in ("accelerate launch", "Hardware", "Time", "Memory", "Score", "Data", "Source"):
        assert word in header, word


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_settings_are_few_frozen_and_explained(path, capsys):
    module = load(path)
    fields = dataclasses.fields(module.Config)
    # the two that a GPU is chosen for also say what its packed rows go through, and one how answers are looked for; both what the best step is told by
    most = {"minigpt_pretrain": 39, "mtnt_lora": 40, "dolly_qlora": 45}
    assert len(fields) <= most.get(path.stem, 36)
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Config().seed = 1
    with pytest.raises(SystemExit) as stopped:
        config.parse(module.Config, ["--help"], doc=module.__doc__)
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    said = config._comments(module.Config)
    for field in fields:
        assert field.name in shown
        assert said[field.name][1], f"{field.name}: what is it?"


# lines of `main` and of the file; minigpt_pretrain's loop is meant to be read
BOUNDS = {
    "minigpt_pretrain": (175, 348),
    "mtnt_lora": (45, 190),
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_it_reads_in_one_sitting(path):
    text = path.read_text()
    (main,) = (n for n in ast.parse(text).body if getattr(n, "name", "") == "main")
    of_main, of_file = BOUNDS.get(path.stem, (65, 190))
    assert main.end_lineno - main.lineno + 1 <= of_main
    assert len(text.splitlines()) <= of_file


def unread(module, text: str) -> set[str]:
    """Settings that are neither read as ``c.NAME`` nor picked for a function that takes them.

    One that the recipe itself fills in, for its record, is none of them.
    """
    tree, scope, read = ast.parse(text), dict(vars(module)), set()
    imports = [n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)]
    for node in imports:  # those inside functions too
        exec(ast.unparse(node), scope)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "c":
            read.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "config.pick":
            read |= set(inspect.signature(eval(ast.unparse(node.args[1]), scope)).parameters)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dataclasses.replace":
            read |= {keyword.arg for keyword in node.keywords}
    return {field.name for field in dataclasses.fields(module.Config)} - read


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_each_setting_is_read(path):
    assert unread(load(path), path.read_text()) == set()


def test_a_setting_that_no_one_reads_is_found():
    path = next(p for p in RECIPES if p.stem == "mtnt_lora")
    text = path.read_text()
    assert unread(load(path), text.replace("c.lora_r,", "16,")) == {"lora_r"}
    assert {"optim", "max_steps"} <= unread(load(path), text.replace("**config.pick", "**pick"))


@pytest.mark.parametrize(
    "path", [p for p in RECIPES if p.stem not in REWARDED], ids=lambda p: p.stem
)
def test_two_tiny_steps_carry_what_was_proven_before_them(path, tmp_path, capsys):
    cli.main(["check", str(path), *words(path.stem, tmp_path), "--weights"])
    looked = path.stem not in ("minigpt_pretrain", "vision_lora")  # which have no ids before
    assert ("carries these lines" in capsys.readouterr().out) == looked
    folder = train(path.stem, tmp_path)
    said = capsys.readouterr().out
    checks = json.loads((folder / run.RECORD).read_text())["checks"]
    proof = [check["name"] for check in checks if "measured" in check]
    whole = path.stem in ("mtnt_full", "mtnt_recurrent")
    merged = ["merged"] * (not whole)
    assert proof == ["start loss", "packed", "cached", "accumulate", *merged] * looked
    assert "weights" not in [check["name"] for check in checks]
    assert ("taken into the record: start loss, packed" in said) == looked
    assert "Start, validation loss: " in said
    assert "STEP 2 training loss: " in said
    asked = {"dolly_qlora": "How can I make brownies?", "gsm8k_lora": "How many is 1 + 1?"}
    asked |= {"vision_lora": "What is where?", "text_lora": "bits per byte"}
    assert asked.get(path.stem, "Hello, my name is Morgane.") in said
    assert json.loads((folder / run.RECORD).read_text())["training"]["steps"] == 2
    asks = (folder / "chat_template.jinja").read_text() if path.stem != "minigpt_pretrain" else ""
    assert ("Translate this into French" in asks) == path.stem.startswith("mtnt_")
    page = (folder / "report.html").read_text()
    assert "report.html was not written" not in said
    assert "<svg" in page
    assert 'http-equiv="refresh"' not in page  # it has ended


@pytest.mark.parametrize("stem", ["mtnt_lora", "mtnt_full"])
def test_activations_are_computed_again_where_the_memory_needs_it(
    stem, tmp_path, monkeypatch, capsys
):
    asked, found = [], {}
    arguments = sft.__globals__["of_every_trainer"]
    monkeypatch.setitem(
        sft.__globals__,
        "of_every_trainer",
        lambda model, again, autocast: asked.append(again) or arguments(model, again, autocast),
    )
    small = dataclasses.replace(devices.here(), room=1)
    for name, flags, here in (
        ("roomy", [], devices.here()),
        ("small", [], small),
        ("refused", ["--no-gradient-checkpointing"], small),
    ):
        monkeypatch.setattr(devices, "here", lambda here=here: here)
        (tmp_path / name).mkdir()
        folder = train(stem, tmp_path / name, *flags)
        said = capsys.readouterr().out
        assert ("gradient checkpointing: on, as the run takes" in said) == (name == "small")
        assert ("will not fit here" in said) == (here is small)
        losses = [line["loss"] for line in run.read_lines(folder / run.METRICS) if "loss" in line]
        found[name] = losses, json.loads((folder / run.RECORD).read_text())["plan"]["checkpointing"]
    assert asked == [False, True, False]
    assert [planned for _, planned in found.values()] == asked
    assert found["small"][0] == pytest.approx(found["roomy"][0], rel=1e-6)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_presets_are_valid_settings(path):
    module = load(path)
    for name, values in getattr(module.Config, "PRESETS", {}).items():
        made = config.parse(module.Config, ["--preset", name])
        assert {key: getattr(made, key) for key in values} == values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that trained all parameters."""
    flags = ["--learning-rate", "1e-2", "--save-steps", "1"]
    return train("mtnt_full", tmp_path_factory.mktemp("whole"), *flags)


def test_a_full_run_is_a_plain_model_that_the_commands_take(whole, capsys, tmp_path):
    from transformers import AutoModelForCausalLM

    names = {file.name for file in whole.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "run.json", "loss.png"} <= names
    assert not {"adapter_config.json", "training_args.bin"} & names
    tuned = AutoModelForCausalLM.from_pretrained(whole)
    base = AutoModelForCausalLM.from_pretrained(whole.parent / "base")
    assert tuned.config.to_diff_dict() == base.config.to_diff_dict()
    with torch.no_grad():
        ids = torch.tensor([[2, 30, 40, 50]])
        assert (tuned(ids).logits - base(ids).logits).abs().max() > 0.1
    say = ["translate", str(whole), "hello", "--max-new-tokens", "8", "--precision", "fp32"]
    cli.main(say)
    cli.main([*say, "--base"])
    assert capsys.readouterr().out.count("\n") == 2
    result = tmp_path / "result.json"
    cli.main(["eval", str(whole), "--limit", "2", "--precision", "fp32", "--json", str(result)])
    found = json.loads(result.read_text())
    assert found["tuned"]["loss"] < found["base"]["loss"]


def test_eval_repeats_the_scores_of_a_run_of_instructions(tmp_path):
    flags = ["--max-length", "114", "--length-policy", "truncate", "--max-new-tokens", "3"]
    folder, result = train("dolly_qlora", tmp_path, *flags), tmp_path / "result.json"
    cli.main(["eval", str(folder), "--precision", "fp32", "--json", str(result)])
    of_run = json.loads((folder / run.RECORD).read_text())["evaluation"]["test"]
    found = json.loads(result.read_text())
    for model in ("base", "tuned"):
        assert found[model]["loss"] == pytest.approx(of_run[model]["loss"], rel=1e-5)
        for same in ("answer", "answer_tokens", "rouge_l", "chrf"):
            assert found[model][same] == of_run[model][same]


def test_a_full_run_in_bf16_answers_as_it_does_when_opened_again(tmp_path, capsys):
    folder = train("mtnt_full", tmp_path, "--precision", "bf16", "--learning-rate", "1e-2")
    tuned = (folder / "samples.txt").read_text().splitlines()[2].removeprefix("tuned   ")
    capsys.readouterr()
    cli.main(["translate", str(folder), "Hello, my name is Morgane.", "--precision", "bf16"])
    assert tuned
    assert capsys.readouterr().out.rstrip("\n").startswith(tuned)  # which has fewer tokens


def test_the_card_of_a_full_run_says_what_lies_there(whole):
    card = (whole / "README.md").read_text()
    assert "All weights" in card
    assert "library_name: transformers" in card
    assert "AutoModelForCausalLM.from_pretrained(tuned)" in card
    assert "peft" not in card.split("## Hardware")[0].lower()


def test_merging_a_full_run_is_refused(whole, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["merge", str(whole), str(tmp_path / "out")])
    assert "is not an adapter" in capsys.readouterr().err


def test_a_full_run_of_a_multimodal_model_keeps_its_tower(tmp_path):
    from safetensors.torch import load_file

    folder = train("mtnt_full", tmp_path, "--learning-rate", "1e-2", kind="gemma3")
    before = load_file(tmp_path / "base" / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        tower = "vision" in name or "multi_modal" in name
        assert torch.equal(tensor, after[name]) == tower, name


@pytest.mark.parametrize("stem", ["mtnt_full", "mtnt_recurrent"])
def test_an_adapter_is_an_option(stem, tmp_path):
    flags = ["--lora-r", "2", "--optim", "sgd", "--gradient-accumulation-steps", "2"]
    folder = train(stem, tmp_path, *flags, "--warmup-ratio", "0.5", "--learning-rate", "0.1")
    assert (folder / "adapter_model.safetensors").exists()
    assert not (folder / "model.safetensors").exists()
    rates = [
        line["learning_rate"] for line in run.read_lines(folder / run.METRICS) if "loss" in line
    ]
    assert rates == pytest.approx([0.0, 0.1])
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert "down_proj" in targets
    if stem == "mtnt_recurrent":
        assert {"linear_x", "linear_y", "linear_out", "q_proj", "gate_proj"} <= set(targets)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_counts_and_rates_of_zero_are_refused_all_at_once(path):
    config_of = load(path).Config
    names = sorted(config.above_zero(config_of))
    given = [word for name in names for word in (f"--{name}", "0")]
    with pytest.raises(UserError) as refused:
        config.parse(config_of, given)
    for name in names:
        assert re.search(rf"--{name}: got 0(\.0)?, must be above 0", str(refused.value))
    assert len(names) >= 6


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--optim", "sgd_8bit"], "optim 'sgd_8bit': plain SGD keeps no states"),
        (["--optim", "adamm"], "Did you mean 'adamw'"),
        (["--precision", "nf4"], "nf4 keeps the weights in 4 bits"),
        (["--eval-steps", "0"], "--eval-steps: got 0, must be above 0"),
    ],
)
def test_a_full_run_that_cannot_be_is_refused(flags, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train("mtnt_full", tmp_path, *flags)
    assert not (tmp_path / "run").exists()


def test_a_full_run_that_will_not_fit_is_refused_before_weights_are_read(tmp_path, monkeypatch):
    from ft import machine

    train_on = tiny.folder("gemma", tmp_path / "base", max_position_embeddings=4096)
    (train_on / "model.safetensors").write_bytes(b"not read")
    monkeypatch.setattr(machine, "free_memory", lambda: (1000, "this computer"))
    with pytest.raises(
        UserError, match=r"will not fit: [\d,]+ parameters need .* this computer has"
    ):
        train("mtnt_full", tmp_path)


def test_a_template_that_rows_do_not_fit_is_refused_before_a_model_is_looked_for(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('prompt: "{instruktion}\\n"\ncompletion: "{response}"\n')
    module = load(Path(__file__).parents[2] / "recipes" / "dolly_qlora.py")
    given = ["--data", str(dolly(tmp_path)), "--valid-rows", "2", "--test-rows", "2"]
    settings = config.parse(module.Config, [*given, "--template", str(file)])
    with pytest.raises(UserError, match=r"uses the field 'instruktion'.*it has .*instruction"):
        module.rows(settings)


def test_a_run_that_leaves_bad_rows_out_goes_on(tmp_path):
    file = tmp_path / "own.jsonl"
    pairs = [{"source": f"hello {i}", "target": f"salut {i}"} for i in range(30)]
    pairs[3]["target"] = "a<eos>b"  # a control token, of which a row knows only by the tokenizer
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    flags = ["--data", str(file), "--on-bad-row", "skip", "--eval-steps", "1"]
    folder = train("mtnt_lora", tmp_path, *flags)
    (folder / "adapter_model.safetensors").unlink()
    train("mtnt_lora", tmp_path, *flags, "--resume", "last")
    assert (folder / "adapter_model.safetensors").exists()
