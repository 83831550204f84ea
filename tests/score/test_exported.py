"""A GGUF file beside its model: answers, margins and perplexity, by a stand-in and by llama.cpp itself."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from ft import models
from ft.errors import UserError
from ft.models import llama
from ft.runs import export
from ft.score import exported, likelihood
from ft.text import tokens
from ft.text.template import Template

TEMPLATE = Template("toy", "{source}\n", "{target}")
ROWS = [{"source": "abcd a", "target": "ef"}, {"source": "ab é", "target": "cd ab"}]
ROWS += [{"source": text, "target": "ab cd"} for text in ("cd", "gh ef", "a b c d", "hh")]


class Twin:
    """What ``llama.File`` is, by a model of transformers."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer, self.ids = model, tokenizer, list[int]()

    def __enter__(self) -> "Twin":
        return self

    def __exit__(self, *_: object) -> None: ...

    def encode(self, text: str) -> list[int]:
        return [2, *self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def begin(self) -> None:
        self.ids = []

    def read(self, ids: list[int], wanted: Any = (-1,)) -> Any:
        self.ids += ids
        with torch.no_grad():
            found = self.model(torch.tensor([self.ids]), use_cache=False).logits[0].float().numpy()
        return np.stack([found[-len(ids) :][at] for at in wanted])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.model_folder(tmp_path_factory.mktemp("tiny") / "model", "gemma3_text")


@pytest.fixture(scope="module")
def ours(folder: Path) -> Any:
    return models.load(str(folder), precision="fp32")


@pytest.fixture
def compared(ours: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Compare with a stand-in, or with what is asked for."""
    examples = tokens.encode_rows(ROWS, TEMPLATE, ours.tokenizer, max_length=64).examples

    def compare(file: Any, **options: Any) -> exported.Agreement:
        if not isinstance(file, Path):
            monkeypatch.setattr(llama, "File", lambda *_: file)
        return exported.compare(
            file, ours.model, ours.tokenizer, TEMPLATE, examples, max_new_tokens=8, **options
        )

    return compare


def test_a_file_that_computes_the_same_agrees(folder: Path, ours: Any, compared: Any) -> None:
    twin = Twin(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    found = compared(twin)
    assert (found.answers, found.alike, found.share, found.partings) == (6, 6, 1.0, ())
    assert math.isclose(found.perplexity, found.ours, rel_tol=1e-4)
    examples = tokens.encode_rows(ROWS, TEMPLATE, ours.tokenizer, max_length=64).examples
    assert found.ours == likelihood.of_examples(ours.model, examples).perplexity
    assert "greedy answers equal     6 of 6 (100.0%)" in str(found)


def test_a_file_that_does_not_says_where_answers_part(
    folder: Path, ours: Any, compared: Any
) -> None:
    other = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = compared(Twin(other, ours.tokenizer))
    assert 0 < len(found.partings) <= 6
    assert found.share == 1 - len(found.partings) / 6
    assert found.share <= found.common < 1
    assert not math.isclose(found.perplexity, found.ours, rel_tol=1e-2)
    for parting in found.partings:
        assert parting.margin > 0  # ours is greedy: no token is above its own
        assert parting.ours != parting.theirs or parting.after == 0
    assert f"{max(p.margin for p in found.partings):.3f} at most" in str(found)


def test_other_tokens_of_a_prompt_are_counted(folder: Path, ours: Any, compared: Any) -> None:
    twin = Twin(AutoModelForCausalLM.from_pretrained(folder), ours.tokenizer)
    twin.encode = lambda text: [2, 2, *ours.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert compared(twin).alike == 0


def test_the_prompt_is_what_stands_before_the_last_answer() -> None:
    example = {"input_ids": [2, 10, 11, 12, 13, 14, 15], "labels": [-100, -100, 11, -100, -100, 14, 15]}  # fmt: skip
    assert exported.prompt_of(example) == [2, 10, 11, 12, 13]
    assert exported.prompt_of({"input_ids": [2, 3], "labels": [-100, -100]}) == []


def test_no_rows(ours: Any) -> None:
    with pytest.raises(UserError, match="no row to compare answers on"):
        exported.compare(Path("a.gguf"), ours.model, ours.tokenizer, TEMPLATE, [], max_new_tokens=4)


@pytest.mark.skipif(not llama.package(), reason="llama.cpp is not installed")
def test_llama_cpp_itself_agrees(folder: Path, compared: Any, tmp_path: Path) -> None:
    export.write(folder, tmp_path / "tiny.gguf", outtype="f32", name="tiny")
    found = compared(tmp_path / "tiny.gguf")
    assert found.alike == 6
    assert all(parting.margin < 0.02 for parting in found.partings)  # its cache is f16
    assert math.isclose(found.perplexity, found.ours, rel_tol=1e-3)
