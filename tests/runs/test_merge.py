"""Merging: the written model computes what base + adapter compute, or nothing is written."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny

from ft import models
from ft.errors import UserError
from ft.generate import answers
from ft.kernels import recurrent
from ft.models import lora
from ft.runs.merge import compare, merge
from ft.text.template import Template

PROMPTS = ["Translate this into French:\nHello, my name is Morgane.\n", "Bonjour\n"]
IDS = tiny.tokenizer()(PROMPTS[0], return_tensors="pt").input_ids
Made = Callable[..., tuple[str, Path]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A function from a kind to the folders of its base and of a trained adapter."""

    def make(kind: str, **options: bool) -> tuple[str, Path]:
        base = str(tiny.folder(kind, tmp_path / kind))
        torch.manual_seed(1)  # of the adapter's first matrices
        model = lora.attach(models.load(base, precision="fp32"), r=4, alpha=8, **options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(tmp_path / f"{kind}-adapter")
        return base, tmp_path / f"{kind}-adapter"

    return make


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0].float()


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_merged_equals_adapter(kind: str, made: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = made(kind)
    difference = merge(adapter, tmp_path / "out", prompts=PROMPTS)
    assert difference.kl < 1e-8
    assert difference.largest < 1e-4
    assert difference.agreement == 1
    assert difference.tokens == sum(len(tiny.tokenizer()(p).input_ids) for p in PROMPTS)

    plain, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out",
        output_loading_info=True,
        attn_implementation="eager" if kind == "gemma2" else None,
    )
    assert not any(info.values())
    assert plain.dtype == torch.float32
    if kind == "recurrent_gemma":
        recurrent.install(plain)
    tuned = logits(lora.load(models.load(base, precision="fp32"), adapter))
    torch.testing.assert_close(logits(plain), tuned, rtol=0, atol=1e-4)
    assert (tuned - logits(tiny.build(kind))).abs().max() > 0.01
    assert set(plain.state_dict()) == set(tiny.build(kind).state_dict())  # towers included
    assert plain.generation_config.eos_token_id == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer(PROMPTS[0]).input_ids == IDS[0].tolist()
    assert not list((tmp_path / "out").glob("adapter*"))


CHAT = Template(
    name="chat",
    prompt="<start_of_turn>user\n{instruction}<end_of_turn>\n<start_of_turn>model\n",
    completion="{response}",
    end="<end_of_turn>",
    tail="\n",
)


def test_a_chat_template_stops_by_itself_and_travels(made: Made, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, adapter = made("gemma3_text")
    (Path(base) / "tokenizer.model").write_bytes(b"pieces")
    spoken = "{% for m in messages %}<start_of_turn>{{ m['content'] }}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(spoken)
    row = {"instruction": "Hello, my name is Morgane."}
    merge(adapter, tmp_path / "out", prompts=[CHAT.prompt_for(row)], template=CHAT)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert plain.generation_config.eos_token_id == [1, 5]
    assert tokenizer.chat_template == spoken
    assert tokenizer.apply_chat_template([{"content": "a"}], tokenize=False) == "<start_of_turn>a"
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == b"pieces"

    tuned = lora.load(models.load(base, precision="fp32"), adapter)
    (wanted,) = answers.of_rows(tuned, tokenizer, CHAT, [row], max_new_tokens=12)
    inputs = tokenizer(CHAT.prompt_for(row), return_tensors="pt")
    output = plain.generate(**inputs, max_new_tokens=12, do_sample=False)
    found = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
    assert CHAT.trim(found) == wanted
    ended = plain.generate(**inputs, max_new_tokens=12, sequence_bias=[[[5], 1000.0]])
    assert ended[0, inputs.input_ids.shape[1] :].tolist() == [5]


def test_tokens_that_hold_a_stop_string_end_an_answer(made: Made, tmp_path: Path) -> None:
    from transformers import GenerationConfig

    _, adapter = made("gemma3_text")
    merge(
        adapter,
        tmp_path / "out",
        prompts=PROMPTS,
        template=dataclasses.replace(CHAT, end="", stop=("\n", "never one token")),
    )
    ends = GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    texts = tiny.tokenizer().batch_decode([[i] for i in ends])
    assert texts[0] == "<eos>"
    assert len(texts) > 1
    assert all("\n" in text for text in texts[1:])


@pytest.mark.parametrize("options", [{"variant": "dora"}, {"variant": "rslora"}])
def test_variants_merge_too(options: dict[str, bool], made: Made, tmp_path: Path) -> None:
    _, adapter = made("gemma3_text", **options)
    assert merge(adapter, tmp_path / "out", prompts=PROMPTS).kl < 1e-8


def test_bf16_stays_within_its_bound(made: Made, tmp_path: Path) -> None:
    _, adapter = made("gemma3_text")
    difference = merge(adapter, tmp_path / "out", prompts=PROMPTS, dtype="bf16")
    assert 0 < difference.kl < difference.bound
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_over_the_bound_nothing_is_written(made: Made, tmp_path: Path) -> None:
    _, adapter = made("gemma3_text")
    before = set(tmp_path.iterdir())
    with pytest.raises(
        UserError, match=r"mean KL .* \(bound 1e-12\).*Nothing was written. --dtype fp32 rounds"
    ):
        merge(adapter, tmp_path / "out", prompts=PROMPTS, dtype="bf16", bound=1e-12)
    assert set(tmp_path.iterdir()) == before


def test_a_merge_that_went_wrong_is_noticed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import LoraModel

    _, adapter = made("gemma")
    monkeypatch.setattr(LoraModel, "merge_and_unload", lambda self, **_: self.unload())
    with pytest.raises(UserError, match="mean KL"):
        merge(adapter, tmp_path / "out", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damaged", ["adapter", "base"])
def test_weights_that_are_not_finite_are_named(damaged: str, made: Made, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, adapter = made("gemma3_text")
    file = Path(base, "model.safetensors")
    file = file if damaged == "base" else adapter / "adapter_model.safetensors"
    weights = load_file(file)
    next(v for k, v in weights.items() if ".layers.1." in k).view(-1)[0] = math.nan
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(
        UserError,
        match=r"adapter on .*gemma3_text cannot be merged, .* damaged: the logits are NaN",
    ):
        merge(adapter, tmp_path / "out", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()


def test_an_adapter_of_another_base(made: Made, tmp_path: Path) -> None:
    _, adapter = made("gemma")
    other, _ = made("recurrent_gemma")
    with pytest.raises(UserError, match="was trained on .*gemma, not on .*recurrent_gemma"):
        merge(adapter, tmp_path / "out", prompts=PROMPTS, base=other)
    assert not (tmp_path / "out").exists()


def test_bad_arguments(made: Made, tmp_path: Path) -> None:
    base, adapter = made("gemma")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="'nf4'.*auto, fp32 or bf16, never in 4 bits"):
        merge(adapter, out, prompts=PROMPTS, dtype="nf4")
    with pytest.raises(UserError, match="at least one prompt"):
        merge(adapter, out, prompts=[" "])
    with pytest.raises(UserError, match="exists and is not an empty folder"):
        merge(adapter, adapter, prompts=PROMPTS)
    with pytest.raises(UserError, match=r"not an adapter: it has no adapter_config\.json"):
        merge(Path(base), out, prompts=PROMPTS)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = None
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="does not say which base.*, as base_model_name_or_path"):
        merge(adapter, out, prompts=PROMPTS)
    assert not out.exists()


def test_against_arithmetic() -> None:
    half, quarter = torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, math.log(3)]])  # p, q of [T, V]
    found = compare([half, half], [half, quarter], bound=0.1)
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert found.tokens == 2
    assert math.isclose(found.kl, kl / 2, rel_tol=1e-6)
    assert math.isclose(found.largest, 1.0)
    assert found.agreement == 0.5
    assert "mean KL 7.2e-02 nats (bound 1e-01), same first choice 50.0%" in str(found)


def test_shifted_logits_are_the_same_distribution() -> None:
    logits = torch.randn(7, 11, generator=torch.Generator().manual_seed(0))
    found = compare([logits], [logits + 3], bound=1)
    assert abs(found.kl) < 1e-12 + 1e-6
    assert found.agreement == 1


def test_not_a_number_is_no_agreement() -> None:
    logits = torch.zeros(1, 3)
    found = compare([logits], [logits * math.nan], bound=1)
    assert not found.kl <= found.bound
