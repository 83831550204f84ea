"""What `ft check`, `trl sft` and `axolotl preprocess` say of models and data with a known fault, on a CPU.

    python benchmarks/faults.py [path of axolotl, in an environment of its own] > faults.md

TRL has no command that looks before it trains, so it is asked for one step; what counts as said is an error, or a
line of its log that names the fault. Of axolotl it is what it says more than of a model and data without a fault.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support import faults  # noqa: E402

Fault = tuple[str, str, Path, Path, tuple[str, ...], tuple[str, ...]]
CHAT = ("--template", "chat")


def fixtures(bench: faults.Bench) -> Iterator[Fault]:
    """Number, words, model, data, flags of `ft check`, flags of `trl sft`."""
    good, chat = bench.model(), bench.data(faults.chats(), "chat.jsonl")

    def model(name: str, harm: Callable[[Path], Any], kind: str = "gemma3_text") -> Path:
        folder = bench.copy(name, kind)
        harm(folder)
        return folder

    def template(old: str, new: str) -> Callable[[Path], Any]:
        def change(folder: Path) -> None:
            file = folder / "chat_template.jinja"
            file.write_text(file.read_text().replace(old, new))

        return change

    def config(**changes: Any) -> Callable[[Path], Any]:
        return lambda folder: faults.edit(folder / "config.json", **changes)

    def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], Any]:
        return lambda folder: faults.weights(folder, change)

    def nan(found: dict[str, Any]) -> None:
        found["model.layers.2.mlp.up_proj.weight"][3, 3] = float("nan")

    def shuffled(found: dict[str, Any]) -> None:
        found["model.embed_tokens.weight"] = 40 * found["model.embed_tokens.weight"].flip(0)

    def own(found: dict[str, Any]) -> None:
        found["lm_head.weight"] = 0.5 * found["model.embed_tokens.weight"].flip(0)

    def told(row: dict[str, Any], answer: str) -> dict[str, Any]:
        turns = [
            m | {"content": answer} if m["role"] == "assistant" else m for m in row["messages"]
        ]
        return {"messages": turns}

    def data(name: str, records: list[dict[str, Any]]) -> Path:
        return bench.data(records, f"{name}.jsonl")

    chats, two = (
        faults.chats(),
        [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    )
    drops = template("<end_of_turn>\\n' }}", "\\n' }}")
    yield "1", "the template drops the end of a turn", model("drops", drops), chat, CHAT, ()
    control = [*chats, told(chats[0], "Hello.<end_of_turn>")]
    yield "1", "an end of turn inside an answer", good, data("end", control), (*CHAT, "--all"), ()
    no_bos = model("no_bos", lambda f: faults.edit(f / "tokenizer_config.json", bos_token=None))
    yield "2", "a tokenizer without BOS", no_bos, chat, CHAT, ()
    bos = template("{{ bos_token }}", "{{ bos_token }}{{ bos_token }}")
    yield "2", "a chat template with two BOS", model("two_bos", bos), chat, CHAT, ()
    peft = ("--use_peft", "--lora_target_modules", "q_prj")
    yield (
        "5",
        "LoRA on a name that no layer has",
        good,
        chat,
        (*CHAT, "--target-modules", "q_prj"),
        peft,
    )
    yield (
        "6",
        "a weight that is no number",
        model("nan", tensors(nan)),
        chat,
        (*CHAT, "--weights"),
        (),
    )
    ahead = model("ahead", config(use_bidirectional_attention=True))
    yield "10", "a model that looks ahead", ahead, chat, CHAT, ()
    head = model("own", tensors(own), "gemma2")
    yield "12", "an own head under a tied flag", head, chat, CHAT, ()
    stored = model(
        "4bit", config(quantization_config={"load_in_4bit": True, "quant_method": "bitsandbytes"})
    )
    yield "13", "a base stored in 4 bits", stored, chat, CHAT, ()
    unseen = data("unseen", [told(row, "\u200b") for row in chats])
    yield "17", "answers that no one can see", good, unseen, CHAT, ()
    long = data("long", [told(row, "the cat " * 400) for row in chats])
    yield "18", "every answer is cut", good, long, (*CHAT, "--length-policy", "truncate"), ()
    resume = ("--resume_from_checkpoint", str(bench.place / "nothing"))
    yield "19", "a checkpoint that is not there", good, chat, (*CHAT, "--resume", "last"), resume
    roles = data("roles", [*chats, {"messages": two}])
    yield "20", "two user turns in a row", good, roles, CHAT, ()
    wandb = ("--report_to", "wandb")
    yield (
        "21",
        "a tracker that is not installed",
        good,
        chat,
        (*CHAT, "--report-to", "wandb"),
        wandb,
    )
    wrong = model("wrong", tensors(shuffled))
    yield "28", "embeddings in another order", wrong, chat, (*CHAT, "--weights"), ()


def ft(place: Path, model: Path, data: Path, flags: tuple[str, ...]) -> str:
    """The lines of `ft check` that warn, or are errors."""
    file = place / "seen.json"
    file.unlink(missing_ok=True)
    words = ["check", str(ROOT / "recipes" / "dolly_qlora.py"), "--json", str(file)]
    words += ["--model", str(model), "--data", str(data), "--valid-rows", "4", "--test-rows", "4"]
    words += [
        "--output-dir",
        str(place / "ft"),
        "--max-length",
        "256",
        "--precision",
        "fp32",
        *flags,
    ]
    _, out = call([sys.executable, "-m", "ft", *words])
    if not file.is_file():
        return f"nothing was seen: {out.splitlines()[-1]}"
    seen = json.loads(file.read_text())
    said = [
        f"{s['status']} {s['name']}: {s['text']}" for s in seen if s["status"] in ("WARN", "ERROR")
    ]
    return "; ".join(said) or "-"


def trl(place: Path, model: Path, data: Path, flags: tuple[str, ...]) -> str:
    """The last error of `trl sft`, or the loss that it logged."""
    folder = place / f"data-{data.stem}"
    folder.mkdir(exist_ok=True)
    (folder / "train.jsonl").write_bytes(data.read_bytes())
    words = ["--model_name_or_path", str(model), "--dataset_name", str(folder), "--max_steps", "1"]
    words += ["--output_dir", str(place / "trl"), "--per_device_train_batch_size", "2", "--use_cpu"]
    words += [
        "--report_to",
        "none",
        "--logging_steps",
        "1",
        "--bf16",
        "False",
        "--max_length",
        "256",
    ]
    words += ["--save_strategy", "no", "--gradient_checkpointing", "False", *flags]
    status, said = call([sys.executable, "-m", "trl.scripts.sft", *words])
    if status:
        found = [
            line
            for line in said.splitlines()
            if re.match(r"[\w.]*(Error|Exception)\b|.*error: ", line)
        ]
        return f"traceback: {found[-1] if found else said.splitlines()[-1]}"
    loss = re.findall(r"'loss': '?([\w.]+)", said)
    return f"trains; loss {loss[0] if loss else '?'}"


# what axolotl calls the settings that `trl sft` is given
AXOLOTL = {
    "--lora_target_modules": "lora_target_modules",
    "--resume_from_checkpoint": "resume_from_checkpoint",
}


# lines of its log that may name a fault
NAMED = re.compile(
    r"(?:\[(?:WARNING|ERROR)\] \[[\w.]+\] |\[INFO\] \[[\w.]+\] (?=Dropped)|^(?=ends: ))(.*)",
    re.MULTILINE,
)
# runs the command for each of some files, in a process of its own that has imported everything already
EACH = """
import os, sys, time
import axolotl.cli.preprocess
from axolotl.cli.main import cli
for file in sys.argv[1:]:
    print("file", file, flush=True)
    child, until = os.fork(), time.time() + 90
    if child == 0:
        status = 1
        try:
            sys.argv = ["axolotl", "preprocess", file]
            cli(["preprocess", file], standalone_mode=False)
            status = 0
        except BaseException as error:
            print(f"ends: {type(error).__name__}: {error}")
        finally:
            sys.stdout.flush()
            os._exit(status)
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.1)
        if time.time() > until:
            os.kill(child, 9)
            print("ends: no end within 90 s", flush=True)
            until = float("inf")
"""


def axolotl(
    program: str, place: Path, cases: list[tuple[Path, Path, tuple[str, ...]]]
) -> list[set[str]]:
    """The warnings of `axolotl preprocess` for each model, data and flags, or the error that it ends with."""
    files = []
    for number, (model, data, flags) in enumerate(cases):
        files.append(str(place / f"axolotl-{number}.json"))  # which YAML reads as well
        settings = _settings(place, model, data, flags)
        Path(files[-1]).write_text(json.dumps(settings))
    _, said = call(
        [str(Path(program).parent / "python"), "-c", EACH, *files],
        seconds=100 * (len(files) + 3),
        PYTHONPATH="",
        AXOLOTL_DO_NOT_TRACK="1",
    )
    parts = re.split(r"^file .*\n", said, flags=re.MULTILINE)[1:]
    if len(parts) < len(files):
        raise SystemExit(
            f"axolotl preprocess looked at {len(parts)} of {len(files)} files:\n{said[-2000:]}"
        )
    named = (
        part.replace(str(model), "the model")
        for part, (model, *_) in zip(parts, cases, strict=True)
    )
    return [set(NAMED.findall(part)) for part in named]


def _settings(place: Path, model: Path, data: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "base_model": str(model),
        "chat_template": "tokenizer_default",
        "eot_tokens": ["<end_of_turn>"],  # else it warns of every Gemma that the end is not learnt
        "datasets": [{"path": str(data), "ds_type": "json", "type": "chat_template"}],
        "dataset_prepared_path": tempfile.mkdtemp(dir=place),
        "dataset_num_proc": 1,
        "output_dir": str(place / "axolotl"),
        "sequence_len": 256,
        "adapter": "lora",
        "lora_r": 8,
        "lora_alpha": 16,
        "lora_target_linear": "--lora_target_modules" not in flags,
        "micro_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 2e-4,
        "optimizer": "adamw_torch",
        "bf16": False,
        "fp16": False,
        "use_wandb": "wandb" in flags,
    }
    settings |= {AXOLOTL[k]: v for k, v in zip(flags, flags[1:], strict=False) if k in AXOLOTL}
    if "lora_target_modules" in settings:
        settings["lora_target_modules"] = [settings["lora_target_modules"]]
    return settings


def call(words: list[str], seconds: float = 600, **more: str) -> tuple[int, str]:
    """Exit status of a program and what it said, within so many seconds."""
    settings = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        **more,
    }
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=settings,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return 1, f"no end within {seconds:.0f} s"
    return done.returncode, done.stdout


def cell(text: str, most: int = 160) -> str:
    """Text as a cell of a table."""
    flat = " ".join(text.split()).replace("|", "\\|")
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def main() -> None:
    program = sys.argv[1] if len(sys.argv) > 1 else ""
    columns = ["no.", "fault", "`ft check`", "`trl sft`, one step"]
    columns += ["`axolotl preprocess`"] * bool(program)
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        bench = faults.Bench(place)
        known = list(fixtures(bench))
        plain = (bench.model(), bench.data(faults.chats(), "chat.jsonl"), ())
        cases = [plain, *((model, data, its) for _, _, model, data, _, its in known)]
        usual, *more = axolotl(program, place, cases) if program else [set()] * len(cases)
        for (number, words, model, data, flags, its), found in zip(known, more, strict=True):
            looked = ["; ".join(sorted(found - usual)) or "nothing"] if program else []
            said = [ft(place, model, data, flags), trl(place, model, data, its), *looked]
            for folder in (str(place), str(ROOT)):
                said = [text.replace(folder + "/", "") for text in said]
            print(f"| {number} | {words} | {' | '.join(map(cell, said))} |", flush=True)


if __name__ == "__main__":
    main()
