"""Faults that show when a run is merged, exported or opened again: each is named, none passes in silence."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support import faults, finished_run, tiny, tiny_gguf

from ft import __main__ as cli
from ft.errors import UserError
from ft.runs import export, merge, opened
from ft.train import first_batch


def refused(capsys, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        cli.main([*map(str, words)])
    said = capsys.readouterr()
    assert stopped.value.code == 2
    assert "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("verb", ["merge", "export", "chat", "translate"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(capsys, verb, tmp_path):
    out = {"merge": ["out"], "export": [tmp_path / "out.gguf"], "translate": ["hello"]}.get(
        verb, []
    )
    said = refused(capsys, verb, "runs/nothing_here", *out)
    assert "there is no folder runs/nothing_here here" in said
    assert "no connection" not in said


@pytest.fixture(scope="module")
def own_head(tmp_path_factory):
    """A model of llama.cpp's Gemma 3 whose head is its own, though its flag says that it is tied."""
    folder = tiny_gguf.model_folder(tmp_path_factory.mktemp("own"), "gemma3_text")

    def own(found):
        found["lm_head.weight"] = 0.5 * found["model.embed_tokens.weight"].flip(0)

    faults.weights(folder, own)
    return folder


def test_12_export_keeps_an_own_head(own_head, tmp_path):
    file = tmp_path / "own.gguf"
    export.write(own_head, file, outtype="f32", name="own")
    from safetensors.torch import load_file

    _, tensors = tiny_gguf.read(file)
    wanted = load_file(own_head / "model.safetensors")["lm_head.weight"]
    assert torch.equal(torch.tensor(tensors["output.weight"]), wanted)


def test_12_a_head_that_is_the_embedding_once_more_is_not_written(own_head, tmp_path):
    folder = shutil.copytree(own_head, tmp_path / "same")

    def same(found):
        found["lm_head.weight"] = found["model.embed_tokens.weight"].clone()

    faults.weights(folder, same)
    file = tmp_path / "same.gguf"
    export.write(folder, file, outtype="f32", name="same")
    assert "output.weight" not in tiny_gguf.read(file)[1]


def test_12_where_llama_cpp_has_no_own_head_that_is_said(tmp_path):
    folder = tiny_gguf.model_folder(tmp_path / "gemma2", "gemma2")

    def own(found):
        found["lm_head.weight"] = 0.5 * found["model.embed_tokens.weight"].flip(0)

    faults.weights(folder, own)
    with pytest.raises(UserError, match=r"gemma2 has no place for the tensor lm_head\.weight"):
        export.write(folder, tmp_path / "x.gguf", name="x")


def test_28_the_first_module_is_named_and_the_advice_fits():
    model = tiny.build("gemma3_text")
    ids = torch.tensor([[2, 10, 11, 12]])

    def again():
        return model(input_ids=ids)

    with torch.no_grad():
        model.model.layers[1].input_layernorm.weight.fill_(3e38)
    said = first_batch.culprit(model, again)
    assert "the output of model.layers.1.input_layernorm is the first that is not finite" in said
    assert "fp32 already" in said
    assert "--precision fp32" in first_batch.advice(model.to(torch.bfloat16))


def test_28_a_start_over_the_bound_is_refused_but_for_who_insists():
    model = tiny.build("gemma3_text")
    assert first_batch.bound(model) == pytest.approx(11.98, abs=0.01)  # of 400 words
    first_batch.check(model, 6.3, lambda: None)
    with pytest.raises(
        UserError, match=r"122\.60 nats a token before the first step.*--accept-loss"
    ):
        first_batch.check(model, 122.6, lambda: None)
    first_batch.check(model, 122.6, lambda: None, accept=True)
    model.config.vocab_size = 262_144
    assert first_batch.bound(model) == 6


@pytest.fixture
def run(tmp_path):
    """A finished run that knows the weights of its base."""
    from ft.files import sampled_hash

    folder = finished_run.write_real(tmp_path / "run")
    base = tmp_path / "base"
    (folder / "config.yaml").write_text(f"language_pair: en-fr\nmodel_name_or_path: {base}\n")
    faults.edit(folder / "run.json", model={"name": str(base), "sha256": sampled_hash(base)})
    return folder


def test_15_another_base_of_the_same_shapes_is_not_merged_into(run, tmp_path, capsys):
    shutil.rmtree(tmp_path / "base")
    tiny.folder("gemma3_text", tmp_path / "base", seed=9)
    out = tmp_path / "merged"
    said = refused(capsys, "merge", run, out)
    assert re.search(r"is of another base: .*\([0-9a-f]{12}, not [0-9a-f]{12}\)", said)
    assert not out.exists()
    cli.main(["merge", str(run), str(out), "--any-base"])
    assert (out / "model.safetensors").is_file()


@pytest.mark.parametrize(("dtype", "stored"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_a_merge_is_stored_as_asked(run, tmp_path, dtype, stored):
    cli.main(["merge", str(run), str(tmp_path / "out"), "--dtype", dtype])
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {stored}


def test_13_a_merge_tells_how_far_it_is_from_the_4_bit_model_that_was_trained(
    run, tmp_path, capsys
):
    cli.main(["merge", str(run), str(tmp_path / "plain")])
    assert "4-bit" not in capsys.readouterr().out
    model = json.loads((run / "run.json").read_text())["model"]
    faults.edit(run / "run.json", model=model | {"precision": "nf4"})
    difference = merge.merge_run(opened.finished(run), tmp_path / "merged")
    assert difference.trained
    assert difference.kl < 1e-6 < difference.trained.kl
    assert "from the 4-bit model that was trained: mean KL" in str(difference)
