"""`ft score`: what it says of a text is what the model says, in a terminal, a pipe and a file."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import finished_run, tiny

from ft.cli import console, score
from ft.errors import UserError
from ft.score import texts

TEXTS = ["le chat dort", "Hello, my name is Morgane.", "é", "table " * 20]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.folder("gemma3_text", tmp_path_factory.mktemp("score") / "base"))


def run(name: str, *, capsys: Any, **options: Any) -> str:
    given = {"text": [], "file": None, "prompt": "", "top": 0, "base": False, "precision": "fp32"}
    score.command(name, **{**given, **options})
    return capsys.readouterr().out


def logprobs(model: Any, text: str, prompt: str = "") -> torch.Tensor:
    """By transformers alone."""
    tokenizer = tiny.tokenizer()
    before = [2, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids = torch.tensor([before + tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        found = model(ids).logits[0, :-1].log_softmax(-1)
    return found.gather(1, ids[0, 1:, None]).squeeze(1)[len(before) - 1 :]


@pytest.mark.parametrize("prompt", ["", "Translate this into French:\n"])
def test_a_batch_of_texts_scores_as_each_does_by_transformers(
    prompt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "BATCH", 40)  # two of the texts together, the longest alone
    model = tiny.build("gemma3_text")
    rows = [(prompt, text) for text in TEXTS]
    for text, found in zip(TEXTS, texts.score_texts(model, tiny.tokenizer(), rows), strict=True):
        expected = logprobs(model, text, prompt)
        torch.testing.assert_close(torch.tensor(found.logprobs), expected, rtol=1e-5, atol=1e-5)
        assert found.text == text
        mean = expected.mean().item()
        assert found.perplexity == pytest.approx(math.exp(-mean), rel=1e-4)
        bits = -expected.sum().item() / math.log(2)
        assert found.bits_per_byte == pytest.approx(bits / len(text.encode()), rel=1e-4)


def test_the_likeliest_tokens_stand_where_the_text_has_its_own() -> None:
    model, tokenizer = tiny.build("gemma3_text"), tiny.tokenizer()
    (found,) = texts.score_texts(model, tokenizer, [("", "le chat")], top=3)
    ids = torch.tensor([[2, *found.ids]])
    with torch.no_grad():
        expected = model(ids).logits[0, :-1].log_softmax(-1).topk(3)
    assert len(found.likeliest) == len(found.ids)
    for at, (values, which) in enumerate(zip(*expected, strict=True)):
        assert [p for _, p in found.likeliest[at]] == pytest.approx(values.tolist(), abs=1e-5)
        assert [t for t, _ in found.likeliest[at]] == list(texts.pieces(tokenizer, which.tolist()))


def test_parts_of_a_character_have_their_names() -> None:
    tokenizer = tiny.tokenizer()
    ids = tokenizer("☃a\n", add_special_tokens=False)["input_ids"]
    assert texts.pieces(tokenizer, ids) == ("<0xE2>", "<0x98>", "<0x83>", "a", "\n")


def test_a_pipe_gets_a_plain_table(base: str, capsys: Any) -> None:
    out = run(base, text=["le chat", "a"], top=2, capsys=capsys)
    assert "\x1b" not in out
    lines = [line.split() for line in out.splitlines()]
    assert sum(line[:3] == ["log", "p", "id"] for line in lines) == 2
    ids = tiny.tokenizer()("le chat", add_special_tokens=False)["input_ids"]
    assert [line[1] for line in lines[1 : 1 + len(ids)]] == list(map(str, ids))
    assert "tokens 1, bytes 1: log p " in out
    assert out.count("bits per byte") == 2


def test_a_terminal_gets_colours(base: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    colours = Console(file=stream, force_terminal=True, color_system="truecolor", width=80)
    monkeypatch.setattr(console, "standard_output", lambda: colours)
    run(base, text=["le chat\ndort"], capsys=capsys)
    out = stream.getvalue()
    assert "\x1b[" in out
    assert "↵" in out
    assert "≥ 0.5" in out
    assert "log p " in out
    assert "perplexity" in out


@pytest.mark.parametrize(
    ("probability", "style"), [(1, 0), (0.5, 0), (0.49, 1), (0.05, 2), (0.002, 3), (0, 4)]
)
def test_the_shade_of_a_probability(probability: float, style: int) -> None:
    logprob = math.log(probability) if probability else -math.inf
    assert score.shade(logprob) == score.SHADES[style][1]


def test_a_file_of_lines_gives_json_lines(base: str, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("le chat\nÉté\n", encoding="utf-8")
    found = [
        json.loads(line) for line in run(base, file=tmp_path / "in.txt", capsys=capsys).splitlines()
    ]
    assert [row["text"] for row in found] == ["le chat", "Été"]
    model = tiny.build("gemma3_text")
    for row in found:
        expected = logprobs(model, row["text"])
        assert row["logprobs"] == pytest.approx(expected.tolist(), abs=1e-4)
        assert row["logprob"] == pytest.approx(expected.sum().item(), abs=1e-4)
        assert len(row["tokens"]) == len(row["ids"]) == len(expected)
        assert set(row) == {
            *("text", "perplexity", "bits_per_byte", "logprob", "tokens", "ids", "logprobs")
        }


def test_a_jsonl_file_brings_its_prompts(base: str, capsys: Any, tmp_path: Path) -> None:
    rows = [{"text": "chat", "prompt": "le "}, {"text": "chat"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    out = run(base, file=tmp_path / "in.jsonl", prompt="a ", top=1, capsys=capsys)
    first, second = map(json.loads, out.splitlines())
    assert (first["prompt"], second["prompt"]) == ("le ", "a ")
    assert first["ids"] == second["ids"]
    assert first["logprobs"] != second["logprobs"]
    assert all(len(place) == 1 for place in first["likeliest"])


def test_a_run_scores_with_its_adapter_or_its_base(tmp_path: Path, capsys: Any) -> None:
    folder = finished_run.write_real(tmp_path / "run")
    (folder / "config.yaml").write_text(f"model_name_or_path: {tmp_path / 'base'}\n")
    tuned = run(str(folder), text=["le chat"], capsys=capsys)
    plain = run(str(folder), text=["le chat"], base=True, capsys=capsys)
    assert plain == run(str(tmp_path / "base"), text=["le chat"], capsys=capsys)
    assert tuned != plain


def test_perplexity_beyond_a_float_is_infinite() -> None:
    scored = texts.Scored("a", (1,), ("a",), (-800.0,), ((),))
    assert scored.perplexity == math.inf


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty: there is nothing to score"),
        ("a\n\nb", "line 2 is empty"),
    ],
)
def test_a_file_with_nothing_to_score(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text(content)
    with pytest.raises(UserError, match=words):
        score.read(tmp_path / "in.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "line 1: not JSON"),
        ('{"text": "a"}\n[]', "line 2: expected an object with a string `text`"),
        ('{"text": 3}', "line 1: expected an object"),
        ('{"text": "a", "prompt": 3}', "`prompt` must be a string"),
        ('{"text": ""}', "line 1 is empty"),
    ],
)
def test_a_malformed_jsonl_line(content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(UserError, match=words):
        score.read(tmp_path / "in.jsonl")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give texts with --text, or a file"),
        ({"text": ["a"], "file": Path("b")}, "give texts with --text, or a file"),
        ({"file": Path("/no/such.txt")}, "/no/such.txt"),
        ({"text": ["a"], "top": -1}, "--top -1"),
        ({"text": ["a", ""]}, "text 2 is empty"),
        ({"text": ["a", "b " * 400]}, r"text 2 has \d+ tokens with its prompt, .*context of 512"),
        ({"text": ["a"], "base": True}, "is a model, not a run"),
    ],
)
def test_a_mistake_is_named(options: dict[str, Any], words: str, base: str, capsys: Any) -> None:
    with pytest.raises(UserError, match=words):
        run(base, **options, capsys=capsys)


def test_without_a_bos_a_prompt_is_needed() -> None:
    model, tokenizer = tiny.build("gemma"), tiny.tokenizer()
    tokenizer.bos_token = None
    with pytest.raises(UserError, match="give a --prompt"):
        texts.score_texts(model, tokenizer, [("", "le chat")])
    (found,) = texts.score_texts(model, tokenizer, [("a", "le chat")])
    assert len(found.logprobs) == len(found.ids)
