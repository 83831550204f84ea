"""Adapters made elsewhere: opened by every command as a run is, with the numbers of plain PEFT, or refused by name."""

import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from support import elsewhere, tiny, tiny_gguf

from ft import __main__ as cli
from ft.errors import UserError
from ft.generate import answers
from ft.generate.samplers import Greedy
from ft.runs import merge, opened
from ft.runs.elsewhere import chat_template_of
from ft.text import prompts

# PEFT and its own names, and tied weights that an adapter brings: what these tests are about
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings"),
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`"),
    # TRL 1.16 asks transformers 5.24 by an older name
    pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning"),
]
SHORT = ["--max-new-tokens", "6", "--precision", "fp32"]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"layers.1.self_attn.q_proj": 2}, "alpha_pattern": {"down_proj": 3}},
    "some layers": {"layers_to_transform": [1, 2]},
    "a norm": {"modules_to_save": ["norm"]},
    "the head": {"modules_to_save": ["lm_head"]},
    "the embedding": {"modules_to_save": ["embed_tokens"]},
    "both": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "both, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "some tokens": {"trainable_token_indices": [7, 30]},
    "pissa": {"init_lora_weights": "pissa"},
    "olora, dora": {"init_lora_weights": "olora", "use_dora": True, "use_rslora": True},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny.folder("gemma3_text", tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def translator(base: Path, tmp_path_factory) -> Path:
    return elsewhere.by_peft(base, tmp_path_factory.mktemp("made") / "adapter")


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_answers_are_those_of_peft_and_merged_stays_so(
    kind: str, base: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    made = elsewhere.by_peft(base, tmp_path / "a", **KINDS[kind])
    alone = elsewhere.plain(base, made)
    wanted = elsewhere.logits(alone)
    assert (wanted - elsewhere.logits(tiny.build("gemma3_text"))).abs().max() > 0.01
    found = opened.load(opened.finished(made, template="en-fr"), "fp32")
    torch.testing.assert_close(elsewhere.logits(found.model), wanted, rtol=0, atol=1e-5)
    ids = elsewhere.IDS[0].tolist()
    ((said,),) = answers.generate(found.model, found.tokenizer, [ids], Greedy(), max_new_tokens=8)
    same = alone.generate(elsewhere.IDS, max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert list(said.ids) == same[: len(said.ids)]

    difference = merge.merge_run(opened.finished(made), tmp_path / "out")
    assert difference.kl < 1e-6
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(elsewhere.logits(merged), wanted, rtol=0, atol=1e-4)
    tied = json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert tied == (kind not in ("the head", "the embedding", "both"))


@pytest.mark.parametrize("kind", KINDS)
def test_with_its_adapter_off_it_is_the_base(kind: str, base: Path, tmp_path: Path) -> None:
    made = elsewhere.by_peft(base, tmp_path / "a", **KINDS[kind])
    wanted = elsewhere.logits(tiny.build("gemma3_text"))
    with opened.load(opened.finished(made, template="en-fr"), "fp32").as_base() as plain:
        torch.testing.assert_close(elsewhere.logits(plain), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("start", ["pissa_niter_4", "loftq", "corda", "lora_ga", "of tomorrow"])
def test_a_start_that_is_lost_is_refused(start: str, translator: Path, tmp_path: Path) -> None:
    made = shutil.copytree(translator, tmp_path / "a")
    elsewhere.edit(made, init_lora_weights=start)
    with pytest.raises(UserError, match=rf"adapter_config.json: init_lora_weights is '{start}'"):
        opened.finished(made, template="en-fr")


@pytest.mark.parametrize(("start", "precision"), [("pissa", "nf4"), ("olora", "int8")])
def test_a_start_within_the_base_needs_its_weights(
    start: str, precision: str, base: Path, tmp_path: Path
) -> None:
    made = elsewhere.by_peft(base, tmp_path / "a", init_lora_weights=start)
    with pytest.raises(UserError, match=rf"\({start}\).*--precision bf16 or fp32"):
        opened.load(opened.finished(made, template="en-fr"), precision)


@pytest.mark.parametrize("maker", ["by_peft", "by_trl", "by_unsloth", "by_axolotl"])
def test_every_command_takes_it(
    maker: str, base: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    made = getattr(elsewhere, maker)(base, tmp_path / "a")
    ours = ["--model", str(base)] if maker == "by_unsloth" else []
    alone = elsewhere.plain(base, made)
    row = {"source": "Hello", "target": "Bonjour"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row | {"en": "Hello", "fr": "Bonjour"}) + "\n")
    (tmp_path / "asked.jsonl").write_text('{"instruction": "Hello", "response": "Bonjour"}\n')

    capsys.readouterr()  # what a trainer said

    def said(*words: str) -> str:
        cli.main([*words, *ours])
        return capsys.readouterr().out

    asked = prompts.translation("French")
    wanted = elsewhere.answer(alone, asked, row, 6)
    assert said("translate", str(made), "Hello", "--template", "en-fr", *SHORT) == f"{wanted}\n"

    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\n"))
    turns = prompts.by_name("chat", tiny.tokenizer())
    wanted = elsewhere.answer(alone, turns, {"instruction": "Hello"}, 6)
    assert wanted
    assert wanted in said("chat", str(made), "--template", "chat", *SHORT)

    data = ["--data", str(tmp_path / "pairs.jsonl"), "--json", str(tmp_path / "out.json")]
    said("eval", str(made), "--template", "en-fr", *data, *SHORT)
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["tuned"]["loss"] == pytest.approx(_loss(alone, asked, row), rel=1e-4)
    with alone.disable_adapter():
        assert found["base"]["loss"] == pytest.approx(_loss(alone, asked, row), rel=1e-4)
    data = ["--data", str(tmp_path / "asked.jsonl")]
    assert "ROUGE-L" in said("eval", str(made), "--template", "chat", *data, *SHORT)

    assert "compared on" in said("merge", str(made), str(tmp_path / "merged"), "--template", "chat")
    ends = json.loads((tmp_path / "merged" / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [1, 5]  # <end_of_turn>, where the template ends
    assert "perplexity" in said("score", str(made), "--text", "bonjour", "--precision", "fp32")
    assert said("generate", str(made), "Hello", "--template", "book", *SHORT)
    assert "trains" in said("summary", str(made))


def _loss(model, asked, row) -> float:
    """Of the completion and its end, a token."""
    tokenizer = tiny.tokenizer()
    start = tokenizer(asked.prompt_for(row)).input_ids
    rest = [*tokenizer(row["target"], add_special_tokens=False).input_ids, 1]
    with torch.no_grad():
        found = model(torch.tensor([start + rest]), use_cache=False).logits[0].log_softmax(-1)
    places = range(len(start) - 1, len(start) + len(rest) - 1)
    return -sum(found[at, token].item() for at, token in zip(places, rest, strict=True)) / len(rest)


def test_a_yaml_template_brings_fields_and_stops(
    base: Path, translator: Path, tmp_path, capsys
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("prompt: 'Say {source} in French: '\ncompletion: '{target}'\nstop: ['e']\n")
    cli.main(["translate", str(translator), "Hello", "--template", str(file), *SHORT])
    said = capsys.readouterr().out.removesuffix("\n")
    alone, row = elsewhere.plain(base, translator), {"source": "Hello"}
    assert said == elsewhere.answer(alone, prompts.from_yaml(file), row, 6)
    assert opened.finished(translator, template=str(file)).template.stop == ("e",)
    (tmp_path / "p.jsonl").write_text('{"source": "Hello", "target": "Bonjour"}\n')
    with_data = [
        "eval",
        str(translator),
        "--template",
        str(file),
        "--data",
        str(tmp_path / "p.jsonl"),
    ]
    with pytest.raises(SystemExit):
        cli.main([*with_data, *SHORT])
    assert "--language-pair: 'own' does not say" in capsys.readouterr().err
    cli.main([*with_data, "--language-pair", "en-fr", *SHORT])
    assert "chrF" in capsys.readouterr().out


WORDS = {
    "translate": ["Hello"],
    "chat": [],
    "eval": ["--data", "sample"],
    "serve": ["--port", "0"],
    "solve": ["How many?"],
}


@pytest.mark.parametrize("verb", WORDS)
def test_a_template_is_asked_for_with_those_that_are_allowed(verb, translator, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([verb, str(translator), *WORDS[verb]])
    said = capsys.readouterr().err
    assert stopped.value.code == 2
    assert (
        "give --template, as it was trained, chat, book, dolly, alpaca, steps, plain, a pair"
        in said
    )
    assert str(translator) in said


def test_what_it_lacks_is_said(translator: Path, base: Path, tmp_path: Path, capsys) -> None:
    def refused(*words: str) -> str:
        with pytest.raises(SystemExit):
            cli.main(list(words))
        return capsys.readouterr().err

    name = str(translator)
    assert "judged by: give --data" in refused("eval", name, "--template", "en-fr")
    assert "has no {source} to translate" in refused("translate", name, "hi", "--template", "chat")
    assert "template 'alpca': allowed are chat, book" in refused(
        "chat", name, "--template", "alpca"
    )
    assert "is a model itself" in refused("chat", str(base), "--model", "embedded")
    assert "whose own chat template goes along" in refused(
        "export", str(base), str(tmp_path / "x.gguf"), "--template", "chat"
    )
    (tmp_path / "pairs.jsonl").write_text('{"source": "a", "chosen": "b", "rejected": "c"}\n' * 4)
    reward = ("reward", str(tmp_path / "pairs.jsonl"), "--run", name, "--out", str(tmp_path / "r"))
    assert "without a run's record" in refused(*reward)
    assert "`hf upload` takes a folder" in refused("push", name, "--repo", "someone/adapter")


def test_the_base_that_it_names_and_the_one_that_is_meant(
    base: Path, tmp_path: Path, capsys
) -> None:
    made = elsewhere.by_unsloth(base, tmp_path / "a")
    found = opened.finished(made)
    assert found.base == "unsloth/gemma-3-270m-it"  # in 16 bits
    assert (
        "it, of which unsloth/gemma-3-270m-it-unsloth-bnb-4bit is a copy" in capsys.readouterr().err
    )
    assert found.record["model"]["precision"] == "nf4"  # as it learnt
    other = opened.finished(made, model=str(base))
    assert other.base == str(base)
    assert "precision" not in other.record["model"]
    elsewhere.edit(made, base_model_name_or_path="/not/here")
    with pytest.raises(UserError, match=r"names a base that is not here: .*/not/here.* --model"):
        opened.finished(made)
    elsewhere.edit(made, base_model_name_or_path=None)
    with pytest.raises(UserError, match=r"does not say which base .*: name it with --model"):
        opened.finished(made)
    smaller = tiny.folder("gemma3_text", tmp_path / "small", hidden_size=16)
    with pytest.raises(UserError, match=r"(does not fit|was trained on .* not on)"):
        opened.load(opened.finished(made, model=str(smaller)), "fp32")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"peft_type": "IA3"},
            r"is of a IA3 adapter; only LoRA, rsLoRA and DoRA .*merge_and_unload",
        ),
        ({"alora_invocation_tokens": [7]}, "has alora_invocation_tokens"),
        ({"layer_replication": [[0, 2]]}, "has layer_replication"),
    ],
)
def test_what_is_no_lora_is_refused_before_a_base_is_read(values, said, base, tmp_path) -> None:
    made = elsewhere.by_peft(base, tmp_path / "a")
    elsewhere.edit(made, base_model_name_or_path="/not/here", **values)
    with pytest.raises(UserError, match=said):
        opened.finished(made)


def test_pickles_and_half_adapters(base: Path, tmp_path: Path) -> None:
    made = elsewhere.by_peft(base, tmp_path / "a")
    (made / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"a is not a whole adapter: it has no adapter_model\.safe"):
        opened.finished(made)
    (made / "adapter_model.bin").touch()
    with pytest.raises(UserError, match=r"in adapter_model\.bin, a pickle, .* save it again"):
        opened.finished(made)


def test_a_bias_is_used_and_not_merged(base: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="(no bias|invalid shape)"):
        made = elsewhere.by_peft(base, tmp_path / "a", lora_bias=True, target_modules=["q_proj"])
    with pytest.warns(UserWarning, match="(no bias|invalid shape)"):
        wanted = elsewhere.logits(elsewhere.plain(base, made))
    with pytest.warns(UserWarning, match="(no bias|invalid shape)"):
        found = opened.load(opened.finished(made), "fp32")
    torch.testing.assert_close(elsewhere.logits(found.model), wanted, rtol=0, atol=1e-5)
    with (
        pytest.warns(UserWarning, match="(no bias|invalid shape)"),
        pytest.raises(UserError, match="has lora_bias, and the layers of a Gemma have no bias"),
    ):
        merge.merge_run(opened.finished(made), tmp_path / "out")


def test_its_own_chat_template_is_the_one_that_is_meant(base: Path, tmp_path: Path) -> None:
    """In a file of its own, or, as older libraries wrote it, among the tokenizer's settings."""
    made = elsewhere.by_peft(base, tmp_path / "a")
    assert chat_template_of(made) is None
    spoken = tiny.CHAT_TEMPLATE.replace("user", "human").replace(
        "message['role'])", "message['role'] | replace('user', 'human'))"
    )
    (made / "tokenizer_config.json").write_text(json.dumps({"chat_template": spoken}))
    asked = opened.finished(made, template="chat").template
    assert asked.prompt_for({"instruction": "Hi"}).startswith("<start_of_turn>human\nHi")
    merge.merge_run(opened.finished(made), tmp_path / "out")  # without --template it goes along too
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == spoken
    (made / "chat_template.jinja").write_text(tiny.CHAT_TEMPLATE)
    asked = opened.finished(made, template="chat").template
    assert asked.prompt_for({"instruction": "Hi"}).startswith("<start_of_turn>user\nHi")


@pytest.mark.parametrize("own_head", [False, True])
def test_a_gguf_file_has_what_it_changes(own_head: bool, tmp_path: Path, capsys) -> None:
    pytest.importorskip("gguf")
    base = tiny_gguf.model_folder(tmp_path / "base", "gemma3_text")
    saved = {"modules_to_save": ["lm_head"]} if own_head else {}
    made = elsewhere.by_peft(base, tmp_path / "a", **saved)
    cli.main(["export", str(made), str(tmp_path / "a.gguf"), "--type", "f32", "--template", "chat"])
    assert "ollama create a -f" in capsys.readouterr().out
    assert "<start_of_turn>user" in (tmp_path / "a.Modelfile").read_text()
    meta, tensors = tiny_gguf.read(tmp_path / "a.gguf")
    assert meta["general.architecture"] == "gemma3"
    merged = elsewhere.plain(base, made).merge_and_unload().state_dict()
    wanted = merged["model.layers.0.self_attn.q_proj.weight"].numpy()
    assert abs(tensors["blk.0.attn_q.weight"] - wanted).max() < 1e-6
    before = tiny_gguf.model_folder(tmp_path / "again", "gemma3_text")
    assert abs(_weight(before, "model.layers.0.self_attn.q_proj.weight") - wanted).max() > 0.01
    assert ("output.weight" in tensors) == own_head
    if own_head:
        assert abs(tensors["output.weight"] - merged["lm_head.weight"].numpy()).max() < 1e-6

    cli.main(["export", str(made), str(tmp_path / "b.gguf"), "--type", "f32"])
    assert "Ollama: no Modelfile, as" in capsys.readouterr().out
    assert not (tmp_path / "b.Modelfile").exists()


def _weight(folder: Path, name: str):
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")[name]


def test_one_on_the_hub(base: Path, translator: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    place = tmp_path / "models--someone--adapter"
    shutil.copytree(translator, place / "snapshots" / ("a" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("a" * 40)
    found = opened.find("someone/adapter", template="en-fr")
    assert found is not None
    assert (found.name, found.base, found.task) == ("someone/adapter", str(base), "translation")
    assert opened.find(str(base)) is None
