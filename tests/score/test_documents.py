"""Bits per byte before and after: by hand, and between the two models."""

import math

import pytest
import torch
from support import tiny

from ft.models import attach_lora, load
from ft.score import documents
from ft.text.documents import TEMPLATE

ROWS = [{"text": "The cat sleeps on the table. " * 3}, {"text": "Bonjour, Paris."}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return load(str(tiny.folder("gemma3_text", tmp_path_factory.mktemp("base"))), precision="fp32")


def test_bits_per_byte_are_those_of_all_tokens(base):
    found = documents.before_after(base.model, base.tokenizer, TEMPLATE, ROWS, max_length=400)
    nats = 0.0
    for row in ROWS:
        ids = [2, *base.tokenizer(row["text"], add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            values = base.model(torch.tensor([ids])).logits.log_softmax(-1)[0, :-1]
        nats -= values.gather(1, torch.tensor(ids[1:])[:, None]).sum().item()
    size = sum(len(row["text"].encode()) for row in ROWS)
    wanted = nats / math.log(2) / size
    score = found.values["tuned"]["bits_per_byte"]
    assert score["score"] == pytest.approx(wanted, rel=1e-4)
    assert score["low"] <= score["score"] <= score["high"]
    assert "base" not in found.values


def test_an_adapter_that_has_learnt_nothing_changes_nothing(base):
    model = attach_lora(base, r=2, alpha=4, dropout=0.0, targets=("auto",), variant="lora")
    found = documents.before_after(model, base.tokenizer, TEMPLATE, ROWS, max_length=9)
    assert found.values["base"] == found.values["tuned"]
    assert found.values["p_value"]["tuned"]["bits_per_byte"] == 1
    assert f"{found.values['base']['bits_per_byte']['score']:.4f} [" in found.table
    for sample in found.values["samples"]:
        assert sample["base"] == sample["tuned"]
