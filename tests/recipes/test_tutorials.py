"""The recipes' presets compute what Google's JAX libraries computed: rows, ids, masks and every loss."""

import importlib
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ft import config, models
from ft.runs import folder
from ft.text import tokens

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"


@dataclass(frozen=True)
class Golden:
    """One trajectory: ours by these flags, theirs in ``golden.json`` under the test's name.

    Theirs were computed by gemma-llm 1.0.0 and recurrentgemma 1.0.1 (JAX), in float32, on the tiny
    checkpoints that ``make_tiny.py`` writes, with rows of MTNT and Gemma 1's tokenizer: batches of
    one row, in the order of the file, without clipping, at a constant rate. JAX's own version and
    the processor are not recorded.
    """

    recipe: str
    preset: str
    checkpoint: str  # as make_tiny.py names it
    learning_rate: float
    rows: int  # of training, that fit
    start: float  # mean of 50 validation rows' losses before the first step
    evaluations: list[float] = field(default_factory=list)  # and after each 20 of 100 steps


GOLDEN = {
    "gemma_sgd": Golden(
        *("mtnt_full", "tutorial", "gemma", 0.05, 170, 12.624308),
        [8.777960, 8.407837, 7.940404, 7.815612, 7.748909],
    ),
    "recurrentgemma_sgd": Golden(
        *("mtnt_recurrent", "tutorial-sgd", "recurrentgemma", 0.05, 391, 12.545219),
        [10.128640, 9.030312, 8.677266, 8.421704, 8.286814],
    ),
    "recurrentgemma_adamw": Golden(
        *("mtnt_recurrent", "tutorial-adamw", "recurrentgemma", 0.001, 391, 12.545219),
        [10.978486, 10.114155, 9.203377, 8.277855, 7.503150],
    ),
}
pytestmark = pytest.mark.real


def theirs(name: str) -> dict:
    return json.loads((REFERENCE / "golden.json").read_text())[name]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny checkpoint by name, with Gemma 1's tokenizer, made once."""
    if not REFERENCE.is_dir():
        pytest.skip(f"no reference trajectories at {REFERENCE}")
    place = tmp_path_factory.mktemp("checkpoints")
    vocabulary = ROOT.parent / "shared" / "data" / "tokenizers" / "gemma1_tokenizer.model"

    def made(kind: str) -> Path:
        folder = place / kind
        if not folder.exists():
            script = REFERENCE / "make_tiny.py"
            subprocess.run([sys.executable, script, kind, folder], check=True, capture_output=True)
            shutil.copyfile(vocabulary, folder / "tokenizer.model")
        return folder

    return made


@pytest.fixture(scope="module")
def one_tokenizer():
    """All checkpoints have the same, which takes seconds to read: it is read once."""
    load = importlib.import_module("ft.models.load")
    plain, made = load._tokenizer, []

    def once(path: Path, name: str):
        made.extend([] if made else [plain(path, name)])
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "_tokenizer", once)
        yield


@pytest.fixture(params=GOLDEN, scope="module")
def ours(request, checkpoint, one_tokenizer, tmp_path_factory):
    """The recipe's module, its settings and its finished run, for each trajectory."""
    golden = GOLDEN[request.param]
    path = ROOT / "recipes" / f"{golden.recipe}.py"
    spec = importlib.util.spec_from_file_location(golden.recipe, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[golden.recipe] = module
    spec.loader.exec_module(module)
    flags = {
        "preset": golden.preset,
        "model": checkpoint(golden.checkpoint),
        "data": ROOT.parent / "shared" / "data" / "mtnt",
        "learning_rate": golden.learning_rate,
        "max_steps": 100,
        "output_dir": tmp_path_factory.mktemp("runs") / request.param,
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    settings = config.parse(module.Config, [*words, "--no-shuffle", "--accept-loss"])
    module.main(settings)
    return request.param, module, settings


def test_the_same_rows_ids_and_masks(ours):
    name, module, settings = ours
    tokenizer = models.load_tokenizer(settings.model_name_or_path)
    encoded = tokens.encode_rows(
        module.rows(settings)["train"],
        module.template(settings),
        tokenizer,
        max_length=settings.max_length,
        seed_parity=settings.second_bos,
    )
    assert len(encoded.examples) == GOLDEN[name].rows == theirs(name)["n_train"]
    for example, (ids, mask) in zip(encoded.examples, theirs(name)["first_rows"], strict=False):
        padding = settings.max_length - len(example["input_ids"])
        assert example["input_ids"] + [tokenizer.pad_token_id] * padding == ids
        supervised = [int(label != tokens.IGNORE) for label in example["labels"]]
        assert supervised + [0] * padding == mask


def test_the_same_losses_within_a_ten_thousandth(ours):
    name, _, settings = ours
    lines = folder.read_lines(settings.output_dir / folder.METRICS)
    losses = [line["loss"] for line in lines if "loss" in line]
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    golden = theirs(name)
    assert losses == pytest.approx(golden["losses"], abs=1e-4)
    logged = [golden["start"], *(evaluation for _, _, evaluation in golden["log"])]
    assert evaluations == pytest.approx(logged, abs=1e-4)
    assert evaluations == pytest.approx([GOLDEN[name].start, *GOLDEN[name].evaluations], abs=1e-4)


def test_the_run_is_a_model_that_plain_transformers_loads(ours):
    import torch
    from transformers import AutoModelForCausalLM

    _, _, settings = ours
    model = AutoModelForCausalLM.from_pretrained(settings.output_dir)
    start = AutoModelForCausalLM.from_pretrained(settings.model_name_or_path)
    assert model.dtype == torch.float32
    moved = [
        name
        for (name, a), (_, b) in zip(
            model.named_parameters(), start.named_parameters(), strict=True
        )
        if not torch.equal(a, b)
    ]
    assert len(moved) == len(list(model.parameters()))
