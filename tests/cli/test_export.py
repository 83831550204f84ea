"""`ft export`: a run is merged and written, a model is written, a mistake is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny, tiny_gguf

from ft import __main__ as cli
from ft import models
from ft.cli import export
from ft.data.rows import Rows
from ft.errors import UserError
from ft.files import write_json, write_text
from ft.models import llama, lora
from ft.runs import export as gguf_file
from ft.runs import merge, opened
from ft.score import exported, splits
from ft.score.exported import Agreement, Parting
from ft.text import template

pytest.importorskip("gguf")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run's folder whose adapter does something; its base lies beside it."""
    base = tiny_gguf.model_folder(tmp_path / "base", "gemma3_text")
    model = lora.attach(models.load(str(base), precision="fp32"), r=4, alpha=8)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    folder = tmp_path / "run"
    model.save_pretrained(folder)
    asked = template.Template("toy", "{source}\n", "{target}", stop=("\n", "a b"))
    record = {"recipe": "toy", "model": {"name": str(base)}, "template": template.to_record(asked)}
    write_json(folder / "run.json", record)
    write_text(folder / "config.yaml", f"model_name_or_path: {base}\n")
    return folder


def test_a_run_becomes_its_merged_model(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["export", str(run_folder), str(tmp_path / "out.gguf"), "--outtype", "f32"])
    merge.merge_run(opened.finished(run_folder), tmp_path / "merged")
    gguf_file.write(tmp_path / "merged", tmp_path / "wanted.gguf", outtype="f32", name="run")
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "wanted.gguf").read_bytes()
    gguf_file.write(tmp_path / "base", tmp_path / "base.gguf", outtype="f32", name="run")
    assert (tmp_path / "out.gguf").read_bytes() != (tmp_path / "base.gguf").read_bytes()
    said = capsys.readouterr().out
    assert "merged: compared on " in said
    assert r"no room for stop strings; give your program these: '\n', 'a b'" in said
    assert f"{tmp_path / 'out.gguf'}: 80 tensors, f32, " in said
    assert {path.name for path in tmp_path.iterdir()} == {
        *("base", "run", "merged", "out.gguf", "out.Modelfile", "wanted.gguf", "base.gguf")
    }
    assert f"ollama create out -f {tmp_path / 'out.Modelfile'}" in said
    assert (tmp_path / "out.Modelfile").read_text().splitlines() == [
        "FROM ./out.gguf",
        'TEMPLATE """{{ .Prompt }}',
        '{{ .Response }}"""',
        r'PARAMETER stop "\n"',
        'PARAMETER stop "a b"',
        'PARAMETER stop "<eos>"',
        "PARAMETER temperature 0",
    ]


def test_a_run_that_trained_everything_takes_its_pieces_from_the_base(
    run_folder: Path, tmp_path: Path
) -> None:
    for file in run_folder.glob("adapter*"):
        file.unlink()
    tiny_gguf.model_folder(run_folder, "gemma3_text")
    (run_folder / "tokenizer.model").unlink()
    export.command(str(run_folder), tmp_path / "out.gguf", "f16")
    meta, _ = tiny_gguf.read(tmp_path / "out.gguf")
    assert meta["tokenizer.ggml.tokens"][: len(tiny_gguf.TOKENS)] == tiny_gguf.TOKENS


def test_a_model_is_written_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_gguf.model_folder(tmp_path / "gemma-tiny", "gemma2")
    export.command(str(folder), tmp_path / "out.gguf", "q8_0")
    meta, tensors = tiny_gguf.read(tmp_path / "out.gguf")
    assert meta["general.name"] == "Gemma Tiny"
    assert f"{len(tensors)} tensors, q8_0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "out", "outtype", "said"),
    [
        ("run", "taken.gguf", "f16", "taken.gguf exists: name another file"),
        ("run", "out.gguf", "q3_k", "outtype 'q3_k': allowed are f16, bf16, f32, q8_0"),
        ("recurrent", "out.gguf", "f16", "is a recurrent_gemma model; ft writes GGUF for"),
        ("nowhere", "out.gguf", "f16", "nowhere' is neither a folder here, nor"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    name: str,
    out: str,
    outtype: str,
    said: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken.gguf").write_text("mine")
    if name == "recurrent":
        tiny.folder("recurrent_gemma", Path(name))
    before = set(tmp_path.iterdir())
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", name, out, "--outtype", outtype])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before
    assert Path("taken.gguf").read_text() == "mine"


# The file beside its model


@pytest.fixture
def verified(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows for the run and a llama.cpp that agrees in half of them; what was compared."""
    settings = f"model_name_or_path: {run_folder.parent / 'base'}\nmax_length: 64\n"
    write_text(run_folder / "config.yaml", settings)
    rows = Rows([{"source": text, "target": "ab"} for text in ("cd", "ef", "gh")], "toy rows", "")
    asked: dict[str, Any] = {}
    parting = Parting("cd", "a", "b", 0, 4, 0.5)

    def compare(file: Path, model: Any, *_: Any, **__: Any) -> Agreement:
        asked.update(file=file, size=len(_[-1]), model=model)
        return Agreement(2, 2, 8, (parting,), asked.get("perplexity", 3.0), 2.5)

    monkeypatch.setattr(
        splits, "rows_of", lambda run, data, split: asked.update(split=split) or rows
    )
    monkeypatch.setattr(exported, "compare", compare)
    monkeypatch.setattr(llama, "package", lambda: "llama_cpp")
    return asked


def test_verify_compares_the_file_with_the_merged_model(
    verified: dict[str, Any], run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.gguf"
    cli.main(["export", str(run_folder), str(out), "--verify", "2", "--min-equal", "0.5"])
    said = capsys.readouterr().out
    assert (verified["file"], verified["size"], verified["split"]) == (out, 2, "valid")
    merge.merge_run(opened.finished(run_folder), tmp_path / "merged")
    wanted = models.load(str(tmp_path / "merged"), precision="fp32").model.state_dict()
    for name, value in verified["model"].state_dict().items():
        torch.testing.assert_close(value, wanted[name], atol=0, rtol=0)
    assert "comparing on the first 2 rows of toy rows, the model in fp32" in said
    assert "perplexity               3.000 of the file, 2.500 of the model (+20.0%)" in said
    assert "greedy answers equal     1 of 2 (50.0%); 50.0% of the tokens come before" in said
    assert "0.500 after 0 tokens of 'cd'" in said


def test_a_model_too_large_for_fp32_rounds_itself_and_may_differ_more(
    verified: dict[str, Any],
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(
        UserError, match="50% of its answers are the model's, where 80% is the least"
    ):
        export.command(str(run_folder), tmp_path / "one.gguf", "f16", verify=2)
    monkeypatch.setattr("ft.machine.free_memory", lambda: (1000, "here"))
    export.command(str(run_folder), tmp_path / "two.gguf", "f16", verify=2)
    assert "the model in bf16" in capsys.readouterr().out
    assert next(verified["model"].parameters()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("perplexity", "least", "said"),
    [
        (
            3.0,
            "0.6",
            "out.gguf is not the model: 50% of its answers are the model's, where 60% is the",
        ),
        (
            4.0,
            "0.5",
            "out.gguf is not the model: its perplexity is 60% above the model's (25% at most)",
        ),
    ],
)
def test_another_model_in_the_file_is_an_error_and_the_file_stays(
    perplexity: float,
    least: str,
    said: str,
    verified: dict[str, Any],
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.gguf"
    verified["perplexity"] = perplexity
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(run_folder), str(out), "--verify", "--min-equal", least])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert out.is_file()
    assert out.with_suffix(".Modelfile").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--data", "x.tsv"), "--data does not go without --verify"),
        (("--min-equal", "1"), "--min-equal does not go without --verify"),
        (("--verify", "0"), "--verify 0: it must be 1 or more"),
        (("--verify", "--min-equal", "7"), "--min-equal 7.0: a share, from 0 to 1"),
        (("--verify",), "--verify needs llama.cpp, which is not installed: pip install llama-cpp-"),
    ],
)
def test_what_verify_cannot_do_is_said_before_anything_is_written(
    words: tuple[str, ...],
    said: str,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(llama, "package", lambda: None)
    before = set(tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(run_folder), str(tmp_path / "out.gguf"), *words])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_verify_is_for_a_run_that_answers_prompts(
    verified: dict[str, Any], run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, base = tmp_path / "out.gguf", str(tmp_path / "base")
    with pytest.raises(UserError, match="--verify is for a run, which has rows and a template"):
        export.command(base, out, "f16", verify=2)
    monkeypatch.setattr(opened.Finished, "task", "text")
    with pytest.raises(
        UserError, match="compares answers to prompts; .* learnt text: leave it out"
    ):
        export.command(str(run_folder), out, "f16", verify=2)
    assert not out.exists()


def test_a_base_that_was_in_the_same_few_bits_is_told(
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise UserError("far enough")

    monkeypatch.setattr(llama, "package", lambda: "llama_cpp")
    monkeypatch.setattr("ft.models.sources.fetch", stop)
    for base, outtype, told in (("embedded", "q4_k_m", True), ("embedded", "q6_k", False), ("m", "q4_k_m", False)):  # fmt: skip
        monkeypatch.setattr(opened.Finished, "base", base)
        with pytest.raises(UserError, match="far enough"):
            export.command(str(run_folder), tmp_path / "out.gguf", outtype)
        assert ("the same type rounds it away" in capsys.readouterr().out) == told
