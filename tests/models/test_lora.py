"""Adapters on every generation: exact start, gradients, counts, save and load."""

import copy
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import tiny

from ft import models
from ft.errors import UserError
from ft.kernels import lora_copies, recurrent
from ft.models import lora, parameters

Folder = Callable[[str], str]
IDS = torch.randint(6, 384, (1, 24), generator=torch.Generator().manual_seed(3))  # [1, T]


def logits(model: torch.nn.Module) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS, use_cache=False).logits[0].float()


def trained(model: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """The model as if it had been trained: B is no longer zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(kind, "fp32") for kind in tiny.KINDS]
    + [
        (kind, p) for kind in ("gemma3_text", "gemma3n", "recurrent_gemma") for p in ("bf16", "nf4")
    ],
)
def test_starts_as_the_base_trains_only_itself_and_comes_back(
    kind: str, precision: str, folder: Folder, tmp_path: Path
) -> None:
    base = models.load(folder(kind), precision=precision)
    before = logits(base.model)
    model = lora.attach(base, r=4, alpha=8)
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)

    trained(model).train()
    model(IDS, labels=IDS)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name

    expected = logits(model)
    assert (expected - before).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    again = lora.load(models.load(folder(kind), precision=precision), tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_adapter_fits_the_model_that_others_load(
    kind: str, folder: Folder, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = trained(lora.attach(models.load(folder(kind), precision="fp32"), r=4, alpha=8))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == folder(kind)
    whole = AutoModelForCausalLM.from_pretrained(
        config["base_model_name_or_path"],
        attn_implementation="eager" if kind == "gemma2" else None,
    )
    if kind == "recurrent_gemma":
        recurrent.install(whole)
    with lora.quiet():  # PEFT's use of a deprecated name
        theirs = PeftModel.from_pretrained(whole, tmp_path)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=0, atol=1e-6)


def test_an_adapter_that_only_answers_is_cast_to_16_bits_once(
    folder: Folder, tmp_path: Path
) -> None:
    lora.attach(models.load(folder("gemma"), precision="fp32"), r=2, alpha=2).save_pretrained(
        tmp_path
    )
    for precision, trainable, copied in (
        ("bf16", False, True),
        ("bf16", True, False),
        ("fp32", False, False),
    ):
        base = models.load(folder("gemma"), precision=precision)
        model = lora.load(base, tmp_path, trainable=trainable)
        matrices = lora_copies.matrices(model)
        assert len(matrices) == sum("lora_" in name for name, _ in model.named_parameters())
        assert all(hasattr(p, lora_copies.LOW) == copied for p in matrices)


def test_loading_for_more_training(folder: Folder, tmp_path: Path) -> None:
    model = lora.attach(models.load(folder("gemma"), precision="fp32"), r=2, alpha=2)
    model.save_pretrained(tmp_path)
    again = lora.load(models.load(folder("gemma"), precision="fp32"), tmp_path, trainable=True)
    assert parameters.count(again) == parameters.count(model)
    assert parameters.count(again)[0] > 0


def test_the_seed_decides(folder: Folder) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        base = models.load(folder("gemma"), precision="fp32")
        torch.manual_seed(seed)
        model = lora.attach(base, r=4, alpha=8)
        return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

    assert torch.equal(first_weights(5), first_weights(5))
    assert not torch.equal(first_weights(5), first_weights(6))


@pytest.mark.parametrize("precision", ["fp32", "nf4"])
def test_counts_by_arithmetic(precision: str, folder: Folder) -> None:
    # Gemma 1: hidden 32, MLP 64, 2 heads of 16, 1 key-value head, 4 layers, 400 words
    r, h, m, q, kv, layers, words = 4, 32, 64, 32, 16, 4, 400
    shapes = [(h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h)]
    adapter = layers * sum(r * (a + b) for a, b in shapes)
    base = words * h + layers * (sum(a * b for a, b in shapes) + 2 * h) + h
    model = lora.attach(models.load(folder("gemma"), precision=precision), r=r, alpha=8)
    assert parameters.count(model) == (adapter, adapter + base)
    share = f"{adapter / (adapter + base):.2%}"
    assert lora.summary(model) == (
        f"LoRA r 4, alpha 8 on 28 linear layers: {adapter:,} of {adapter + base:,} parameters "
        f"trained ({share})"
    )
    told = lora.describe(model)
    assert (told["r"], told["alpha"], told["layers"], told["trainable"]) == (4, 8, 28, adapter)
    assert json.loads(json.dumps(told)) == told


def test_rslora_scales_by_the_root_of_the_rank(folder: Folder) -> None:
    scales = set()
    for variant in ("lora", "rslora"):
        base = models.load(folder("gemma"), precision="fp32")
        model = lora.attach(base, r=16, alpha=8, variant=variant)
        scales.add(next(m.scaling["default"] for m in model.modules() if hasattr(m, "lora_A")))
        assert lora.summary(model).startswith("LoRA" if variant == "lora" else "rsLoRA")
    assert scales == {8 / 16, 8 / 16**0.5}


@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("gemma4", "fp32"),
        ("recurrent_gemma", "fp32"),
        ("gemma3_text", "bf16"),
        ("gemma3_text", "nf4"),
    ],
)
def test_dora(kind: str, precision: str, folder: Folder, tmp_path: Path) -> None:
    base = models.load(folder(kind), precision=precision)
    plain = logits(base.model)
    model = lora.attach(base, r=4, alpha=8, variant="dora")
    near = torch.nn.functional.cosine_similarity(logits(model), plain).mean()
    assert near > (0.9999 if precision == "fp32" else 0.99)
    assert lora.summary(model).startswith("DoRA")
    expected = logits(trained(model))
    model.save_pretrained(tmp_path)
    again = lora.load(models.load(folder(kind), precision=precision), tmp_path)
    torch.testing.assert_close(logits(again), expected, rtol=0, atol=0)


def test_saving_asks_no_network_and_follows_a_copy(
    folder: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("asked the network")

    base = models.load(folder("gemma"), precision="fp32")
    base.model.name_or_path = "google/gemma-2b"  # as a model of the Hub is called
    model = lora.attach(base, r=2, alpha=2)
    twin = trained(copy.deepcopy(model))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    twin.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "google/gemma-2b"
    monkeypatch.undo()
    base = models.load(folder("gemma"), precision="fp32")
    torch.testing.assert_close(logits(lora.load(base, tmp_path)), logits(twin), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 0, "alpha": 8}, "got r 0"),
        ({"r": 4, "alpha": 0}, "alpha 0"),
        ({"r": 4, "alpha": 8, "dropout": 1.0}, r"dropout 1\.0"),
        ({"r": 4, "alpha": 8, "targets": "q_poj"}, "'q_poj' matches no linear layer"),
    ],
)
def test_impossible_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        lora.attach(tiny.build("gemma"), **options)


@pytest.fixture(scope="module")
def adapter(folder: Folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("adapter")
    lora.attach(models.load(folder("gemma"), precision="fp32"), r=4, alpha=8).save_pretrained(path)
    return path


def change(adapter: Path, to: Path, **changes: object) -> Path:
    shutil.copytree(adapter, to)
    config = json.loads((to / "adapter_config.json").read_text())
    (to / "adapter_config.json").write_text(json.dumps(config | changes))
    return to


def test_an_adapter_of_another_base(folder: Folder, adapter: Path, tmp_path: Path) -> None:
    wider = tiny.folder("gemma", tmp_path / "wider", hidden_size=48)
    for other in (str(wider), folder("recurrent_gemma")):
        with pytest.raises(UserError, match="was trained on .*gemma, not on .*(wider|recurrent)"):
            lora.load(models.load(other, precision="fp32"), adapter)
    named = change(adapter, tmp_path / "named", base_model_name_or_path="google/gemma-2b")
    base = models.load(folder("gemma"), precision="fp32")
    base.model.name_or_path = "google/gemma-2b-it"  # same shapes, other weights
    with pytest.raises(
        UserError, match="gemma-2b, not on google/gemma-2b-it. Name google/gemma-2b as"
    ):
        lora.load(base, named)


def test_adapters_with_missing_or_damaged_parts(
    folder: Folder, adapter: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    path = change(adapter, tmp_path / "a")
    weights = path / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file(dict(list(tensors.items())[2:]), weights)
    with pytest.raises(UserError, match="2 of its tensors are missing and 0 fit nothing"):
        lora.load(models.load(folder("gemma"), precision="fp32"), path)
    save_file(tensors | {"base_model.model.extra.lora_A.weight": torch.zeros(4, 4)}, weights)
    with pytest.raises(UserError, match="0 of its tensors are missing and 1 fit nothing"):
        lora.load(models.load(folder("gemma"), precision="fp32"), path)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is damaged"):
        lora.load(models.load(folder("gemma"), precision="fp32"), path)
    weights.unlink()
    with pytest.raises(UserError, match=r"not an adapter: it has no adapter_model\.safetensors"):
        lora.load(models.load(folder("gemma"), precision="fp32"), path)
