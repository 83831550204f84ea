"""The figure of the samplers: what its numbers say of a known distribution, and that it is drawn."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

from ft.cli import samplers
from ft.errors import UserError
from ft.generate.samplers import Sample, TopK

IDS = [2, 30, 40, 50]


@pytest.fixture
def peaked() -> Any:
    """A model whose next token is one of three: at 60%, 30% and 10%."""
    model = tiny.build("gemma3_text")
    logits = torch.full((1, tiny.VOCABULARY), -1e4)
    logits[0, [70, 80, 90]] = torch.tensor([0.6, 0.3, 0.1]).log()
    model.get_output_embeddings().register_forward_hook(lambda *_: logits)
    return model


def test_what_each_sampler_keeps(peaked: Any) -> None:
    chosen = samplers.named(k=2, p=0.5, min_p=0.4, temperatures=[0.5])
    found = {kept.name: kept for kept in samplers.compare(peaked, IDS, chosen)}
    assert list(found) == [
        "greedy",
        "top-k 2",
        "top-p 0.5",
        "min-p 0.4",
        "temperature 0.5",
        "random",
    ]
    assert {name: kept.tokens for name, kept in found.items()} == {
        "greedy": 1,
        "top-k 2": 2,
        "top-p 0.5": 1,
        "min-p 0.4": 2,
        "temperature 0.5": 3,
        "random": 3,
    }
    assert found["top-k 2"].share == pytest.approx(0.9)
    assert found["greedy"].share == pytest.approx(0.6)
    assert found["greedy"].choices == pytest.approx(1)
    assert found["random"].choices == pytest.approx(2.4549, abs=1e-3)  # exp of 0.898 nats
    assert found["random"].ids[:3] == (70, 80, 90)
    assert found["top-k 2"].drawn[:3] == pytest.approx((2 / 3, 1 / 3, 0))
    assert found["temperature 0.5"].drawn[:2] == pytest.approx((0.36 / 0.46, 0.09 / 0.46))
    for kept in found.values():
        assert kept.model[:3] == pytest.approx((0.6, 0.3, 0.1))


def test_the_command_draws_and_writes_and_says(tmp_path: Path, capsys: Any) -> None:
    base = tiny.folder("gemma3_text", tmp_path / "base")
    out = tmp_path / "figure.png"
    options = {"k": 5, "p": 0.9, "min_p": 0.1, "temperatures": [0.5, 1.5], "max_new_tokens": 4}
    options |= {"seed": 3, "out": out, "precision": "fp32"}
    samplers.command("$ 2 ↵ ☃ 中\n", str(base), **options)
    assert out.read_bytes().startswith(b"\x89PNG")
    from matplotlib import image

    height, width, _ = image.imread(out).shape
    assert height > 800
    assert width > 800
    said = capsys.readouterr().out
    for name in ("greedy", "top-k 5", "top-p 0.9", "min-p 0.1", "temperature 1.5", "random"):
        assert sum(line.strip().startswith(name) for line in said.splitlines()) == 2
    assert "\x1b" not in said
    samplers.command("$ 2 ↵ ☃ 中\n", str(base), **options)
    assert capsys.readouterr().out == said


def test_the_picture_needs_only_one_sampler(tmp_path: Path) -> None:
    found = samplers.compare(tiny.build("gemma3_text"), IDS, {"random": Sample()})
    samplers.picture(tmp_path / "one.png", "a" * 200, found, ["x"] * len(found[0].ids))
    assert (tmp_path / "one.png").stat().st_size > 1000


def test_a_vocabulary_smaller_than_the_picture() -> None:
    model = tiny.build("gemma3_text", vocab_size=10)
    (kept,) = samplers.compare(model, [2, 3], {"top-k 99": TopK(99)})
    assert len(kept.ids) == kept.tokens == 10
    assert kept.share == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prompt": " "}, "the prompt is empty"),
        ({"k": 0}, "k = 0"),
        ({"p": 1.5}, "p = 1.5"),
        ({"min_p": 0.0}, "p = 0.0"),
        ({"temperatures": [-1.0]}, "temperature = -1"),
        ({"max_new_tokens": 0}, "--max-new-tokens 0"),
        ({"out": Path("no/such/folder/x.png")}, "there is no folder no/such/folder"),
    ],
)
def test_a_mistake_is_named_before_a_model_is_loaded(options: dict[str, Any], words: str) -> None:
    given = {"prompt": "a", "model": "/no/model", "k": 5, "p": 0.9, "min_p": 0.1, "seed": 0}
    given |= {"temperatures": [1.0], "max_new_tokens": 1, "out": Path("x.png"), "precision": "fp32"}
    with pytest.raises(UserError, match=words):
        samplers.command(**{**given, **options})


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path) -> None:
    base = tiny.folder("gemma3_text", tmp_path / "base", max_position_embeddings=8)
    given = {"k": 5, "p": 0.9, "min_p": 0.1, "temperatures": [1.0], "max_new_tokens": 1, "seed": 0}
    with pytest.raises(UserError, match="context of 8"):
        samplers.command("table " * 9, str(base), **given, out=tmp_path / "x.png", precision="fp32")
    assert not (tmp_path / "x.png").exists()
