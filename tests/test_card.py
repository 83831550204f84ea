"""What a card says, and what the Hub's own reader and a Markdown renderer make of it."""

import contextlib
import html
import io
import re
from pathlib import Path
from typing import Any

import finished_run
import pytest
import tiny
from finished_run import CONFIG, NASTY, RUN, TEMPLATE

from ft import generate
from ft.card import card
from ft.errors import UserError


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
    found = {r.metric_type: (r.metric_value, r.metric_args["signature"]) for r in data.eval_results}
    assert found == {
        "bleu": (21.46, "nrefs:1|case:mixed|v:2.6"),
        "chrf": (42.34, "nrefs:1|nc:6|v:2.6"),
    }
    assert {r.dataset_name for r in data.eval_results} == {"MTNT test.en-fr.tsv"}


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


@finished_run.peft_asks_by_an_older_name
def test_example_of_the_card_answers_as_ft_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_run = finished_run.write_real(tmp_path / "run")
    code = re.findall(r"```python\n(.*?)```", card(real_run), re.DOTALL)[0]
    monkeypatch.chdir(real_run)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code.replace("=256", "=24"), {})
    model = finished_run.load(real_run, real_run.parent / "base")
    rows = [{"source": "hi 0"}]
    answer = generate.greedy(model, tiny.tokenizer(), TEMPLATE, rows, max_new_tokens=24)
    assert answer[0]
    assert printed.getvalue() == f"{answer[0]}\n"
