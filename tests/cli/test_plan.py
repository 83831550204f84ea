"""`ft plan` as a user runs it: what fits, what does not, what would, and for how long."""

import dataclasses
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ft import __main__ as cli
from ft import machine
from ft.config import to_dict
from ft.errors import UserError
from ft.plan import devices, fitting, time
from ft.plan import settings as fit
from ft.plan.moments import GIB

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "mtnt_lora.py")
FULL = str(ROOT / "recipes" / "mtnt_full.py")
QLORA = [RECIPE, "--model", "google/gemma-7b", "--gradient-checkpointing", "--max-length", "1024"]


def run(capsys, *words: str, code: int | None = None) -> str:
    if code is None:
        cli.main(["plan", *words])
    else:
        with pytest.raises(SystemExit) as stopped:
            cli.main(["plan", *words])
        assert stopped.value.code == code
    said = capsys.readouterr()
    return said.out + said.err


def test_a_7b_fits_a_card_of_24_gb(capsys):
    said = run(capsys, *QLORA, "--gpu", "24GB")
    for name in ("linear layers", "embeddings", "LoRA weights", "optimizer states", "activations"):
        assert name in said
    assert "peak of the GPU" in said
    assert "fits into 24.0 GiB; largest: batches of" in said
    assert "GFLOP a token" in said
    grid = re.findall(r"(?m)^ +(\d+) +([\d.]+) / ([\d.]+) .*? ([\d.]+) / ([\d.]+)$", said)
    assert [row[0] for row in grid] == ["1", "4", "8", "16"]
    assert all(float(less) < float(more) for row in grid for less, more in (row[1:3], row[3:5]))


def test_what_does_not_fit_says_what_would_and_it_does(capsys):
    said = run(capsys, *QLORA, "--gpu", "7GB", code=1)
    assert "does not fit into 7.0 GiB. What would: " in said
    way = re.search(r"What would: (--.*?) \((\d+\.\d) GiB\)", said)
    assert float(way[2]) <= 7
    again = run(capsys, *QLORA, *way[1].split(), "--gpu", "7GB")
    peak = float(re.search(r"peak of the GPU.* (\d+\.\d+)", again)[1])
    assert peak == pytest.approx(float(way[2]), abs=0.06)


def test_fit_finds_settings_with_as_many_examples_in_a_step(capsys):
    said = run(capsys, *QLORA, "--fit", "7GB")
    flags = re.search(r"to fit 7GB: (.*)", said)[1]
    batch = int(re.search(r"--per-device-train-batch-size (\d+)", flags)[1])
    steps = int(re.search(r"--gradient-accumulation-steps (\d+)", flags)[1])
    assert batch * steps >= 8
    assert "fits into 7.0 GiB" in said
    assert "fits into 7.0 GiB" in run(capsys, *QLORA, *flags.split(), "--gpu", "7GB")


def test_settings_that_fit_stay_as_they_are(capsys):
    assert "to fit 40GB: the settings as they are" in run(capsys, *QLORA, "--fit", "40GB")


def test_what_nothing_can_satisfy_says_what_would(capsys):
    said = run(capsys, *QLORA, "--fit", "3GB", code=2)
    assert "nothing fits 3.0 GiB: one example of 64 tokens" in said
    model = re.search(r"What would: --model-name-or-path (\S+)", said)[1]
    assert "fits into" in run(capsys, RECIPE, "--model", model, "--fit", "3GB")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "24 apples"], "--gpu 24 apples: not a size of memory; write it as 24GB"),
        (["--fit", "0GB"], "--fit 0GB: not a size"),
        (["--gpu", "24GB", "--fit", "16GB"], "not both"),
        (["--device", "rtx409"], "no such device.*Did you mean 'rtx4090'"),
        (["--processes", "0"], "--processes 0: must be 1 or more"),
        (["--gpu", "24GB", "--model", "google/gemma-8b"], "shape of 'google/gemma-8b'"),
        (["--gpu", "24GB", "--lora-rnak", "8"], "lora_rank|lora_r"),
        (["--gpu", "24GB", "--lora-r", "many"], "--lora-r: got 'many'"),
        (["--gpu", "24GB", "--lora-r", "-3"], "--lora-r: got -3, must be above 0"),
        (
            ["--model", "google/gemma-2b", "--max-length", "9000"],
            "--max-length 9000: the model has 8,192",
        ),
        (["--gpu", "24GB", "--lora-target-modules", "q_poj"], "q_poj: .*Did you mean 'q_proj'"),
    ],
)
def test_mistakes_are_one_line(words, said, capsys):
    found = run(capsys, RECIPE, *words, code=2)
    assert re.search(said, found), found
    assert "Traceback" not in found


def test_4_bits_cannot_train_everything(capsys):
    said = run(capsys, FULL, "--precision", "nf4", "--gpu", "24GB", code=2)
    assert "nf4 cannot train all parameters" in said


def test_a_recipe_without_a_gemma_is_refused(capsys, tmp_path):
    recipe = tmp_path / "other.py"
    text = "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Config:\n    steps: int = 3"
    recipe.write_text(f"{text}  # so many\ndef rows(c): ...\ndef template(c, _): ...\n")
    assert "has no setting 'model_name_or_path'" in run(capsys, str(recipe), code=2)


def test_full_training_suggests_an_adapter(capsys):
    said = run(capsys, FULL, "--model", "google/gemma-2b", "--gpu", "16GB", code=1)
    assert "--lora-r 16" in said or "--optim sgd" in said


def test_a_named_device_tells_memory_and_time(capsys):
    said = run(capsys, RECIPE, "--model", "google/gemma-2b", "--device", "rtx4090")
    assert "fits into 24.0 GiB" in said
    assert re.search(r"rtx4090: 165.20 TFLOP/s, of which 40% are assumed", said)
    assert re.search(r"an epoch of 900 rows, about [\d,]+ tokens, in about \d+ s", said)


def test_data_that_is_not_here_is_not_fetched(capsys):
    said = run(
        capsys, RECIPE, "--data", "release", "--device", "a100", "--model", "google/gemma-2b"
    )
    assert "the time of an epoch is known once 'release' is here" in said


def test_it_takes_under_three_seconds_and_no_torch():
    code = (
        "import sys\nfrom ft.__main__ import main\nmain(sys.argv[1:])\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = ["plan", *QLORA, "--fit", "8GB", "--device", "rtx4090"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=os.environ
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 3


def test_this_machine_is_planned_for_and_measured(capsys, monkeypatch):
    monkeypatch.setattr(machine, "free_ram", lambda: 32 * GIB)
    monkeypatch.setattr(time, "cpu_rate", lambda _: 1e12)
    said = run(capsys, RECIPE)
    assert "peak of the process" in said
    assert "this CPU: 1.00 TFLOP/s" in said


def test_a_recipe_plans_what_the_command_plans():
    from ft.runs import opened

    _, config = opened.recipe(Path(RECIPE), ["--model", "google/gemma-2b"])
    settings = to_dict(config)
    assert fit.of(settings, device="cuda").precision == "nf4"
    assert fit.of(settings).precision == "bf16"
    assert fit.of(settings, bf16=False).precision == "fp32"


def test_sharing_out_lets_a_larger_model_in(capsys):
    words = [FULL, "--model", "google/gemma-7b", "--precision", "bf16", "--gpu", "40GB"]
    run(capsys, *words, code=1)
    said = run(capsys, *words, "--max-length", "128", "--processes", "8", "--sharded")
    assert "FSDP, gathered layers" in said


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24 * GIB), ("1.5 GiB", 1.5 * GIB), ("512m", GIB / 2)]
)
def test_sizes_are_read(text, size):
    assert devices.size_of(text, "--gpu") == size


def test_a_rate_makes_a_time():
    made = fit.of(
        {
            "model_name_or_path": "google/gemma-2b",
            "precision": "bf16",
            "lora_r": 8,
            "optim": "adamw",
            "per_device_train_batch_size": 1,
            "max_length": 128,
            "gradient_checkpointing": False,
            "gradient_accumulation_steps": 1,
        }
    )
    fast, slow = (
        time.speed(dataclasses.replace(made, checkpointing=again), 1e14) for again in (False, True)
    )
    assert fast == pytest.approx(1e14 * 0.4 / (made.flops[0] + made.flops[1] / 2))
    assert slow < fast
    assert time.duration(30) == "30 s"
    assert time.duration(1800) == "30 min"
    assert time.duration(3600 * 5) == "5.0 h"


# multiprocessors, boost GHz, FLOP that one makes in a cycle with float32 sums (the oldest three: of float16)
SILICON = {
    "p100": (56, 1.303, 256),
    "v100": (80, 1.53, 1024),
    "v100-32gb": (80, 1.53, 1024),
    "t4": (40, 1.59, 1024),
    "a10g": (80, 1.71, 512),
    "rtx3090": (82, 1.695, 512),
    "rtx4080": (76, 2.505, 512),
    "rtx4090": (128, 2.52, 512),
    "rtx5090": (170, 2.407, 512),
    "a10": (72, 1.695, 1024),
    "a6000": (84, 1.8, 1024),
    "l4": (58, 2.04, 1024),
    "l40s": (142, 2.52, 1024),
    "a100": (108, 1.41, 2048),
    "a100-80gb": (108, 1.41, 2048),
    "h100": (132, 1.83, 4096),
    "h200": (132, 1.83, 4096),
}


def test_the_rates_of_gpus_are_what_their_multiprocessors_make():
    assert SILICON.keys() == devices.CARDS.keys()
    for name, (number, clock, flop) in SILICON.items():
        made = number * clock * flop / 1e3
        assert devices.CARDS[name][1] == pytest.approx(made, rel=0.013), name
        cores = 64 if name in ("p100", "v100", "v100-32gb", "t4", "a100", "a100-80gb") else 128
        single = number * clock * 2 * cores / 1e3  # H100 and H200: stated at a higher clock
        assert devices.CARDS[name][2] == pytest.approx(single, rel=0.09 if "h" in name else 0.013)


def test_a_card_without_bfloat16_keeps_its_activations_in_float32(capsys):
    peaks = []
    for card in ("t4", "l4"):
        small = ["--model", "google/gemma-2b"]  # the last one counts
        said = run(capsys, *QLORA, *small, "--precision", "nf4", "--device", card)
        peaks.append(float(re.search(r"peak of the GPU, .* ([\d.]+)\n", said)[1]))
    assert peaks[0] > 1.1 * peaks[1]


def test_an_impossible_fit_is_a_users_mistake():
    with pytest.raises(UserError, match="nothing fits 0.1 GiB"):
        fitting.fitting(
            {
                "model_name_or_path": "google/gemma-2b",
                "precision": "auto",
                "lora_r": 8,
                "optim": "auto",
                "per_device_train_batch_size": 2,
                "max_length": 128,
                "gradient_checkpointing": False,
                "gradient_accumulation_steps": 1,
            },
            GIB // 10,
            {"device": "cuda"},
        )
