"""lm-eval on a run: its own command line's numbers, one BOS everywhere, and tasks that it cannot run."""

import json
import sys

import pytest
import torch
import yaml
from support import finished_run, tiny

from ft import __main__ as cli
from ft.errors import UserError
from ft.runs import opened
from ft.score import benchmarks
from ft.text import prompts

STEPS = {
    "output_type": "generate_until",
    "doc_to_text": "Problem: {{question}}\n\nSolution:\n",
    "doc_to_target": "{{answer}}",
    "generation_kwargs": {"until": ["Problem:"], "do_sample": False, "max_gen_toks": 24},
    "metric_list": [
        {"metric": "chrf"},
        {"metric": "exact_match", "regexes_to_ignore": [",", r"(?s).*ANSWER: "]},
    ],
}
ANSWERS = {
    "output_type": "loglikelihood",
    "doc_to_text": "Problem: {{question}}\n\nSolution:\n",
    "doc_to_target": "{{answer.split('####')[-1].strip()}}",
    "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{question}}",
    "metric_list": [{"metric": "word_perplexity"}],
}


@pytest.fixture(autouse=True)
def _quiet_libraries():
    """lm-eval's and its dependencies' warnings are not ours."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A run whose adapter changes what its base says."""
    place = tmp_path_factory.mktemp("harness")
    finished_run.write_real(place / "run", asked=prompts.INSTRUCTION["steps"])
    settings = {"model_name_or_path": str(place / "base"), "max_length": 512}
    (place / "run" / "config.yaml").write_text(yaml.safe_dump(settings))
    return place


def task(place, name, data, config):
    """A task of lm-eval on a file of questions and answers."""
    values = {"task": name, "dataset_path": "json", "test_split": "test"} | config
    values["dataset_kwargs"] = {"data_files": {"test": str(data)}, "cache_dir": str(place / "hf")}
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return str(file)


def numbers(results):
    return {
        (name, key): value
        for name, values in results.items()
        for key, value in values.items()
        if "," in key and isinstance(value, float)
    }


@pytest.mark.real
def test_numbers_are_those_of_lm_evals_command_line_on_the_merged_model(
    place, shared, tmp_path, capsys, monkeypatch
):
    pytest.importorskip("lm_eval")
    from lm_eval.__main__ import cli_evaluate

    data = shared / "data" / "gsm8k" / "test.jsonl"
    tasks = ",".join(
        task(place, name, data, config)
        for name, config in (("gsm8k_steps", STEPS), ("gsm8k_answers", ANSWERS))
    )
    common = ["--tasks", tasks, "--limit", "4"]
    words = ["eval", str(place / "run"), "--precision", "fp32", "--batch-size", "2", *common]
    cli.main([*words, "--json", str(tmp_path / "ours.json")])
    said = capsys.readouterr().out
    ours = json.loads((tmp_path / "ours.json").read_text())
    cli.main(["merge", str(place / "run"), str(tmp_path / "merged")])
    words = ["lm-eval", "run", "--model", "hf", "--batch_size", "2", "--device", "cpu", *common]
    words += ["--model_args", f"pretrained={tmp_path / 'merged'},dtype=float32"]
    monkeypatch.setattr(sys, "argv", [*words, "--output_path", str(tmp_path / "theirs")])
    cli_evaluate()
    (file,) = (tmp_path / "theirs").rglob("results_*.json")
    theirs = numbers(json.loads(file.read_text())["results"])
    assert len(theirs) >= 4
    assert numbers(ours["tuned"]) == pytest.approx(theirs, rel=1e-4)
    assert ours["base"]["gsm8k_answers"] != ours["tuned"]["gsm8k_answers"]
    assert ours["base"]["gsm8k_steps"]["chrf,none"] != ours["tuned"]["gsm8k_steps"]["chrf,none"]
    for name in ("base", "tuned"):
        assert f"{ours[name]['gsm8k_answers']['perplexity,none']:.4f}" in said


@pytest.mark.parametrize("begins", ["", "<bos>"])
def test_the_model_reads_one_bos_in_front_of_everything(begins, place, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [{"question": f"{begins}{'cat ' * n}".strip(), "answer": "4"} for n in (3, 300)]
    rows[0]["question"] = rows[0]["question"].removeprefix("<bos>")  # a batch of both kinds
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plain = {"doc_to_text": "{{question}}"}
    chosen = [
        task(tmp_path, "steps", data, STEPS | plain),
        task(tmp_path, "answers", data, ANSWERS | plain),
        task(tmp_path, "rolling", data, ROLLING),
    ]
    tokenizer, model, read = tiny.tokenizer(), tiny.build("gemma3_text"), []

    def look(_, inputs, options):
        ids = options.get("input_ids", inputs[0] if inputs else None)
        if ids.shape[1] > 1:  # not the steps of generation
            read.extend(row[row != tokenizer.pad_token_id].tolist() for row in ids)

    model.register_forward_pre_hook(look, with_kwargs=True)
    found = benchmarks.evaluate(model, tokenizer, benchmarks.tasks_of(chosen), batch_size=2)
    assert len(read) > 6  # the longest text is read in windows
    assert all(ids[0] == 2 for ids in read)
    assert {ids.count(2) for ids in read} == {1}
    lengths = [len(ids) for ids in read]
    assert max(lengths) <= 512
    # word perplexity of the text alone, computed plainly
    total = 0.0
    for row in rows:
        ids = tokenizer(row["question"].removeprefix("<bos>"), add_special_tokens=False).input_ids
        for start in range(0, len(ids), 511):
            piece = ids[start : start + 511]
            before = [2, *ids[max(0, start + len(piece) - 512) : start]]
            with torch.no_grad():
                logits = model(torch.tensor([before + piece])).logits[0].log_softmax(-1)
            at = torch.arange(len(piece)) + len(before) - 1
            total += float(logits[at, torch.tensor(piece)].sum())
    words = sum(len(row["question"].split()) for row in rows)
    wanted = torch.tensor(-total / words).exp().item()
    assert found["results"]["rolling"]["word_perplexity,none"] == pytest.approx(wanted, rel=1e-3)


def test_without_lm_eval_it_says_how_to_install_it(place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["eval", str(place / "run"), "--tasks", "gsm8k"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "--tasks needs lm-eval" in said
    assert '".[lm-eval]"' in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gsm8kk", "task 'gsm8kk': lm-eval has no such task.* Did you mean 'gsm8k'"),
        ("no_such.yaml", r"task no_such\.yaml: there is no such file"),
    ],
)
def test_a_task_that_lm_eval_does_not_know_is_named(name, said):
    pytest.importorskip("lm_eval")
    with pytest.raises(UserError, match=said):
        benchmarks.tasks_of([name])


def test_a_task_without_its_data_is_named(tmp_path):
    pytest.importorskip("lm_eval")
    file = task(tmp_path, "absent", tmp_path / "absent.jsonl", ANSWERS)
    with pytest.raises(UserError, match=r"absent\.yaml cannot be loaded: .*absent\.jsonl"):
        benchmarks.tasks_of([file])
    with pytest.raises(UserError, match="names no task"):
        benchmarks.tasks_of([])


def test_a_group_is_one_line_and_its_tasks_are_hidden():
    values = {"acc,none": 0.25, "acc_stderr,none": 0.1, "alias": "x"}
    both = {"all": values, "part": values, "alone": {"f1,strict": 0.5, "f1_stderr,strict": "N/A"}}
    result = {
        "base": both,
        "tuned": both,
        "shown": ["all", "alone"],
        "n-shot": {"alone": 5},
        "higher_is_better": {"all": {"acc": True}, "alone": {}},
    }
    lines = benchmarks.table(result).splitlines()
    assert [line.split()[0] for line in lines[2:4]] == ["all", "alone"]
    assert lines[2].split()[1:] == ["acc", "↑"] + 2 * ["0.2500", "±", "0.1000"]
    assert lines[3].split()[1:] == ["f1,", "strict", "5", "0.5000", "0.5000"]
    assert len(lines) == 5


def test_a_runs_base_and_tuned_model_are_compared(place, monkeypatch):
    asked = []

    def evaluate(model, tokenizer, tasks, **options):
        ids = torch.tensor([[2, 30, 40]])
        with torch.no_grad():
            asked.append(model(ids).logits)
        found = {"acc,none": 0.5}
        keys = ("n-shot", "versions", "n-samples", "higher_is_better")
        groups = {"group_subtasks": {"all": ["part"], "part": []}}
        return {"results": {"all": found, "part": found}} | groups | dict.fromkeys(keys, {})

    monkeypatch.setattr(benchmarks, "evaluate", evaluate)
    result = benchmarks.compare(
        opened.finished(place / "run"), [], precision="fp32", limit=3
    ).values
    assert result["shown"] == ["all"]
    assert result["limit"] == 3
    assert not torch.equal(*asked)
