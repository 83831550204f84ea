"""What a card says, and what the Hub's own reader and a Markdown renderer make of it."""

import contextlib
import dataclasses
import html
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from support import finished_run, tiny
from support.finished_run import CONFIG, NASTY, RUN, TEMPLATE

from ft.errors import UserError
from ft.generate import answers
from ft.runs.card import card
from ft.text import prompts, tokens
from ft.text.template import Template, to_record


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    return finished_run.write(tmp_path / "run")


def metadata(text: str) -> Any:
    from huggingface_hub import ModelCard

    return ModelCard(text, ignore_metadata_errors=False).data


def test_card_metadata_is_what_the_hub_reads(run_folder: Path) -> None:
    data = metadata(card(run_folder))
    assert data.base_model == "google/gemma-3-270m"
    assert data.library_name == "peft"
    assert data.pipeline_tag == "text-generation"
    assert "translation" in data.tags
    assert data.language == ["en", "fr"]
    assert data.license == "gemma"
    assert data.model_name == "gemma-3-270m-mtnt_lora"
    assert {r.metric_type: (r.metric_value, r.metric_args) for r in data.eval_results} == {
        "loss": (1.75, None),
        "bleu": (21.456, {"signature": "nrefs:1|case:mixed|v:2.6", "low": 20.1, "high": 22.7}),
        "chrf": (42.345, {"signature": "nrefs:1|nc:6|v:2.6", "low": 41.0, "high": 43.6}),
    }
    places = {(r.task_type, r.dataset_name, r.dataset_split) for r in data.eval_results}
    assert places == {("translation", "MTNT test.en-fr.tsv", "test")}
    assert data.datasets is None


INSTRUCTED = RUN | {
    "recipe": "dolly_qlora",
    "template": to_record(prompts.INSTRUCTION["dolly"]),
    "data": {
        "train": {"origin": "data/databricks-dolly-15k.jsonl, without 9", "rows": 9, "sha256": "c"},
        "valid": {"origin": "mine/qa (train) on the Hub", "rows": 3, "sha256": "dd44"},
    },
    "evaluation": {
        "valid": {
            "n": 3,
            "n_likelihood": 5,
            "ask": "### Instruction:\nHow can I make brownies?\n",
            "max_new_tokens": 128,
            "base": {"loss": 2.5, "perplexity": 12.18, "accuracy": 0.4, "stopped": 0.0}
            | {"answer": "I can.", "rouge_l": {"score": 8.33, "low": 4.4, "high": 12.6}},
            "tuned": {"loss": 2.0, "perplexity": 7.389, "accuracy": 0.5, "stopped": 1.0}
            | {"answer": "Mix & bake.", "rouge_l": {"score": 13.2, "low": 5.8, "high": 23.3}},
            "p_value": {"tuned": {"rouge_l": 0.062}},
            "signatures": {"rouge_l": "F1 of the longest common subsequence"},
            "samples": [
                {"prompt": "Who?", "reference": "He.", "base": "Who? Who?", "tuned": "Me."}
            ],
        }
    },
    "training": {"steps": 40, "wall_seconds": 275.1},
}


def test_card_of_a_run_on_instructions(tmp_path: Path) -> None:
    text = card(finished_run.write(tmp_path / "run", INSTRUCTED))
    data = metadata(text)
    assert data.datasets == ["databricks/databricks-dolly-15k", "mine/qa"]
    found = {(r.metric_type, r.metric_name): r.metric_value for r in data.eval_results}
    assert found == {
        ("loss", "loss"): 2.0,
        ("perplexity", "perplexity"): 7.389,
        ("accuracy", "accuracy of the next token"): 0.5,
        ("rouge", "ROUGE-L"): 13.2,
    }
    assert {r.dataset_type for r in data.eval_results} == {"mine/qa"}
    assert {r.dataset_split for r in data.eval_results} == {"valid"}
    plain = text.replace("\\", "")
    for line in (
        "## Scores on the valid split",
        "| ROUGE-L | 8.3 [4.4, 12.6] | 13.2 [5.8, 23.3] | 0.062 |",
        "| share of answers that stopped by themselves | 0.000 | 1.000 |  |",
        "- lines: 3",
        "- examples of the loss: 5",
        "- longest answer in tokens: 128",
        "- rouge l signature: F1 of the longest common subsequence",
        "- asked: ### Instruction:<br>How can I make brownies?",
        "- tuned answers: Mix & bake.",
        "| prompt | reference | base | tuned |",
        "| Who? | He. | Who? Who? | Me. |",
        "- wall seconds: 275.1",
    ):
        assert line in plain, line


def test_the_template_of_a_card_can_be_trained_with_again(run_folder: Path) -> None:
    text = card(finished_run.write(run_folder.parent / "other", INSTRUCTED))
    (written,) = re.findall(r"## Template\n\n```yaml\n(.*?)```", text, re.DOTALL)
    file = run_folder / "dolly.yaml"
    file.write_text(written)
    assert prompts.from_yaml(file) == prompts.INSTRUCTION["dolly"]


def test_card_says_what_the_run_recorded(run_folder: Path) -> None:
    text = card(run_folder).replace("\\", "")
    for fact in (
        "| train | MTNT train.en-fr.tsv | 1,401 | aa11 | 3 |",
        "- normalize punctuation: yes",
        "- LoRA r: 16",
        "- LoRA targets: q_proj, v_proj",
        CONFIG.strip(),
        "| 0 | 3.25 |",
        "| loss | 3.500 | 1.750 |  |",
        "| bleu | 1.5 [1.2, 1.8] | 21.5 [20.1, 22.7] | 0.001 |",
        "| chrf |  | 42.3 [41.0, 43.6] | 0.002 |",
        "- bleu signature: nrefs:1|case:mixed|v:2.6",
        "- train seconds: 812.34",
        "- CPU: Example CPU".lower(),
        RUN["command"],
        "Gemma Terms of Use found at ai.google.dev/gemma/terms",
        "- seed: 17",
    ):
        assert fact.lower() in text.lower()
    assert "salut 9" in text
    assert "salut 10" not in text  # ten samples at most
    assert "gpu" not in text


def test_samples_show_as_written(run_folder: Path) -> None:
    from markdown_it import MarkdownIt

    page = MarkdownIt("commonmark").enable("table").render(card(run_folder).split("---\n", 2)[2])
    cells = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert html.escape(NASTY, quote=False) in [
        re.sub(r"<br ?/?>", "\n", cell).replace("&quot;", '"') for cell in cells
    ]
    assert "<script>" not in page
    assert "http://x.y" not in re.findall(r'href="(.*?)"', page)


@pytest.mark.parametrize(
    ("base", "license_", "words"),
    [
        ("google/gemma-2b-it", "gemma", "Gemma Terms of Use"),
        ("google/recurrentgemma-2b", "gemma", "Gemma Terms of Use"),
        ("google/gemma-4-E2B", "apache-2.0", "Apache License 2.0"),
        ("other/model", None, None),
    ],
)
def test_license_follows_the_base(
    tmp_path: Path, base: str, license_: str | None, words: str | None
) -> None:
    text = card(finished_run.write(tmp_path / "run", {"model": {"base_model": base}}))
    assert metadata(text).license == license_
    assert (words or "License") in text if words else "License" not in text


def test_card_invents_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "my_run"
    folder.mkdir()
    text = card(folder)
    data = metadata(text).to_dict()
    assert data == {"library_name": "peft", "pipeline_tag": "text-generation", "tags": data["tags"]}
    assert re.findall("^#.*", text, re.MULTILINE) == ["# my\\_run", "## What it is"]


def test_local_base_is_not_named_on_the_hub(tmp_path: Path) -> None:
    text = card(finished_run.write(tmp_path / "run", {"model": {"name": str(tmp_path / "base")}}))
    assert metadata(text).base_model is None


def test_broken_run_json_is_named(run_folder: Path) -> None:
    (run_folder / "run.json").write_text('{"recipe": ')
    with pytest.raises(UserError, match=r"run\.json: Expecting value"):
        card(run_folder)


CHAT = Template(
    name="chat",
    prompt="<start_of_turn>user\n{?system}{system}\n\n{/system}{!system}No 'system'. {/system}"
    "{instruction}{?context}\n\n{context}{/context} {{}}<end_of_turn>\n<start_of_turn>model\n",
    completion="{response}",
    stop=("zzzzzz",),
    end="<end_of_turn>",
    tail="\n",
    strip=("instruction",),
)
ROWS = {
    "translation": (TEMPLATE, {"source": "hi 0"}),
    "dolly": (prompts.INSTRUCTION["dolly"], {"instruction": "Wer?\n", "context": " Der 'A' \\n"}),
    "alpaca": (prompts.INSTRUCTION["alpaca"], {"instruction": "Wer?", "context": " "}),
    "chat": (CHAT, {"instruction": " {Wer}? ", "system": "", "context": '"""\n'}),
    "persona": (CHAT, {"instruction": "Who?", "system": "Be brief."}),
}


def real_run(place: Path, asked: Template) -> Path:
    """A run whose model writes no lone bytes: what they read as depends on those around them."""
    from safetensors.torch import load_file, save_file

    folder = finished_run.write_real(place / "run", asked)
    weights = load_file(place / "base" / "model.safetensors")
    weights["model.embed_tokens.weight"][6:262] = 0
    save_file(weights, place / "base" / "model.safetensors", {"format": "pt"})
    return folder


def example(run_folder: Path, row: dict[str, str], most: int, change: str = "") -> dict[str, Any]:
    """What the card's Python, run in the folder, leaves: its variables, and what it printed."""
    record = json.loads((run_folder / "run.json").read_text())
    record["evaluation"]["test"]["samples"] = [row]
    (run_folder / "run.json").write_text(json.dumps(record))
    code = re.findall(r"```python\n(.*?)```", card(run_folder), re.DOTALL)[0]
    code = code.replace("max_new_tokens=256", f"max_new_tokens={most}{change}")
    printed, left = io.StringIO(), {}
    with contextlib.chdir(run_folder), contextlib.redirect_stdout(printed):
        exec(code, left)
    return left | {"printed": printed.getvalue()}


@finished_run.peft_asks_by_an_older_name
@pytest.mark.parametrize("name", ROWS)
def test_example_of_the_card_answers_as_ft_does(tmp_path: Path, name: str) -> None:
    asked, row = ROWS[name]
    run_folder = real_run(tmp_path, asked)
    left = example(run_folder, row, 24)
    assert left["prompt"] == asked.prompt_for(row)
    tokenizer = tiny.tokenizer()
    assert left["inputs"]["input_ids"][0].tolist() == tokens.prompt_ids(asked, row, tokenizer)
    model = finished_run.load(run_folder, tmp_path / "base")
    (answer,) = answers.of_rows(model, tokenizer, asked, [row], max_new_tokens=24)
    assert answer
    assert left["printed"] == f"{answer}\n"


@finished_run.peft_asks_by_an_older_name
def test_example_of_the_card_stops_where_the_template_does(tmp_path: Path) -> None:
    asked, row = ROWS["chat"]
    run_folder = real_run(tmp_path, asked)
    whole = example(run_folder, row, 24)
    middle = whole["answer"][4:8]
    stopping = dataclasses.replace(asked, stop=(middle,))
    (run_folder / "run.json").write_text(
        json.dumps(
            json.loads((run_folder / "run.json").read_text()) | {"template": to_record(stopping)}
        )
    )
    early = example(run_folder, row, 24)
    assert early["printed"].strip() == whole["answer"].partition(middle)[0].strip()
    assert len(early["new_ids"]) < len(whole["new_ids"]) == 24
    # an end token that the model is made to write
    ended = example(run_folder, row, 24, ", sequence_bias=[[[5], 1000.0]]")
    assert ended["new_ids"].tolist() == [tiny.SPECIAL.index("<end_of_turn>")]
    assert ended["printed"] == "\n"


def test_what_was_checked_stands_in_a_line_each(run_folder: Path) -> None:
    seen = [
        {"status": "ok", "name": "tokens", "text": "one BOS in every row"},
        {"status": "WARN", "name": "data", "text": '26 duplicates; column "image" ignored'},
        {"status": "ERROR", "name": "packed", "text": "they differ", "device": "a CPU"}
        | {"measured": "2030-01-02T03:04:05+00:00"},
    ]
    run = json.loads((run_folder / "run.json").read_text())
    (run_folder / "run.json").write_text(json.dumps(run | {"checks": seen}))
    text = card(run_folder)
    _, _, rest = text.partition("## Checks before the first step\n\n")
    assert rest.startswith("- ok tokens: one BOS in every row\n- WARN data: 26 duplicates")
    when = r"(ft check --weights, 2030-01-02 03\:04 UTC)"
    assert f"\n- ERROR packed: they differ {when}\n" in rest
    assert "## Checks" not in card(finished_run.write(run_folder.parent / "other"))


def test_scores_stand_first_and_then_how_it_is_used(run_folder: Path) -> None:
    (run_folder / "loss.png").write_bytes(b"PNG")
    text = card(run_folder)
    heads = re.findall("^## (.*)", text, re.MULTILINE)
    assert heads[:3] == ["What it is", "Scores on the test split", "Use"]
    assert "(10.2 kB), trained with ft" in text
    assert "![loss by optimizer step](loss.png)" in text
    assert "- peak memory: 2.0 GiB" in text


def test_a_card_names_no_folder_of_the_machine(run_folder: Path) -> None:
    record = json.loads((run_folder / "run.json").read_text())
    record["data"]["train"]["origin"] = "pairs, /home/morgane/secret/pairs.tsv"
    record["command"] = "python recipes/mtnt_lora.py --output-dir /home/morgane/runs/one"
    (run_folder / "run.json").write_text(json.dumps(record))
    (run_folder / "config.yaml").write_text(CONFIG + "output_dir: /home/morgane/runs/one\n")
    text = card(run_folder)
    assert "morgane" not in text
    assert "pairs.tsv" in text
    assert "output_dir: one" in text


def test_the_example_is_a_row_of_median_length() -> None:
    from ft.runs.card_example import typical

    texts = ["Sigh", "a b c", "one two three four", "x " * 99, "+1", "this is a usual one"]
    assert typical([{"source": text} for text in texts]) == {"source": "this is a usual one"}
    assert typical([{"source": "Sigh"}]) == {"source": "Sigh"}
