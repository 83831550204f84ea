"""Training relates: packed = padded, 1×4 = 4×1, one process = two, resumed = uninterrupted."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import tiny, toy

from ft import train
from ft.errors import UserError
from ft.runs import checkpoints, lock
from ft.runs import folder as run
from ft.train import trainer

ADAPTER = "adapter_model.safetensors"


def lines(folder: Path, key: str) -> list[float]:
    return [line[key] for line in run.read_lines(folder / run.METRICS) if key in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run: 24 examples, batches of 4, 2 epochs, so 12 steps."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    toy.go(folder, dropout=0.1)
    return folder


def test_the_loss_falls_and_is_written_down(whole):
    losses, valid = lines(whole, "loss"), lines(whole, "eval_loss")
    assert len(losses) == 12
    assert len(valid) == 1 + 3  # before the first step, and after steps 4, 8 and 12
    assert valid[-1] < valid[0]
    assert all(value > 0 for value in lines(whole, "grad_norm"))
    assert json.loads((whole / run.RECORD).read_text())["training"]["steps"] == 12


def test_the_loss_before_the_first_step_is_one_of_the_runs_checks(whole):
    start = lines(whole, "eval_loss")[0]
    *_, seen = json.loads((whole / run.RECORD).read_text())["checks"]
    assert (seen["status"], seen["name"]) == ("ok", "start loss")
    assert seen["text"].startswith(f"{start:.3f} nats a token, finite, under ")


def test_the_tutorials_lines_are_printed(tmp_path, capsys):
    trained = toy.go(tmp_path / "run", epochs=1)
    out = capsys.readouterr().out.splitlines()
    assert out[0] == f"Start, validation loss: {trained.start_loss}"
    mean = sum(lines(tmp_path / "run", "loss")[:4]) / 4
    assert out[1].startswith(f"STEP 4 training loss: {mean}"[:30])
    assert out[1].endswith(f" - eval loss: {lines(tmp_path / 'run', 'eval_loss')[1]}")


def test_a_run_whose_time_is_over_ends_with_a_validation(tmp_path):
    trained = toy.go(tmp_path / "run", callbacks=[train.deadline(0)])
    assert trained.steps == 1
    start, end = lines(tmp_path / "run", "eval_loss")
    assert (start, end) == (trained.start_loss, trained.eval_loss)
    assert end != start


@pytest.mark.parametrize(
    "what", ["torch.save", "ft.runs.checkpoints.settle", "ft.runs.folder.settle"]
)
def test_a_full_disk_leaves_nothing_half_written(what, tmp_path, monkeypatch):
    def full(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed")

    monkeypatch.setattr(what, full)
    with pytest.raises(RuntimeError, match="failed"):
        toy.go(tmp_path / "run", epochs=1)
    lock.release()
    hidden = {path.name for path in (tmp_path / "run").glob(".*")}
    assert not hidden
    assert not list((tmp_path / "run").glob(ADAPTER))


def test_no_optimizer_is_left_when_an_evaluation_begins(tmp_path):
    def there() -> int:
        return sum(issubclass(type(each), torch.optim.Optimizer) for each in gc.get_objects())

    gc.collect()
    before = there()
    toy.go(tmp_path / "run", epochs=1)
    assert there() == before


@pytest.mark.parametrize(
    ("steps", "apart"), [(1, 30), (113, 30), (300, 30), (301, 31), (2_400, 240)]
)
def test_a_run_is_validated_ten_times_or_every_thirty_steps(steps, apart):
    assert checkpoints.interval(steps) == apart


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 7, "accumulate": 2},  # 6 batches are 3 steps
        {"epochs": 4.25, "batch": 5},  # 5 batches, the last of 4 examples
        {"max_steps": 21},
    ],
)
def test_validations_and_checkpoints_that_nobody_placed_are_tenths_of_the_run(
    options, tmp_path, monkeypatch
):
    monkeypatch.setattr(checkpoints, "APART", 1)
    place = tmp_path / "run"
    steps = toy.go(place, eval_steps=None, save_steps=None, **options).steps
    seen = [line["step"] for line in run.read_lines(place / run.METRICS) if "eval_loss" in line]
    assert seen == [0, *range(3, steps, 3), steps]
    kept = [checkpoints.step_of(p) for p in checkpoints.complete(place)]
    assert kept == seen[-checkpoints.KEPT :]


def test_the_tokenizer_is_written_once_and_lies_in_each_checkpoint(tmp_path, monkeypatch):
    written: list[Path] = []
    kind = type(tiny.tokenizer())
    save = kind.save_pretrained
    monkeypatch.setattr(
        kind,
        "save_pretrained",
        lambda self, place, **more: written.append(Path(place)) or save(self, place, **more),
    )
    toy.go(tmp_path / "run")
    assert [p.name for p in written if p.name.startswith("checkpoint")] == ["checkpoint-2"]
    newest = tmp_path / "run" / "checkpoint-12"  # that one is long deleted
    assert kind.from_pretrained(newest).get_vocab() == tiny.tokenizer().get_vocab()


def test_a_disk_without_links_has_the_tokenizer_in_each_checkpoint_too(tmp_path, monkeypatch):
    toy.go(tmp_path / "linked")
    names = {p.name for p in (tmp_path / "linked" / "checkpoint-12").iterdir()}
    link = os.link

    def refuses(source, place):
        if Path(source).name == "tokenizer_config.json":
            raise OSError("no links here")
        link(source, place)

    monkeypatch.setattr(os, "link", refuses)
    toy.go(tmp_path / "run")
    for place in checkpoints.complete(tmp_path / "run"):
        assert {p.name for p in place.iterdir()} == names
        assert all(p.stat().st_nlink == 1 for p in place.iterdir())


@pytest.mark.parametrize(
    "options",
    [{}, {"padded": True}, {"full": True}, {"accumulate": 2, "checkpointing": True}],
    ids=["packed", "padded", "full", "accumulated"],
)
def test_to_try_the_largest_row_first_changes_no_byte(options, tmp_path, monkeypatch):
    tried: list[int] = []
    run_row = trainer.Trainer._run

    def watched(self, inputs):
        tried.append(inputs["input_ids"].numel())
        run_row(self, inputs)

    monkeypatch.setattr(trainer.Trainer, "_run", watched)
    files = []
    for tries in (False, True):
        tried.clear()
        monkeypatch.setattr(trainer.Trainer, "_tries", tries)
        toy.go(tmp_path / str(tries), dropout=0.1, row_length=512, **options)
        (file,) = (tmp_path / str(tries)).glob("*model.safetensors")
        files.append(file.read_bytes())
    assert tried[0] == max(tried)
    assert files[0] == files[1]


def test_trackers_get_the_validations_too(tmp_path):
    from transformers.trainer_callback import TrainerCallback

    class Tracker(TrainerCallback):
        told = []

        def on_log(self, args, state, control, logs, **_):
            self.told += [(state.global_step, logs["eval_loss"])] if "eval_loss" in logs else []

    toy.go(tmp_path / "run", epochs=1, callbacks=[Tracker()])
    assert [loss for _, loss in Tracker.told] == lines(tmp_path / "run", "eval_loss")
    assert [step for step, _ in Tracker.told] == [0, 4, 6]


def test_a_finished_run_leaves_an_adapter_at_its_root_and_no_pickle_of_settings(whole):
    assert (whole / ADAPTER).exists()
    assert (whole / "adapter_config.json").exists()
    assert (whole / "tokenizer.json").exists()
    assert not list(whole.rglob("training_args.bin"))
    assert not list(whole.glob(".*"))


def test_the_saved_adapter_loads_with_peft_and_gives_the_same_loss(whole):
    from peft import PeftModel

    from ft.kernels import cross_entropy
    from ft.score import likelihood

    model = PeftModel.from_pretrained(tiny.build("gemma3_text"), str(whole))
    cross_entropy.install(model.get_base_model())
    found = likelihood.loss(model, toy.examples(6, seed=1))
    assert found == pytest.approx(lines(whole, "eval_loss")[-1], rel=1e-6)


@pytest.mark.parametrize(
    "changed",
    [{"padded": True}, {"batch": 1, "accumulate": 4}, {"batch": 2, "accumulate": 2}]
    + [{"checkpointing": True}],
    ids=["padded", "1x4", "2x2", "checkpointing"],
)
def test_layout_accumulation_and_checkpointing_change_no_loss(changed, tmp_path):
    # a padded batch is ordered by length: with one batch an epoch it holds the same examples
    same = {"batch": 24, "epochs": 4} if "padded" in changed else {}
    toy.go(tmp_path / "a", **same)
    toy.go(tmp_path / "b", **(same | changed))
    for key in ("loss", "grad_norm", "eval_loss"):
        assert lines(tmp_path / "b", key) == pytest.approx(lines(tmp_path / "a", key), rel=1e-4)


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FSDP = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
}


def spawn(
    out: Path, *flags: str, launch: tuple[str, ...] = (), **variables: str
) -> subprocess.Popen:
    command = [sys.executable, *launch, str(Path(toy.__file__)), "--out", str(out), *flags]
    tests = Path(toy.__file__).parents[1]
    path = os.pathsep.join(map(str, (tests, tests.parent)))
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore"} | variables
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == code, out
    return out


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def test_killed_stopped_and_resumed_is_bit_identical_to_uninterrupted(whole, tmp_path):
    """SIGKILL from outside at any time; a new process goes on, gets SIGTERM, and goes on once more."""
    out = tmp_path / "run"
    process = spawn(out)
    wait_for(out / "checkpoint-4", process)
    time.sleep(torch.rand(()).item() * 0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=300)
    assert not (out / ADAPTER).exists()
    said = finish(spawn(out, "--resume", "last", "--interrupt", "10"))
    assert said.count("stopped by SIGTERM; go on with --resume last") == 1
    assert said.count("Resumed after step") == 2
    ours, theirs = load_file(out / ADAPTER), load_file(whole / ADAPTER)
    assert ours.keys() == theirs.keys()
    assert lines(out, "loss") == lines(whole, "loss")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert lines(out, "eval_loss") == lines(whole, "eval_loss")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """One process, 21 examples in batches of 4: an epoch's last step has one."""
    folder = tmp_path_factory.mktemp("one") / "run"
    toy.go(folder, batch=4, rows=21, judge=True)
    return folder


# 24 steps over the same 8 examples; the validation is best early on
RISING = {"rate": 0.04, "rows": 8, "epochs": 12, "keep": "best"}


@pytest.fixture(scope="module", params=[{}, FSDP], ids=["replicated", "sharded"])
def two(request, tmp_path_factory):
    """Runs of two processes that are started once: their folder, what they said, whether they shared."""
    place = tmp_path_factory.mktemp("two")
    flags = {
        "stopped": "--batch 2 --rows 21 --dropout 0 --judge --interrupt 6",
        "best": "--batch 2 --rate 0.04 --rows 8 --epochs 12 --keep best",
        "all": "--batch 2 --full --rate 1e-3",
        "graphs": "--batch 1 --accumulate 2 --rows 21 --dropout 0 --graphs --interrupt 6",
    }
    if request.param:
        del flags["graphs"]  # layers that are gathered in each pass are none
    first, *more = (f"{place / name} {words}" for name, words in flags.items())
    words = " --then --out ".join([first, *more]).split()
    said = finish(spawn(Path(words[0]), *words[1:], launch=TWO, **request.param))
    return place, said, bool(request.param)


def test_two_processes_equal_one_also_when_stopped_and_resumed(two, one):
    place, said, shared = two
    out = place / "stopped"
    assert said.count("stopped by SIGTERM; go on with --resume last") == (1 if shared else 2)
    assert said.count("Resumed after step 7") == 1
    # with graphs, whose step 7, in which the others hear of it, is read in the next
    assert said.count("Resumed after step 8") == (0 if shared else 1)
    for key in ("loss", "grad_norm", "eval_loss"):
        assert lines(out, key) == pytest.approx(lines(one, key), rel=1e-4), key
    assert lines(out, "tokens")[:7] == lines(one, "tokens")[:7]
    assert (out / "checkpoint-12" / "pytorch_model_fsdp.bin").exists() == shared
    ours, theirs = load_file(out / ADAPTER), load_file(one / ADAPTER)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)
    ours, theirs = (run.read(folder)["judged"] for folder in (out, one))
    assert ours["samples"] == theirs["samples"]
    for system in ("base", "tuned"):
        assert ours[system]["loss"] == pytest.approx(theirs[system]["loss"], rel=1e-5)


def test_two_processes_whose_rows_are_graphs_equal_one(two, one):
    """They average the gradients of an optimizer step themselves, once, and wait for a GPU once, as one does."""
    place, _, shared = two
    if shared:
        assert not (place / "graphs").exists()
        return
    record = run.read(place / "graphs")
    assert record["replays"] > 20
    assert ["read"] in record["waits"][2:]
    assert all(waits in ([], ["read"]) for waits in record["waits"][2:])
    for key in ("loss", "grad_norm", "eval_loss"):
        found = lines(place / "graphs", key)
        assert found == pytest.approx(lines(one, key), rel=1e-4), key
    ours, theirs = load_file(place / "graphs" / ADAPTER), load_file(one / ADAPTER)
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-5) for name in ours)


@pytest.fixture(scope="module")
def in_4_bits(tmp_path_factory):
    """A model's folder, and the run of one process that trains an adapter on it in 4 bits."""
    root = tmp_path_factory.mktemp("nf4")
    base = tiny.folder("gemma3_text", root / "base", hidden_size=128, head_dim=64)
    toy.go(root / "run", rows=21, epochs=1, nf4=str(base))
    return base, root / "run"


@pytest.mark.parametrize("config", ["accelerate_config.yaml", "accelerate_fsdp.yaml"])
def test_the_shipped_configs_train_on_4_bit_weights_like_one_process(config, in_4_bits, tmp_path):
    base, one = in_4_bits
    file = str(Path(toy.__file__).parents[2] / config)
    launch = ("-m", "accelerate.commands.launch", "--config_file", file, "--main_process_port", "0")
    flags = ("--batch", "2", "--rows", "21", "--dropout", "0", "--epochs", "1", "--nf4", str(base))
    said = finish(spawn(tmp_path / "two", *flags, "--interrupt", "3", launch=launch))
    assert said.count("Resumed after step 4") == 1
    for key in ("loss", "grad_norm", "eval_loss"):
        assert lines(tmp_path / "two", key) == pytest.approx(lines(one, key), rel=1e-4), key
    ours, theirs = load_file(tmp_path / "two" / ADAPTER), load_file(one / ADAPTER)
    assert ours.keys() == theirs.keys()
    # AdamW makes much of a gradient that is next to nothing, whose sign depends on the order of sums
    assert all((ours[n] - theirs[n]).norm() < 1e-3 * theirs[n].norm() for n in ours)
    shared = run.read(tmp_path / "two")["shared"]  # every parameter, the 4-bit ones too, or none
    assert shared["all"] == shared["found"] > 0 if "fsdp" in config else shared["found"] == 0


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """One process that trains all parameters, uninterrupted."""
    folder = tmp_path_factory.mktemp("all") / "run"
    toy.go(folder, full=True, rate=1e-3)
    return folder


def test_two_processes_train_and_save_all_parameters_like_one(two, everything):
    out = two[0] / "all"
    for key in ("loss", "grad_norm", "eval_loss"):
        assert lines(out, key) == pytest.approx(lines(everything, key), rel=1e-4), key
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, everything))
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


def test_all_parameters_stopped_and_resumed_are_bit_identical_to_uninterrupted(
    everything, tmp_path
):
    out, options = tmp_path / "run", {"full": True, "rate": 1e-3}
    with pytest.raises(SystemExit) as stopped:
        toy.go(out, **options, callbacks=[toy.Interrupt(6)])
    assert stopped.value.code == 143
    assert checkpoints.complete(out)[-1].name == "checkpoint-7"
    toy.go(out, **options, resume="last")
    assert lines(out, "loss") == lines(everything, "loss")
    assert lines(out, "eval_loss") == lines(everything, "eval_loss")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, everything))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_older_version_of_fsdp_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(UserError, match="FSDP version 1 keeps no parameter as a matrix"):
        toy.go(tmp_path / "run")


def test_another_number_of_processes_does_not_resume(whole, monkeypatch):
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in (launcher | {"MASTER_PORT": "29500"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="processes: 1 -> 2"):
        toy.go(whole, resume="last", dropout=0.1)


@pytest.mark.parametrize(
    ("flags", "named"),
    [(["--data-seed", "3"], "data: 0 -> 3"), (["--rate", "0.5"], "learning_rate: 0.01 -> 0.5")],
)
def test_a_resume_with_something_else_names_it(flags, named, whole):
    key, value = flags[0][2:].replace("-", "_"), float(flags[1])
    before = (whole / run.RECORD).read_bytes()
    with pytest.raises(UserError, match="was made with something else") as error:
        toy.go(whole, resume="last", dropout=0.1, **{key: int(value) if value > 1 else value})
    assert named in str(error.value)
    assert (whole / run.RECORD).read_bytes() == before


def test_resume_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match="no complete checkpoint; start without --resume"):
        toy.go(tmp_path / "run", resume="last")
    with pytest.raises(UserError, match="nowhere: not a complete checkpoint"):
        toy.go(tmp_path / "run", resume=str(tmp_path / "nowhere"))


def test_a_checkpoint_that_a_kill_left_half_written_is_not_one(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    (tmp_path / "checkpoint-2" / checkpoints.STATE).write_text("{}")
    (tmp_path / ".staging" / "checkpoint-4").mkdir(parents=True)
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["checkpoint-2"]


def test_a_loss_that_is_not_finite_stops_the_run_with_the_step_and_advice(tmp_path):
    with pytest.raises(UserError, match=r"loss became nan at step \d+.*--learning-rate"):
        toy.go(tmp_path / "run", rate=1e18, max_grad_norm=1e30)
    assert not (tmp_path / "run" / ADAPTER).exists()


def test_a_full_disk_while_saving_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    import errno

    saved = checkpoints.write_json

    def full(path, value):
        if "checkpoint-4" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        saved(path, value)

    monkeypatch.setattr(checkpoints, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        toy.go(tmp_path / "run")
    assert [p.name for p in checkpoints.complete(tmp_path / "run")] == ["checkpoint-2"]
    assert not (tmp_path / "run" / "checkpoint-4").exists()


@pytest.mark.parametrize("kind", ["gemma2", "gemma3", "recurrent_gemma"])
def test_other_generations_train(kind, tmp_path):
    toy.go(tmp_path / "run", kind=kind, epochs=3)
    losses = lines(tmp_path / "run", "loss")
    assert sum(losses[-6:]) < sum(losses[:6])


def test_rates_are_of_training_alone(whole):
    trained = json.loads((whole / run.RECORD).read_text())["training"]
    tokens = sum(len(e["input_ids"]) for e in toy.examples(24)) * 2
    assert trained["tokens_per_second"] == pytest.approx(tokens / trained["seconds"])
    assert 0 < trained["mfu"] < 1
    assert isinstance(train.Trained(**trained), train.Trained)


def test_a_run_that_was_killed_after_its_last_step_learns_no_more(whole, tmp_path):
    out = shutil.copytree(whole, tmp_path / "run")
    (out / ADAPTER).unlink()
    toy.go(out, dropout=0.1, resume="last")
    assert (out / ADAPTER).read_bytes() == (whole / ADAPTER).read_bytes()
    assert (out / run.METRICS).read_text() == (whole / run.METRICS).read_text()
    assert checkpoints.complete(out)[-1].name == "checkpoint-12"


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    folder = tmp_path_factory.mktemp("best") / "run"
    return folder, toy.go(folder, **RISING)


def test_the_weights_of_the_best_validation_are_kept_with_their_checkpoint(best):
    folder, trained = best
    valid = lines(folder, "eval_loss")[1:]
    assert trained.best_loss == min(valid) < valid[-1] == trained.eval_loss
    assert trained.kept_step == trained.best_step == 4 * (1 + valid.index(min(valid))) < 24
    kept = folder / f"checkpoint-{trained.kept_step}"
    assert (kept / ADAPTER).read_bytes() == (folder / ADAPTER).read_bytes()
    names = {p.name for p in checkpoints.complete(folder)}
    assert names == {kept.name, "checkpoint-22", "checkpoint-24"}


@pytest.mark.parametrize("step", [6, 14])
def test_the_best_is_the_same_after_a_resume(step, best, tmp_path):
    with pytest.raises(SystemExit):
        toy.go(tmp_path / "run", **RISING, callbacks=[toy.Interrupt(step)])
    trained = toy.go(tmp_path / "run", **RISING, resume="last")
    assert trained.kept_step == best[1].kept_step
    assert trained.best_loss == best[1].best_loss
    ours, theirs = load_file(tmp_path / "run" / ADAPTER), load_file(best[0] / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_best_checkpoint_that_is_gone_is_said_and_another_is_kept(tmp_path, capsys):
    with pytest.raises(SystemExit):
        toy.go(tmp_path / "run", **RISING, callbacks=[toy.Interrupt(14)])
    valid = lines(tmp_path / "run", "eval_loss")[1:]
    first = 4 * (1 + valid.index(min(valid)))
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{first}")
    trained = toy.go(tmp_path / "run", **RISING, resume="last")
    assert (
        f"the checkpoint of step {first}, the best until then, is not whole"
        in capsys.readouterr().out
    )
    assert trained.kept_step != first


def test_two_processes_keep_the_best_too(two):
    from peft import PeftModel

    from ft.kernels import cross_entropy
    from ft.score import likelihood

    place, said, _ = two
    out = place / "best"
    trained = run.read(out)["training"]
    assert said.count(f"kept: step {trained['kept_step']}") == 1
    assert trained["best_loss"] == min(lines(out, "eval_loss")[1:])
    assert trained["best_loss"] < trained["eval_loss"]
    model = PeftModel.from_pretrained(tiny.build("gemma3_text"), str(out))
    cross_entropy.install(model.get_base_model())
    found = likelihood.loss(model, toy.examples(6, seed=1))
    assert found == pytest.approx(trained["best_loss"], rel=1e-5)


def test_all_parameters_go_back_to_the_best_too(tmp_path):
    trained = toy.go(tmp_path / "run", full=True, **(RISING | {"rate": 0.1}))
    assert trained.kept_step < trained.steps
    kept = tmp_path / "run" / f"checkpoint-{trained.kept_step}" / "model.safetensors"
    assert kept.read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()


def falls_then_rises() -> Callable[[], dict[str, float]]:
    """A score of the watched answers that is highest at the third validation after the start."""
    values = iter([1.0, 10.0, 30.0, 20.0, 25.0, 5.0])
    return lambda: {"chrf": next(values)}


def test_the_best_may_be_told_by_a_score(tmp_path, capsys):
    folder = tmp_path / "run"
    trained = toy.go(folder, **RISING, best_by="chrf", scores=falls_then_rises())
    said = lines(folder, "eval_chrf")
    assert said == [1.0, 10.0, 30.0, 20.0, 25.0, 5.0]
    assert (trained.best_by, trained.best_score, trained.kept_step) == ("chrf", 30.0, 12)
    assert trained.best_loss == lines(folder, "eval_loss")[3]
    kept = folder / "checkpoint-12" / ADAPTER
    assert kept.read_bytes() == (folder / ADAPTER).read_bytes()
    assert "kept: step 12, whose validation chrf 30.0 was the best of 24" in capsys.readouterr().out


def test_the_best_by_a_score_is_the_same_after_a_resume(tmp_path):
    scores = falls_then_rises()
    with pytest.raises(SystemExit):
        toy.go(tmp_path, **RISING, best_by="chrf", scores=scores, callbacks=[toy.Interrupt(14)])
    trained = toy.go(tmp_path, **RISING, best_by="chrf", scores=scores, resume="last")
    assert (trained.best_score, trained.kept_step) == (30.0, 12)


def test_a_training_ends_when_nothing_gets_better(best, tmp_path):
    trained = toy.go(tmp_path / "run", **RISING, early_stopping_patience=2)
    assert trained.best_step == best[1].best_step
    assert trained.steps == trained.best_step + 2 * 4


def test_a_run_that_had_ended_early_learns_no_more_when_it_goes_on(tmp_path, capsys):
    ended = toy.go(tmp_path / "run", **RISING, early_stopping_patience=2)
    before = {name: (tmp_path / "run" / name).read_bytes() for name in (ADAPTER, run.METRICS)}
    again = toy.go(tmp_path / "run", **RISING, early_stopping_patience=2, resume="last")
    assert (again.steps, again.kept_step) == (ended.steps, ended.kept_step)
    assert {name: (tmp_path / "run" / name).read_bytes() for name in before} == before
    assert "no validation was better in 2" in capsys.readouterr().out
    more = toy.go(tmp_path / "run", **RISING, early_stopping_patience=3, resume="last")
    assert more.steps == ended.steps + 4


def test_the_only_step_learns(tmp_path):
    trained = toy.go(tmp_path / "run", rows=3, epochs=1, warmup_ratio=0.5)
    assert trained.steps == 1
    assert lines(tmp_path / "run", "learning_rate") == [1e-2]
    moved = load_file(tmp_path / "run" / ADAPTER)
    assert any(value.any() for name, value in moved.items() if "lora_B" in name)


def test_a_run_that_learnt_nothing_says_so_and_fails(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        toy.go(tmp_path / "run", rate=0.0)
    assert stopped.value.code == 1
    assert "nothing was learnt" in capsys.readouterr().out
    assert not (tmp_path / "run" / ADAPTER).exists()


def test_equal_runs_are_equal_byte_for_byte(whole, tmp_path):
    toy.go(tmp_path / "run", dropout=0.1)
    for name in (ADAPTER, "adapter_config.json", "tokenizer.json"):
        assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    listed = json.loads((whole / "adapter_config.json").read_text())["target_modules"]
    assert listed == sorted(listed)
    mode = (whole / run.CONFIG).stat().st_mode
    assert {file.stat().st_mode for file in whole.rglob("*") if file.is_file()} == {mode}


def test_the_recipes_precision_counts_whatever_the_launcher_asks_for(tmp_path, monkeypatch, capsys):
    toy.go(tmp_path / "a", epochs=1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    toy.go(tmp_path / "b", epochs=1)
    assert "mixed precision bf16 of accelerate launch is not used" in capsys.readouterr().out
    assert lines(tmp_path / "b", "loss") == lines(tmp_path / "a", "loss")


LAUNCHER = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:])
print(child.pid, flush=True)
child.wait()
"""


def test_a_launcher_that_is_killed_leaves_no_orphan_but_a_checkpoint(tmp_path):
    out = tmp_path / "run"
    launch = ("-c", LAUNCHER, sys.executable)
    process = spawn(out, "--epochs", "2000", launch=launch, ACCELERATE_MIXED_PRECISION="no")
    wait_for(out / "checkpoint-4", process)
    assert process.stdout
    worker = int(process.stdout.readline())
    process.kill()
    deadline = time.monotonic() + 60
    while (Path("/proc") / str(worker)).exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not (Path("/proc") / str(worker)).exists()
    assert "stopped by SIGTERM; go on with --resume last" in process.communicate()[0]
    newest = checkpoints.complete(out)[-1]
    assert not checkpoints.fault(newest)
    assert not (out / ADAPTER).exists()


def test_a_step_walks_through_no_modules(tmp_path, monkeypatch):
    """A Gemma with an adapter has thousands, so that walking takes longer than starting a step does."""
    from torch.nn import Module

    walks: list[str] = []
    for name in ("named_modules", "train"):
        plain = getattr(Module, name)
        monkeypatch.setattr(
            Module,
            name,
            lambda *a, plain=plain, name=name, **k: walks.append(name) or plain(*a, **k),
        )

    class Step(toy.TrainerCallback):
        def on_step_begin(self, *_, **__) -> None:
            walks.clear()

        def on_step_end(self, *_, **__) -> None:
            assert walks == []

    toy.go(tmp_path / "run", epochs=1, callbacks=[Step()])
    assert walks  # those of the validation and the end


def test_an_adapter_as_one_tensor_learns_what_many_do_and_its_states_fit_no_other(
    whole, tmp_path, monkeypatch
):
    from ft.train.trainer import Trainer

    monkeypatch.setattr(Trainer, "_joins", lambda _: False)
    toy.go(tmp_path / "many", dropout=0.1)
    ours, theirs = load_file(whole / ADAPTER), load_file(tmp_path / "many" / ADAPTER)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    with pytest.raises(SystemExit):
        toy.go(tmp_path / "stopped", callbacks=[toy.Interrupt(2)])
    monkeypatch.undo()
    with pytest.raises(UserError, match="checkpoint-.: the optimizer's state does not fit"):
        toy.go(tmp_path / "stopped", resume="last")
