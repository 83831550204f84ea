"""The recipes that learn from chrF, on a tiny model: what they write, how they go on, and what stops them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support import learner
from support.recipe_runs import RECIPES, load

from ft import __main__ as cli
from ft import config
from ft.errors import UserError
from ft.files import sha256, write_json
from ft.rewards import policy
from ft.runs import opened
from ft.runs.folder import read
from ft.text import prompts
from ft.text.template import to_record

BY_NAME = {path.stem: path for path in RECIPES}
FEW = ["--eval-limit", "4", "--valid-rows", "2", "--max-new-tokens", "16", "--watch-rows", "3"]
FEW += ["--precision", "fp32", "--max-kl", "50", "--max-drift", "50", "--min-distinct", "0"]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    return learner.finished(tmp_path_factory.mktemp("start") / "run")


def go(stem, start, out, *flags):
    module = load(BY_NAME[stem])
    words = ["--run", str(start), "--output-dir", str(out), *FEW, *flags]
    module.main(config.parse(module.Config, words))
    return opened.finished(out)


REJECT = ["--prompts", "4", "--n", "3", "--rounds", "2", "--per-device-train-batch-size", "2"]
DPO = ["--prompts", "6", "--n", "3", "--margin", "0", "--watch-steps", "2"]
DPO += ["--per-device-train-batch-size", "2", "--max-steps", "2"]
GRPO = ["--prompts", "2", "--n", "2", "--per-device-train-batch-size", "4", "--max-steps", "2"]


def test_answers_of_a_step_that_no_batch_divides_are_refused_before_anything_is_loaded():
    said = "per_device_train_batch_size: got 16, must divide the 4 answers of a step"
    with pytest.raises(UserError, match=said):
        config.parse(load(BY_NAME["mtnt_grpo"]).Config, ["--prompts", "2", "--n", "2"])


@pytest.fixture(scope="module")
def rejected(start, tmp_path_factory):
    return go("mtnt_reject", start, tmp_path_factory.mktemp("reject") / "out", *REJECT)


def changed(found, start):
    before = load_file(start / "adapter_model.safetensors")
    after = load_file(found.folder / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    return any(not torch.equal(before[key], after[key]) for key in before)


def test_rejection_keeps_each_round(rejected, start, capsys):
    assert changed(rejected, start)
    rounds = rejected.record["rounds"]
    assert [r["number"] for r in rounds] == [1, 2]
    assert all(r["answers"] == 12 and r["best"] >= r["reward"] for r in rounds)
    report = (rejected.folder / "report.md").read_text()
    assert "| number | prompts |" in report
    assert report.count("\n| ") == 4  # head, rule, two rounds
    lines = (rejected.folder / "rounds/1/answers.jsonl").read_text().splitlines()
    row = json.loads(lines[0])
    assert len(row["answers"]) == len(row["rewards"]) == 3
    assert row.keys() >= {"source", "target"}
    found = rejected.record["evaluation"]["valid"]
    assert found["n"] == 4
    assert {"low", "high", "score"} <= found["tuned"]["chrf"].keys()
    assert "chrf" in found["p_value"]["tuned"]
    opened.finished(rejected.folder / "rounds/2")  # a run of its own


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_a_stopped_rejection_goes_on_to_the_same_model(rejected, start, tmp_path):
    one = [
        word if word != "2" or REJECT[i - 1] != "--rounds" else "1" for i, word in enumerate(REJECT)
    ]
    go("mtnt_reject", start, tmp_path / "out", *one)
    two = go("mtnt_reject", start, tmp_path / "out", *REJECT, "--resume-from-checkpoint", "last")
    assert [r["number"] for r in two.record["rounds"]] == [1, 2]
    for name, value in load_file(two.folder / "adapter_model.safetensors").items():
        assert torch.equal(value, load_file(rejected.folder / "adapter_model.safetensors")[name])
    with pytest.raises(UserError, match="were made with something else:\n  n: 3 -> 4|n: 3 "):
        go(
            "mtnt_reject",
            start,
            tmp_path / "out",
            *REJECT,
            "--n",
            "4",
            "--resume-from-checkpoint",
            "last",
        )


def test_a_cutoff_that_keeps_nothing_says_the_best_reward(start, tmp_path):
    with pytest.raises(
        UserError,
        match=r"of 12 answers .* no whole one reaches 1.5.*best reward seen is 0\.\d+; lower --cutoff",
    ):
        go("mtnt_reject", start, tmp_path / "out", *REJECT, "--cutoff", "1.5")


def test_a_guard_stops_a_run_gone_bad(start, tmp_path):
    flags = [*REJECT, "--learning-rate", "1", "--max-kl", "0.01"]
    with pytest.raises(
        UserError, match="stopped in round 1, as the model has gone bad: KL to the start"
    ):
        go("mtnt_reject", start, tmp_path / "out", *flags)
    assert not (tmp_path / "out" / "adapter_model.safetensors").exists()


@learner.needs_trl
def test_dpo_learns_from_its_own_pairs_and_from_a_file_of_them(start, tmp_path):
    found = go("mtnt_dpo", start, tmp_path / "own", *DPO)
    assert changed(found, start)
    assert found.record["training"]["steps"] == 2
    rows = [json.loads(line) for line in (found.folder / "pairs.jsonl").read_text().splitlines()]
    assert all(row["chosen_reward"] > row["rejected_reward"] for row in rows)
    assert found.record["evaluation"]["valid"]["n"] == 4
    given = go(
        "mtnt_dpo", start, tmp_path / "given", *DPO, "--pairs", str(found.folder / "pairs.jsonl")
    )
    assert given.record["pairs"]["rows"] == len(rows)
    assert not (given.folder / "pairs.jsonl").exists()


@learner.needs_trl
def test_grpo_learns_from_chrf(start, tmp_path, capsys):
    found = go("mtnt_grpo", start, tmp_path / "out", *GRPO)
    assert changed(found, start)
    assert found.record["training"]["steps"] == 2
    said = capsys.readouterr().out
    assert "start: chrF " in said
    assert "STEP 2: KL " in said
    assert "valid, 4 lines" in said
    lines = [line for line in (found.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("reward" in json.loads(line) for line in lines)


@pytest.mark.parametrize("stem", ["mtnt_reject", "mtnt_dpo", "mtnt_grpo"])
def test_check_needs_no_model(stem, start, tmp_path, capsys):
    out = str(tmp_path / "out")
    cli.main(["check", str(BY_NAME[stem]), "--run", str(start), "--output-dir", out])
    said = capsys.readouterr().out
    for name in ("model", "template", "tokens", "data", "output", "rewards"):
        assert f"\nok    {name} " in said
    assert "ERROR" not in said
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", str(BY_NAME[stem]), "--run", str(tmp_path / "none")])
    assert stopped.value.code == 2


def test_pairs_that_prefer_nothing(start, tmp_path):
    file = tmp_path / "pairs.jsonl"
    row = {"source": "a", "chosen": "b", "rejected": "c"}
    file.write_text(json.dumps(row) + "\n" + json.dumps(row | {"rejected": " b"}) + "\n")
    with pytest.raises(
        UserError, match="(?s)1 bad row in .*pairs.jsonl:.*2: chosen equals rejected, 'b'"
    ):
        go("mtnt_dpo", start, tmp_path / "out", "--pairs", str(file))


def test_a_run_of_all_parameters_is_no_start(start, tmp_path, capsys):
    shutil.copytree(start.parent / "base", tmp_path / "whole")
    record = {key: value for key, value in read(start).items() if key != "lora"}
    write_json(tmp_path / "whole" / "run.json", record)
    (tmp_path / "whole" / "config.yaml").write_text((start / "config.yaml").read_text())
    whole = opened.Finished(tmp_path / "whole", {}, {}, opened.finished(start).template)
    with pytest.raises(UserError, match="trained all parameters"):
        policy.load(whole)
    with pytest.raises(UserError, match="trained all parameters"):  # before anything is loaded
        go("mtnt_dpo", tmp_path / "whole", tmp_path / "out")
    for verb in ("check", "plan"):
        with pytest.raises(SystemExit) as stopped:
            cli.main([verb, str(BY_NAME["mtnt_dpo"]), "--run", str(tmp_path / "whole")])
        assert stopped.value.code == 2
        assert "trained all parameters" in capsys.readouterr().err


@pytest.fixture(scope="module")
def instructed(tmp_path_factory):
    """A run of instructions, and prompts without references."""
    place = tmp_path_factory.mktemp("instructed")
    folder = learner.finished(place / "run")
    template = to_record(prompts.INSTRUCTION["plain"]) | {"stop": learner.STOP}
    record = read(folder) | {"task": "instructions", "recipe": "dolly_qlora", "template": template}
    write_json(folder / "run.json", record)
    rows = [{"prompt": f"Say {i}.", "wanted": "abcdefghijklm"} for i in range(12)]
    (place / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "mine.py").write_text(
        "def early(completions, wanted):\n"
        "    return [sum(a in w for a in t) / (1 + len(t)) + len(t) / 1e4 for t, w in zip(completions, wanted)]\n"
    )
    return folder


@learner.needs_trl
@pytest.mark.parametrize("stem", ["mtnt_grpo", "mtnt_reject"])
def test_a_reward_of_ones_own_on_prompts_of_ones_own(stem, instructed, tmp_path):
    place, options = instructed.parent, {"mtnt_grpo": GRPO, "mtnt_reject": REJECT}[stem]
    own = ["--data", str(place / "prompts.jsonl"), "--reward", f"{place / 'mine.py'}:early"]
    found = go(stem, instructed, tmp_path / "out", *options, *own, "--eval-limit", "200")
    assert changed(found, instructed)
    assert found.task == "instructions"
    assert found.record["reward"]["sha256"] == sha256(place / "mine.py")
    values = found.record["evaluation"]["valid"]
    assert values["n"] == 4  # a third of few
    assert {"low", "high", "score"} <= values["tuned"]["reward"].keys()
    assert "loss" not in values["tuned"]


@learner.needs_trl
def test_a_reward_model_of_instructions_names_a_command_that_takes_it(instructed, tmp_path, capsys):
    rows = [{"prompt": f"Say {i}.", "chosen": "ab", "rejected": "ba"} for i in range(8)]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "reward"
    cli.main(
        ["reward", str(file), "--run", str(instructed), "--out", str(out), "--batch-size", "4"]
    )
    said = capsys.readouterr().out
    assert f"recipes/mtnt_grpo.py --run {instructed} --reward {out}" in said
