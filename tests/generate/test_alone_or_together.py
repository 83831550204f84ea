"""An answer does not depend on what else was asked at the same time, in bf16 to the last bit."""

import itertools
from pathlib import Path

import pytest
import torch
from support import finished_run, tiny

from ft import __main__ as cli
from ft import machine, models
from ft.generate import answers, growing, samplers
from ft.generate.decoding import Decoder
from ft.runs import opened
from ft.score import translation

PROMPTS = ["Hello.", "idk what ur talking about lol", "tbh the new update is kinda trash"]


def ids(tokenizer) -> list[list[int]]:
    return [[tokenizer.bos_token_id, *tokenizer(p)["input_ids"]] for p in PROMPTS]


def bf16(folder: Path | str):
    return models.load(str(folder), precision="bf16")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough for PyTorch to sum a lone row otherwise than several."""
    sizes = {"hidden_size": 256, "intermediate_size": 2048, "sliding_window": 512}
    folder = tiny.folder("gemma3_text", tmp_path_factory.mktemp("wide") / "model", **sizes)
    return bf16(folder)


def check(base, new: int) -> None:
    prompts = ids(base.tokenizer)
    together = answers.generate(base.model, base.tokenizer, prompts, max_new_tokens=new)
    for prompt, found in zip(prompts, together, strict=True):
        assert answers.generate(base.model, base.tokenizer, [prompt], max_new_tokens=new) == [found]
    streamed = growing.stream(base.model, base.tokenizer, prompts[0], max_new_tokens=new)
    assert "".join(streamed) == together[0][0].text
    drawn = samplers.Sample()
    several = answers.generate(
        base.model, base.tokenizer, prompts[:2], drawn, n=3, max_new_tokens=4
    )
    alone = [
        answers.generate(base.model, base.tokenizer, [p], drawn, n=3, max_new_tokens=4)
        for p in prompts[:2]
    ]
    assert several == list(itertools.chain(*alone))


def test_answers_alone_and_together(base) -> None:
    check(base, 6)


def test_texts_that_leave_and_come_to_be_alone(base) -> None:
    """The logits of one text are the same while others are there, and when it is the last."""
    prompts = ids(base.tokenizer)
    alone, several = (Decoder(base.model, some, 0) for some in (prompts[1:2], prompts))
    at = 1
    for step in range(6):
        assert torch.equal(several.logits[at], alone.logits[0])
        token = alone.logits.argmax(-1)
        if step == 3:
            several.select(torch.tensor([at]))
            at = 0
        several.step(token.expand(len(several.logits)))
        alone.step(token)


@pytest.mark.real
@pytest.mark.skipif(not machine.cpu_bf16(), reason="this processor only emulates bfloat16")
def test_answers_of_the_embedded_model_alone_and_together() -> None:
    check(bf16("embedded"), 10)


@pytest.mark.parametrize(("precision", "most"), [("fp32", 256), ("bf16", 24)])
def test_translate_answers_what_the_run_reported(precision, most, tmp_path, capsys) -> None:
    """One path: the scored translations of several rows, of one, and those of ``ft translate``."""
    run = finished_run.write_real(tmp_path / "run")
    (run / "config.yaml").write_text(
        f"model_name_or_path: {tmp_path / 'base'}\nlanguage_pair: en-fr\n"
    )
    found = opened.load(opened.finished(run), precision)
    rows = [{"source": prompt} for prompt in PROMPTS[:2]]
    options = {"max_new_tokens": most}
    scored = translation.translate(found.model, found.tokenizer, found.template, rows, **options)
    words = ["--precision", precision, "--max-new-tokens", str(most)]
    cli.main(["translate", str(run), rows[1]["source"], *words])
    assert capsys.readouterr().out == scored[1] + "\n"
