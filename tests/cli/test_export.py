"""`ft export`: a run is merged and written, a model is written, a mistake is one line."""

from pathlib import Path

import pytest
import torch
from support import tiny, tiny_gguf

from ft import __main__ as cli
from ft import models
from ft.cli import export
from ft.files import write_json, write_text
from ft.models import lora
from ft.runs import export as gguf_file
from ft.runs import merge, opened
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
