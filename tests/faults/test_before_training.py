"""The known faults of Gemma fine-tunes, each built and shown to `ft check`: the line that names it."""

import ast
import functools
import importlib.metadata
import json
import os
import re
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from support import faults, finished_run, tiny
from support.faults import chats, instructions

from ft import __main__ as cli
from ft.kernels import cache
from ft.plan import check_environment
from ft.runs import checkpoints, record
from ft.text import prompts
from ft.text.template import to_record

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return faults.Bench(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def check(bench, tmp_path, capsys):
    """`ft check` of a recipe on a tiny model; returns its lines by name, and its exit status."""

    def run(*flags, recipe="dolly_qlora", model=None, data=None):
        words = [str(RECIPES / f"{recipe}.py"), "--output-dir", str(tmp_path / "run")]
        if recipe not in ("mtnt_grpo", "mtnt_dpo", "mtnt_reject"):
            words += ["--model", str(model or bench.model()), "--max-length", "256"]
        if recipe == "dolly_qlora":
            given = data or bench.data(instructions(), "good.jsonl")
            words += ["--data", str(given), "--valid-rows", "4", "--test-rows", "4"]
        file = tmp_path / "seen.json"
        status = 0
        try:
            cli.main(["check", *words, "--json", str(file), *map(str, flags)])
        except SystemExit as stopped:
            status = stopped.code
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        seen = json.loads(file.read_text()) if file.exists() else []
        return {e["name"]: f"{e['status']} {e['text']}" for e in seen}, status, said.out + said.err

    return run


def names(line: str, pattern: str) -> None:
    assert re.search(pattern, line), line


def test_a_good_run_passes_and_shows_its_first_example(check):
    seen, status, said = check("--strict")
    assert status == 0
    assert not [line for line in seen.values() if line.startswith(("WARN", "ERROR"))]
    assert re.search(r"⟦.*### End<eos>⟧", said, re.DOTALL)
    assert seen["weights"].startswith("-- not looked at")


# ---- 1 to 9


def test_1_the_end_of_turn_is_learnt(check, bench):
    seen, *_ = check("--template", "chat", data=bench.data(chats(), "chat.jsonl"))
    names(seen["tokens"], r"ok .*80 of 80 answers of a sample end in <end_of_turn>, supervised")
    names(seen["stop"], r"ok \[1, 5\], written at merge and export")
    names(seen["template"], "equals apply_chat_template on 40 rows, also to generate")


@pytest.mark.parametrize("what", ["drops the end", "chatml"])
def test_1_a_template_without_gemmas_end_is_refused(check, bench, what):
    folder = bench.copy(f"template {what}".replace(" ", "_"))
    file = folder / "chat_template.jinja"
    text = file.read_text().replace("<end_of_turn>\\n' }}", "\\n' }}")
    if what == "chatml":
        text = (
            "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + "
            "m['content'] + '<|im_end|>\\n' }}{% endfor %}"
        )
    file.write_text(text)
    seen, status, _ = check("--template", "chat", model=folder)
    names(seen["template"], "ERROR the tokenizer's chat template is not one of turns")
    assert status == 2


def test_1_turns_of_a_base_model_are_warned_of(check, bench):
    base = bench.copy("gemma-3-4b")
    seen, status, _ = check("--template", "chat", "--strict", model=base)
    names(seen["template"], "WARN .*base model: it has never seen the turns' <end_of_turn>")
    assert status == 1


def test_1_an_end_inside_an_answer_is_found_with_its_line(check, bench):
    bad = {"role": "assistant", "content": "Hello.<end_of_turn>"}
    file = bench.data([*chats(), {"messages": [{"role": "user", "content": "Hi"}, bad]}], "e.jsonl")
    seen, status, _ = check("--all", data=file)
    names(seen["tokens"], r"ERROR .*e\.jsonl:41, message 2 .*'<end_of_turn>'")
    assert status == 2


def test_2_a_tokenizer_without_bos(check, bench):
    folder = bench.copy("no_bos")
    faults.edit(folder / "tokenizer_config.json", bos_token=None)
    seen, status, _ = check(model=folder)
    names(seen["template"], "ERROR the tokenizer has no BOS token")
    assert status == 2


@pytest.mark.parametrize("times", [0, 2])
def test_2_a_chat_template_with_no_or_two_bos(check, bench, times):
    folder = bench.copy(f"bos_{times}")
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}" * times, 1))
    seen, status, _ = check("--template", "chat", model=folder)
    names(seen["template"], "ERROR the tokenizer's chat template")
    assert status == 2


def test_2_one_bos_in_every_row(check):
    names(check()[0]["tokens"], "ok one BOS in every row")


def test_3_text_needs_no_token_type_ids(check, bench):
    names(check(model=bench.model("gemma3"))[0]["batches"], "ok .*no token_type_ids needed")


def test_4_the_image_tower_is_left_out(check, bench):
    names(check(model=bench.model("gemma3"))[0]["model"], "ok .*image tower left out")


def test_5_lora_stays_off_the_towers(check, bench):
    names(check(model=bench.model("gemma3"))[0]["lora"], r"ok 28 layers .*none in a tower")


def test_5_a_target_that_matches_nothing(check):
    seen, status, _ = check("--lora-target-modules", "q_prj")
    names(seen["lora"], "ERROR .*q_prj: no linear layer .*Did you mean 'q_proj'")
    seen, status, _ = check("--lora-target-modules=")
    names(seen["lora"], "ERROR no LoRA targets")
    assert status == 2


def test_6_never_fp16(check):
    names(check()[0]["numbers"], "ok .*fp32 or bf16, never fp16")
    _, status, said = check("--precision", "fp16")
    assert status == 2
    assert "precision" in said


def test_6_weights_that_are_no_numbers(check, bench):
    folder = bench.copy("nan")

    def harm(found):
        found["model.layers.2.mlp.up_proj.weight"][3, 3] = float("nan")

    faults.weights(folder, harm)
    seen, status, _ = check("--weights", "--precision", "fp32", model=folder)
    names(seen["start loss"], r"ERROR nan: the weight model\.layers\.2\.mlp\.up_proj\.weight holds")
    assert status == 2


def test_6_a_module_that_overflows_is_named_and_fp32_not_advised_to_fp32(check, bench):
    folder = bench.copy("inf")

    def harm(found):
        found["model.norm.weight"] += 3e38

    faults.weights(folder, harm)
    seen, _, _ = check("--weights", "--precision", "fp32", model=folder)
    names(seen["start loss"], r"the output of model.norm is the first that is not")
    names(seen["start loss"], "the numbers are fp32 already")


def test_7_attention_that_keeps_the_soft_cap(check, bench):
    names(check(model=bench.model("gemma2"))[0]["numbers"], "eager attention.*caps: 50 on att")
    names(check("--attention", "flash")[0]["numbers"], "^ok flash attention, as asked; soft caps")


def test_7_the_attention_that_is_asked_for_is_the_one_that_is_looked_at(check, bench):
    flags = ("--weights", "--precision", "fp32", "--attention", "sdpa")
    seen, status, _ = check(*flags, model=bench.model("gemma2"))
    names(seen["weights"], "ERROR attention sdpa would leave out the soft cap")
    assert status == 2


@pytest.mark.parametrize("kind", ["gemma3_text", "gemma2", "gemma4_text"])
def test_8_9_10_what_is_trained_is_what_is_used(check, bench, kind):
    seen, status, _ = check("--weights", "--precision", "fp32", model=bench.model(kind))
    for name in ("start loss", "packed", "cached", "accumulate", "merged"):
        names(seen[name], "^ok ")
    assert status == 0


def test_8_a_state_is_compared_as_keys_and_values_are(check, bench, monkeypatch):
    from ft.kernels import recurrent

    flags = ("--weights", "--precision", "fp32")
    model = bench.model("recurrent_gemma")
    names(check(*flags, model=model)[0]["cached"], "^ok training .*, generation with its cache")
    whole = recurrent.RgLru.forward
    forget = lambda self, x, at, state=None: whole(self, x, at, None)  # noqa: E731
    monkeypatch.setattr(recurrent.RgLru, "forward", forget)
    seen, status, _ = check(*flags, model=model)
    names(seen["cached"], "^ERROR .* they differ")
    assert status == 2


def test_10_a_model_that_looks_ahead_is_refused(check, bench):
    folder = bench.copy("ahead")
    faults.edit(folder / "config.json", use_bidirectional_attention=True)
    seen, status, _ = check(model=folder)
    names(seen["model"], "ERROR .*use_bidirectional_attention: its text looks ahead")
    assert status == 2


# ---- 11 to 19


def test_11_memory_counts_the_vocabulary(check):
    flags = ("--model", "google/gemma-2-9b-it", "--gpu", "8GB", "--offline")
    seen, status, _ = check(*flags)
    names(seen.get("memory", ""), "ERROR peak .* will not fit. What would")
    assert status == 2


def test_12_an_own_head_under_a_tied_flag(check, bench):
    folder = bench.copy("own_head", "gemma2")

    def own(found):
        found["lm_head.weight"] = 0.5 * found["model.embed_tokens.weight"].flip(0)

    faults.weights(folder, own)
    names(check(model=folder)[0]["model"], "WARN .*own head under a tied flag")
    names(check(model=bench.model("gemma2"))[0]["model"], "ok .*tied head")


def test_13_a_base_that_is_stored_in_four_bits(check, bench):
    folder = bench.copy("stored_4bit")
    faults.edit(folder / "config.json", quantization_config={"load_in_4bit": True})
    seen, status, _ = check(model=folder)
    names(seen["model"], "ERROR .*stored quantised, and an adapter could not be merged")
    assert status == 2


def test_14_what_is_merged_can_be_loaded_is_proven_with_the_weights(check, bench):
    seen, *_ = check("--weights", "--precision", "fp32")
    names(seen["merged"], "ok after a step, adapter and merged model compared on")


@pytest.mark.parametrize(
    ("package", "version"),
    [("transformers", "4.57.1"), ("transformers", "5.6.0"), ("peft", "0.15.2"), ("trl", "0.15.2")],
)
def test_15_and_21_packages_that_break_adapters_or_training(check, monkeypatch, package, version):
    real = importlib.metadata.version
    monkeypatch.setattr(
        importlib.metadata, "version", lambda name: version if name == package else real(name)
    )
    seen, status, _ = check()
    names(seen["versions"], f"ERROR {package} {version} is older than .*pip install {package}==")
    assert status == 2


def test_16_gguf_needs_a_tokenizer_model(check, bench):
    names(check(model=bench.model("gguf"))[0]["export"], "ok .*GGUF: possible")
    names(check()[0]["export"], "ok .*GGUF: not without a tokenizer.model")
    names(check(model=bench.model("gemma4_text"))[0]["export"], "ok .*GGUF: possible")
    names(
        check(model=bench.model("recurrent_gemma"))[0]["export"], "ok .*GGUF: not of RecurrentGemma"
    )


@pytest.mark.parametrize("answer", ["\u200b", "\u2060 \u00ad"])
def test_17_answers_that_no_one_can_see(check, bench, answer):
    blank = [row | {"response": answer} for row in instructions()]
    seen, status, _ = check(data=bench.data(blank, "blank.jsonl"))
    names(seen["data"], r"(?s)ERROR .*blank\.jsonl:1: response has no character that can be seen")
    assert status == 2
    one = [*instructions(), instructions()[0] | {"response": answer}]
    seen, *_ = check(
        "--all",
        data=bench.data(one, "one.jsonl"),
    )
    names(
        seen["data"], r"(?s)ERROR 1 bad row .*one\.jsonl:41: response has no character that can be"
    )


def test_17_a_template_whose_answer_is_an_absent_field(check, bench, tmp_path):
    file = tmp_path / "odd.yaml"
    file.write_text('prompt: "{instruction}\\n"\ncompletion: "{context}"\n')
    seen, status, _ = check("--template", file)
    names(seen["supervised"], "ERROR no answer of 32 rows has a character")
    assert status == 2


@pytest.mark.parametrize(("policy", "fate"), [("drop", "DROPPED"), ("truncate", "LOSE THEIR END")])
def test_18_what_the_length_cuts(check, bench, policy, fate):
    long = [
        row | {"response": "the cat " * (60 * (i % 2) + 1)} for i, row in enumerate(instructions())
    ]
    data = bench.data(long, "long.jsonl")
    seen, status, _ = check("--length-policy", policy, data=data)
    names(
        seen["length"], rf"WARN .*5\d\.\d% over 256 would .*{fate}|WARN .*% over 256 would .*{fate}"
    )
    names(seen["length"], r"\(.*: 0%\)")
    assert status == 0
    seen, status, _ = check("--length-policy", "error", data=data)
    names(seen["length"], "ERROR .*refused")
    assert status == 2


def test_18_nothing_is_short_enough(check, bench):
    long = [row | {"response": "the cat " * 90} for row in instructions()]
    seen, status, _ = check(data=bench.data(long, "long.jsonl"))
    names(seen["length"], "ERROR .*100% over 256 would be DROPPED")
    assert status == 2


def test_18_beyond_the_sample_and_in_each_split(check, bench):
    long = [
        row | {"response": f"{i} " + "the cat " * 90} for i, row in enumerate(instructions(700))
    ]
    seen, status, _ = check(data=bench.data(long, "all_long.jsonl"))
    names(seen["length"], "ERROR all 692 train rows have more than max_length=256 tokens")
    assert status == 2
    one = [*long[:39], long[0] | {"response": "Fine."}]
    seen, status, _ = check(data=bench.data(one, "one_short.jsonl"))
    names(seen["length"], "ERROR all 4 (valid|test) rows have more than max_length=256")
    assert status == 2


def test_19_no_checkpoint_to_go_on_from(check):
    seen, status, _ = check("--resume", "last")
    names(seen["resume"], "ERROR --resume last: .* holds no complete checkpoint")
    assert status == 2


def test_19_a_checkpoint_of_other_settings(check, tmp_path):
    place = tmp_path / "run" / "checkpoint-2"
    place.mkdir(parents=True)
    checkpoints.seal(place, {"learning_rate": 0.5, "unknown yet": 1})
    (tmp_path / "run" / "config.yaml").write_text("{}")
    seen, status, _ = check("--resume", "last")
    names(seen["resume"], "ERROR .*was made with something else(.|\n)*learning_rate: 0.5 -> 0.0002")
    assert status == 2
    differing = re.findall(r"^  (\S+): \(absent\) -> (.*)$", seen["resume"], re.MULTILINE)
    known = {name: ast.literal_eval(value) for name, value in differing}
    state = known | {"learning_rate": 0.0002, "model.precision": "bf16"}  # which is not known yet
    (place / checkpoints.STATE).unlink()
    checkpoints.seal(place, state)
    names(check("--resume", "last")[0]["resume"], "ok from checkpoint-2: same data")


# ---- 20 to 28


BAD = [
    [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "hello"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}],
    [{"role": "user", "content": "a"}, {"role": "tool", "content": "42"}],
    [{"role": "user", "content": "a"}],
]


def test_20_roles_out_of_order_are_named_by_line(check, bench):
    file = bench.data([*chats(), *({"messages": bad} for bad in BAD)], "roles.jsonl")
    seen, status, _ = check("--template", "chat", data=file)
    for line in range(41, 46):
        names(seen["data"], rf"ERROR (.|\n)*roles\.jsonl:{line}: ")
    assert status == 2


def test_20_a_system_message_where_the_model_has_none(check, bench):
    folder = bench.copy("refuses_system", "gemma2")
    file = folder / "chat_template.jinja"
    refuse = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    file.write_text(file.read_text().replace("{{ bos_token }}", "{{ bos_token }}" + refuse, 1))
    system = [
        {"messages": [{"role": "system", "content": "Be short."}, *r["messages"]]} for r in chats()
    ]
    data = bench.data(system, "system.jsonl")
    seen, status, _ = check("--template", "chat", model=folder, data=data)
    names(seen["template"], "system messages are put before the first question")
    assert status == 0


def test_22_all_of_this_runs_on_a_cpu(check):
    names(check()[0]["memory"], "ok peak .* GiB free here, on the CPU")


def test_23_recurrent_gemma_is_padded_on_the_right(check, bench):
    model = bench.model("recurrent_gemma")
    seen, status, _ = check("--max-steps", "1", recipe="mtnt_recurrent", model=model)
    names(seen["model"], "ok RecurrentGemma, padded on the right only")


def test_24_an_image_column_that_text_training_would_ignore(check, bench):
    pictures = [
        {"image": f"{i}.png", "prompt": f"What {i}?", "completion": "A cat."} for i in range(40)
    ]
    seen, *_ = check(data=bench.data(pictures, "image.jsonl"))
    names(seen["data"], r"ERROR (.|\n)*image\.jsonl:1: it has image: .*recipes/vision_lora")


def test_24_images_and_their_marks(check, bench, tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("RGB", (16, 16)).save(bench.place / f"p{i}.png")
    two = [
        {"images": ["p0.png", "p1.png"], "prompt": f"<image> What {i}?", "completion": "A cat."}
        for i in range(12)
    ]
    data = bench.data(two, "marks.jsonl")
    flags = ("--data", data, "--valid-rows", "2", "--test-rows", "2")
    seen, status, _ = check(*flags, recipe="vision_lora", model=bench.model("gemma3"))
    names(seen["data"], r"ERROR (.|\n)*marks\.jsonl:1: .*<image>")
    assert status == 2


PAID = """
def zero(completions, **_): return [0.0] * len(completions)
def brackets(completions, **_): return [float(c.startswith("[")) for c in completions]
def longest(completions, **_): return [len(c) for c in completions]
def column(completions, answer, **_): return [0.0 for _ in completions]
def broken(completions, **_): return [1 / 0 for _ in completions]
def nan(completions, **_): return [float("nan") for _ in completions]
"""


@pytest.fixture(scope="module")
def begun(bench):
    """A finished run, prompts for what goes on from it, and rewards in a file."""
    folder = finished_run.write_real(bench.place / "begun")
    faults.edit(
        folder / "run.json",
        template=to_record(prompts.INSTRUCTION["dolly"]),
        task="instructions",
    )
    base = bench.place / "base"
    (folder / "config.yaml").write_text(f"model_name_or_path: {base}\n")
    rewards = bench.place / "paid.py"
    rewards.write_text(PAID)
    rows = [{"prompt": f"Say {i}.", "response": f"It is {i}" + "!" * i} for i in range(20)]
    return ["--run", folder, "--data", bench.data(rows, "asked.jsonl"), "--eval-limit", 4], rewards


@pytest.mark.parametrize(
    ("reward", "line"),
    [
        ("chrf", r"ok chrf is 0(\.\d+)? to 1 for 24 answers tried; stops beyond 0\.5 nats"),
        ("{}:longest", r"ok .*:longest is 1 to \d+ for 24 answers tried; stops beyond"),
        ("{}:zero", "WARN .*:zero is 0 for all 24 answers tried, .* nothing is learnt"),
        ("{}:brackets", "WARN .*:brackets is 0 for all 24 answers tried"),
        ("{}:column", "ERROR reward .*:column' asks for 'answer'; there are prompts, completions"),
        ("{}:broken", "ERROR reward .*:broken' raised ZeroDivisionError: division by zero; it was"),
        ("{}:nan", "ERROR reward .*:nan' is nan for the answer 'It is"),
        ("{}:non", "ERROR reward .*has no function 'non'.*nan"),
        ("number", "WARN number is 0 for all 24 answers tried, references among them"),
        ("chrff", "ERROR reward 'chrff' is neither `chrf` nor a reward model's folder"),
    ],
)
def test_25_a_reward_that_teaches_nothing_is_seen_before(check, begun, reward, line):
    flags, file = begun
    seen, status, _ = check(*flags, "--reward", reward.format(file), recipe="mtnt_grpo")
    names(seen["rewards"], line)
    assert status == (2 if seen["rewards"].startswith("ERROR") else 0)


def test_25_a_run_to_start_from_is_there(check, tmp_path):
    run = tmp_path / "start"
    _, status, said = check("--run", run, recipe="mtnt_grpo")
    assert status == 2
    assert f"there is no folder {run} here" in said or "neither a folder" in said


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"task": "text"}, "goes on with texts and answers nothing"),
        ({"task": "images"}, "answers about images"),
        ({"template": None}, "names no template: that run ended before"),
        ({}, "name no data: give --data"),
    ],
)
@pytest.mark.parametrize("recipe", ["mtnt_grpo", "mtnt_reject", "mtnt_dpo"])
def test_25_a_run_that_cannot_be_started_from(check, begun, bench, recipe, changes, line):
    folder = shutil.copytree(begun[0][1], bench.place / "changed", dirs_exist_ok=True)
    record = json.loads((folder / "run.json").read_text()) | changes
    kept = {key: value for key, value in record.items() if value is not None}
    (folder / "run.json").write_text(json.dumps(kept))
    _, status, said = check("--run", folder, recipe=recipe)
    assert status == 2
    names(said, line)


def test_26_numerics_of_gemma(check, bench):
    folder = bench.copy("gelu", "gemma")
    faults.edit(folder / "config.json", hidden_act="gelu", hidden_activation=None)
    seen, *_ = check(model=folder)
    names(seen["model"], "tanh-GELU")
    names(seen["numbers"], "positions and norms in fp32")


def test_27_memory_and_time_on_a_card(check):
    took = r"ok peak .* of 24\.0 GiB, .*; 8 steps in under a minute on an rtx4090"
    names(check("--gpu", "rtx4090", "--max-steps", "8")[0]["memory"], took)
    took = r"ok peak .* of 24\.0 GiB, .*; 5,000,000 steps in about \d+\.\d h on an rtx4090"
    names(check("--gpu", "rtx4090", "--max-steps", "5000000")[0]["memory"], took)
    names(check("--gpu", "24GB")[0]["memory"], "ok peak .* of 24.0 GiB")


def test_28_a_start_that_no_template_explains(check, bench):
    folder = bench.copy("wrong_rows")

    def harm(found):
        key = "model.embed_tokens.weight"
        found[key] = 40 * found[key].flip(0)

    faults.weights(folder, harm)
    flags = ("--weights", "--precision", "fp32")
    seen, status, _ = check(*flags, model=folder)
    names(seen["start loss"], r"ERROR the loss is \d\d+\.\d+ nats a token before the first step")
    assert status == 2
    seen, status, _ = check(*flags, "--accept-loss", model=folder)
    names(seen["start loss"], "WARN .* Accepted")


# ---- found in use


def test_control_tokens_are_found_beyond_the_sample(check, bench):
    rows = instructions(1200)
    for line in range(600, 660):
        rows[line]["response"] += "<eos>"
    data = bench.data(rows, "control.jsonl")
    seen, status, _ = check(data=data)
    names(seen["tokens"], r"ERROR .*control\.jsonl:6\d\d, response: .*<eos>.* \(and \d\d more rows")
    assert status == 2
    seen, status, _ = check("--on-bad-row", "skip", data=data)
    names(seen["tokens"], "ok .*; 60 rows that hold a control token are skipped")
    assert status == 0


def test_a_full_disk_is_seen_before(check, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 300_000))
    seen, status, _ = check()
    names(seen["disk"], "ERROR needs .*, 0.3 MB free in")
    assert status == 2


@pytest.mark.parametrize("place", ["no/such/folder/seen.json", "."])
def test_a_file_for_what_was_seen_is_tried_before(check, tmp_path, place):
    seen, status, said = check("--json", tmp_path / place)
    assert (seen, status) == ({}, 2)
    names(said, "there is no folder|is a folder; name a file")


def test_what_was_proven_is_kept_and_a_cache_that_cannot_be_written_ends_nothing(
    check, tmp_path, monkeypatch
):
    flags = ("--weights", "--precision", "fp32")
    for place, words in (
        (tmp_path / "here", "carries these"),
        (tmp_path / "seen.json" / "x", "FT_CACHE"),
    ):
        monkeypatch.setenv("FT_CACHE", str(place))
        seen, status, said = check(*flags)
        assert status == 0
        names(seen["merged"], "^ok ")
        names(said, words)
    (file,) = (tmp_path / "here" / "checks").iterdir()
    assert {line["name"] for line in json.loads(file.read_text())["seen"]} <= {*seen}


def test_offline_a_model_that_is_not_in_the_cache_is_no_proof(check):
    flags = ("--model", "google/gemma-2-2b-it", "--gpu", "24GB", "--offline")
    seen, status, _ = check(*flags, "--strict")
    names(seen["model"], "WARN google/gemma-2-2b-it is not in the cache, .* its sizes are from the")
    names(seen["memory"], "ok peak .* of 24.0 GiB, in the [a-z ]+$")
    assert status == 1


def test_a_tracker_that_is_not_installed(check):
    seen, status, _ = check("--report-to", "wandb")
    names(seen["versions"], "ERROR --report-to wandb needs wandb, which is not installed")
    seen, status, _ = check("--report-to", "wandbb")
    names(seen["versions"], "ERROR --report-to wandbb: allowed are .*Did you mean 'wandb'")
    assert status == 2


def test_several_trackers(check, monkeypatch):
    monkeypatch.setattr(check_environment, "TRACKERS", ("json", "csv", "wandb"))
    seen, status, _ = check("--report-to", "json, csv,none")
    names(seen["versions"], "ok")
    assert status == 0
    seen, status, _ = check("--report-to", "json, wandb")
    names(seen["versions"], "ERROR --report-to wandb needs wandb, which is not installed")
    seen, status, _ = check("--report-to", "all,json")
    names(seen["versions"], "ERROR --report-to all: allowed are json, csv, wandb, none")
    assert [*map(record.trackers, ("json, csv,json", "none", "", "none,csv"))] == [
        ["json", "csv"],
        [],
        [],
        ["csv"],
    ]


def test_a_push_without_a_token_or_with_a_bad_name(check, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    seen, status, _ = check("--push-to-hub", "me/mine")
    names(seen["hub"], "ERROR --push-to-hub me/mine: not logged in")
    seen, status, _ = check("--push-to-hub", "not a name")
    names(seen["hub"], "ERROR 'not a name' is not a name on the Hub")
    assert status == 2


def test_conversations_are_counted_by_ft_plan():
    from ft.plan import time

    assert time.tokens_of(chats(40)) == pytest.approx(
        sum(len(m["content"]) for r in chats(40) for m in r["messages"]) / time.CHARACTERS
    )


def test_duplicates_and_overlap_are_counted(check, bench):
    rows = [*instructions(), *instructions()[:15]]
    seen, status, _ = check("--strict", data=bench.data(rows, "dup.jsonl"))
    names(seen["data"], r"WARN .*\d+ duplicates; \d+ training rows ask a held-out question")
    assert status == 1


def test_stop_strings_inside_answers(check, bench):
    rows = [row | {"response": "a ### End b"} for row in instructions()]
    data = bench.data(rows, "stop.jsonl")
    names(check(data=data)[0]["data"], "ERROR (.|\n)*stop.jsonl:1")
    seen, status, _ = check("--allow-stop-in-answer", data=data)
    names(seen["stop"], "WARN .*40 answers .*stop.jsonl:")
    assert status == 0


def test_nothing_is_asked_of_a_hub_that_does_not_answer(check, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    before = os.times()
    seen, status, _ = check("--data", "someone/something")
    names(seen["hub"], "WARN no answer within 3 s")
    names(seen["data"], "ERROR someone/something is no file here")
    assert status == 2
    assert os.times().elapsed - before.elapsed < 10
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(
    "kind", ["gemma", "gemma2", "gemma3_text", "gemma3n", "gemma4_text", "gemma4_moe"]
)
def test_the_adapted_layers_are_those_of_the_model(bench, kind):
    from ft.models import parameters
    from ft.plan import check_model, shapes

    model = tiny.build(kind)
    shape = shapes.from_config(model.config.to_dict())
    for targets in (["auto"], ["q_proj", "v_proj"]):
        assert len(check_model.adapted(shape, targets)) == len(parameters.select(model, targets))


@functools.cache
def exact() -> dict[str, str]:
    text = (RECIPES.parent / "constraints.txt").read_text()
    return dict(line.split("==") for line in text.splitlines() if "==" in line and line[0] != "#")


def test_the_tested_set_is_that_of_the_constraints():
    import tomllib

    from ft.plan.check_environment import TESTED

    project = tomllib.loads((RECIPES.parent / "pyproject.toml").read_text())["project"]
    bounds = dict(d.split(">=") for d in project["dependencies"])
    for name, (oldest, tested) in TESTED.items():
        low, high = bounds[name].split(",<")
        major, minor = map(int, tested.split(".")[:2])
        assert (low, exact()[name]) == (oldest, tested), name
        assert high == (f"{major + 1}" if name == "torch" else f"{major}.{minor + 1}"), name
    assert tuple(map(int, TESTED["transformers"][1].split(".")[:2])) == cache.NEWEST
