"""The recipe for images: it learns to see, with all parameters or an adapter, and the commands take its runs."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import seeing
from support.recipe_runs import load, train

from ft import __main__ as cli
from ft import config, machine, models
from ft.data import pictures
from ft.errors import UserError
from ft.models import tiny_vision, vision
from ft.runs import opened

RECIPE = Path(__file__).parents[2] / "recipes" / "vision_lora.py"


def test_it_learns_to_name_what_it_has_not_seen(tmp_path, capsys, monkeypatch):
    """A third of the recipe's default, with a small vocabulary."""
    seeing.folder(tmp_path / "base")
    module = load(RECIPE)
    torch.set_num_threads(1)  # for products as small as these, threads only wait for each other
    monkeypatch.setattr(machine, "use_all_cores", lambda: "one thread")
    words = ["--model", str(tmp_path / "base"), "--output-dir", str(tmp_path / "run")]
    words += ["--lora-r", "0", "--train-vision", "--learning-rate", "2e-3", "--pictures", "2304"]
    words += [
        "--test-rows",
        "60",
        "--valid-rows",
        "20",
        "--eval-steps",
        "144",
        "--precision",
        "fp32",
    ]
    module.main(config.parse(module.Config, words))
    found = json.loads((tmp_path / "run" / "run.json").read_text())["evaluation"]["test"]
    assert found["tuned"]["colour"]["low"] > 50
    assert found["tuned"]["position"]["low"] > found["chance"]["position"]
    assert "a guess" in capsys.readouterr().out


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run that trained an adapter on language model and image tower."""
    place = tmp_path_factory.mktemp("adapted")
    return train(
        "vision_lora", place, "--train-vision", "--learning-rate", "0.05", "--warmup-ratio", "0"
    )


def test_an_adapter_of_the_tower_is_kept_and_answers_as_it_did(adapted, capsys):
    from safetensors import safe_open

    with safe_open(adapted / "adapter_model.safetensors", "pt") as stored:
        names = set(stored.keys())
    for part in ("vision_tower", "language_model", "multi_modal_projector"):
        assert any(part in name for name in names), part
    sample = json.loads((adapted / "run.json").read_text())["evaluation"]["test"]["samples"][0]
    words = ["generate", str(adapted), sample["prompt"], "--image", sample["images"]]
    cli.main([*words, "--max-new-tokens", "6", "--precision", "fp32"])
    assert capsys.readouterr().out.strip() == sample["tuned"]
    cli.main([*words, "--max-new-tokens", "6", "--precision", "fp32", "--base"])
    assert capsys.readouterr().out.strip() == sample["base"]


def test_eval_scores_the_runs_split_as_the_run_did_or_other_rows(adapted, tmp_path):
    result, words = tmp_path / "result.json", ["eval", str(adapted), "--precision", "fp32"]
    cli.main([*words, "--json", str(result)])
    recorded = json.loads((adapted / "run.json").read_text())["evaluation"]["test"]
    again = json.loads(result.read_text())
    for sample in again["samples"] + recorded["samples"]:
        del sample["images"]  # each test draws them into a cache of its own
    assert again["samples"] == recorded["samples"]
    assert again["tuned"] == recorded["tuned"]
    other = pictures.write(tmp_path / "other", 3, 5)
    cli.main([*words, "--data", str(other), "--limit", "1", "--json", str(result)])
    assert json.loads(result.read_text())["n"] == 1
    with pytest.raises(SystemExit):
        cli.main([*words, "--data", str(other), "--split", "train"])


def test_show_prints_an_example_with_its_image_tokens(adapted, capsys):
    words = ["--model", str(adapted.parent / "base"), "--pictures", "4", "--valid-rows", "1"]
    cli.main(["show", str(RECIPE), *words, "--test-rows", "1", "--examples", "1"])
    shown = capsys.readouterr().out
    assert shown.count("<image_soft_token>") == tiny_vision.TOKENS
    assert shown.count("⟦") == 1


def test_a_merged_run_sees_as_the_adapter_did(adapted, tmp_path):
    model = opened.load(opened.finished(adapted), "fp32").model
    cli.main(["merge", str(adapted), str(tmp_path / "merged")])
    plain = models.load(str(tmp_path / "merged"), precision="fp32", text_only=False).model
    red = vision.reader(str(tmp_path / "merged")).pixels([Image.new("RGB", (64, 64), "red")])
    with torch.no_grad():
        ours, theirs = (
            m.get_image_features(**red).pooler_output for m in (model.get_base_model(), plain)
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_by_default_only_the_language_model_of_a_model_has_an_adapter(tmp_path):
    from safetensors import safe_open

    folder = train("vision_lora", tmp_path)
    with safe_open(folder / "adapter_model.safetensors", "pt") as stored:
        assert all("language_model" in name for name in stored.keys())  # noqa: SIM118
    assert (folder / "processor_config.json").exists()


def test_settings_follow_the_model():
    module = load(RECIPE)
    tiny, real = module.Config(), module.Config(model_name_or_path="google/gemma-3-4b-it")
    assert (tiny.lora_r, tiny.train_vision, tiny.learning_rate) == (0, True, 2e-3)
    assert (real.lora_r, real.train_vision, real.learning_rate) == (16, False, 2e-4)
    assert module.Config(lora_r=4, train_vision=False).lora_r == 4


def test_a_model_of_text_alone_is_refused_before_anything_is_written(tmp_path, folder):
    module = load(RECIPE)
    words = ["--model", folder("gemma3_text"), "--pictures", "8", "--valid-rows", "2"]
    with pytest.raises(UserError, match="takes no images"):
        module.main(
            config.parse(
                module.Config, [*words, "--test-rows", "2", "--output-dir", str(tmp_path / "run")]
            )
        )
    assert not (tmp_path / "run").exists()


def test_pictures_are_drawn_by_seed_and_say_what_they_show(tmp_path):
    a, b, c = (pictures.write(tmp_path / n, 4, seed) for n, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert a.read_bytes() == b.read_bytes() != c.read_bytes()
    rows = [json.loads(line) for line in a.read_text().splitlines()]
    for row in rows:
        image, same = (Image.open(tmp_path / n / row["image"]) for n in "ab")
        assert image.tobytes() == same.tobytes()
        colour, _, position = row["completion"].replace(",", "").split(" ", 2)
        x, y = (round(at * pictures.SIDE) for at in pictures.POSITIONS[position])
        around = image.crop((x - 16, y - 16, x + 16, y + 16)).get_flattened_data()
        gaps = [max(map(abs, map(int.__sub__, p, pictures.COLOURS[colour]))) for p in around]
        assert min(gaps) <= 20
    before = (tmp_path / "a" / "00000.png").stat().st_mtime_ns
    pictures.write(tmp_path / "a", 4, 1)
    assert (tmp_path / "a" / "00000.png").stat().st_mtime_ns == before


def test_what_is_right_and_what_a_guess_gets_right():
    assert pictures.right("colour", "a red cross", "red circle, middle")
    assert not pictures.right("colour", "a red or blue cross", "red circle, middle")
    assert pictures.right("position", "it is top left", "red circle, top left")
    assert not pictures.right("position", "left", "red circle, top left")
    assert pictures.chance("exact") == pytest.approx(1 / 6 / 4 / 5)


@pytest.mark.real
def test_the_tiny_model_has_gemmas_own_ids(monkeypatch, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    monkeypatch.setattr(tiny_vision, "LANGUAGE", tiny_vision.LANGUAGE | {"hidden_size": 8})
    tokenizer = AutoTokenizer.from_pretrained(
        tiny_vision.embedded.folder(), extra_special_tokens=tiny_vision.NAMES
    )
    tiny_vision.write(tmp_path, tokenizer)
    found = AutoConfig.from_pretrained(tmp_path)
    assert (found.boi_token_id, found.eoi_token_id, found.image_token_id) == (
        255999,
        256000,
        262144,
    )
    assert found.text_config.vocab_size == 262_208


@pytest.mark.real
def test_its_command_without_a_model_trains(tmp_path):
    """Random weights guess among 262,208 words, which is no reason to stop where they are asked for."""
    module = load(RECIPE)
    words = ["--pictures", "4", "--valid-rows", "2", "--test-rows", "2", "--max-steps", "1"]
    words += ["--max-new-tokens", "1", "--output-dir", str(tmp_path / "run")]
    module.main(config.parse(module.Config, words))
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["training"]["steps"] == 1
    assert [c["status"] for c in found["checks"] if c["name"] == "start loss"] == ["WARN"]
    assert not config.parse(module.Config, ["--model", "google/gemma-3-4b-it"]).accept_loss
