"""The table of sizes: counted as transformers counts, as the Hub shows, and as configurations say."""

import json
import re
from collections import Counter

import pytest
import transformers as hf
from support import tiny

from ft.errors import UserError
from ft.models import parameters
from ft.plan import layers, shapes
from ft.plan.shapes import DEFAULTS, TABLE

# the parameters that the Hub shows beside each model
PUBLISHED = {
    "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b": 999_885_952,
    "gemma-3-4b": 4_300_079_472,
    "gemma-3-12b": 12_187_325_040,
    "gemma-3-27b": 27_432_406_640,
    "recurrentgemma-2b": 2_682_862_080,
}
CLASSES = {
    "gemma": hf.GemmaConfig,
    "gemma2": hf.Gemma2Config,
    "gemma3_text": hf.Gemma3TextConfig,
    "gemma3n_text": hf.Gemma3nTextConfig,
    "gemma4_text": hf.Gemma4TextConfig,
    "recurrent_gemma": hf.RecurrentGemmaConfig,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_were_published(name):
    shape = shapes.of(f"google/{name}")
    assert sum(layers.count(shape)) + shape.towers == PUBLISHED[name]


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_parameters_and_linear_layers_are_those_of_the_model(kind):
    model = tiny.build(kind)
    shape = shapes.from_config(model.config.to_dict())
    mine = [(n, p) for n, p in model.named_parameters() if parameters.in_language_model(n)]
    assert sum(layers.count(shape)) == sum(p.numel() for _, p in mine)

    def leaf(name: str) -> str:
        return re.search(r"[a-z]\w*(\.\d+)?$", name)[0]

    import torch

    found = Counter(
        (leaf(n), m.in_features, m.out_features)
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and parameters.in_language_model(n) and "lm_head" not in n
    )
    counted = Counter((leaf(m.name), m.inputs, m.outputs) for m in layers.matrices(shape))
    assert counted == found


@pytest.mark.parametrize("family", CLASSES)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(family):
    given = {"intermediate_size": 7680} if family == "recurrent_gemma" else {}
    whole = CLASSES[family](**given).to_dict()
    assert shapes.from_config({"model_type": family, **given}) == shapes.from_config(whole)
    assert set(DEFAULTS) == set(CLASSES)


@pytest.mark.parametrize("name", TABLE)
def test_layers_of_the_table_are_laid_out_as_transformers_lays_them(name):
    shape = TABLE[name]
    cls = CLASSES[shape.family]
    inner = shape.intermediate_size * (2 if shape.family == "recurrent_gemma" else 1)
    options = {"num_hidden_layers": shape.num_hidden_layers, "intermediate_size": inner}
    if name == "gemma-4-E2B":  # every fifth layer, and not every sixth
        options["layer_types"] = list(shape.layer_types)
    if shape.family == "gemma3n_text":
        options["activation_sparsity_pattern"] = [0.95] * 10 + [0.0] * (
            shape.num_hidden_layers - 10
        )
    assert shapes.from_config(cls(**options).to_dict()).layer_types == shape.layer_types


def test_the_towers_of_gemma_3_are_those_of_transformers():
    import torch

    tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27}
    tower |= {"num_attention_heads": 16, "image_size": 896, "patch_size": 14}
    config = hf.Gemma3Config(
        text_config={"hidden_size": 2560, "num_hidden_layers": 1},
        vision_config={**tower, "vision_use_head": False},
    )
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(config)
    towers = sum(
        p.numel() for n, p in model.named_parameters() if not parameters.in_language_model(n)
    )
    assert TABLE["gemma-3-4b"].towers == towers


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("google/gemma-2b-it", "gemma-2b"),
        ("google/gemma-1.1-7b-it", "gemma-7b"),
        ("google/codegemma-2b", "gemma-2b"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"),
        ("google/gemma-3n-E2B-it", "gemma-3n-E2B"),
        ("google/gemma-4-e4b-it", "gemma-4-E4B"),
    ],
)
def test_variants_have_the_shape_of_their_base(name, like):
    assert shapes.of(name) == TABLE[like]


def test_a_local_folder_says_its_own_shape(tmp_path):
    folder = tiny.folder("gemma2", tmp_path / "model")
    shape = shapes.of(str(folder))
    assert (shape.family, shape.hidden_size, shape.window, shape.stored) == ("gemma2", 32, 8, 4)


@pytest.mark.parametrize("name", ["google/gemma-3-2b", "mistralai/gemma-2b", "gemma9"])
def test_an_unknown_model_names_what_is_known(name):
    with pytest.raises(UserError, match=f"shape of '{name}' is not known.*google/gemma-2-9b"):
        shapes.of(name)


def test_a_folder_that_is_no_gemma_is_named(tmp_path):
    with pytest.raises(UserError, match="no readable config.json"):
        shapes.of(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(UserError, match="'llama' has no known shape; known: gemma, gemma2"):
        shapes.of(str(tmp_path))


@pytest.mark.real
def test_the_embedded_model_has_the_shape_of_the_table():
    from ft.models import embedded

    try:
        folder = embedded.folder()
    except UserError as error:
        pytest.skip(str(error))
    assert shapes.of(str(folder)) == shapes.of("embedded")
