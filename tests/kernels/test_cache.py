"""The name of a model's cache, and the check of one that an untested library hands on."""

import pytest
from support import tiny

from ft.errors import UserError
from ft.generate.decoding import Decoder
from ft.kernels import cache
from ft.minigpt import MODERN, MiniGPTConfig, MiniGPTForCausalLM


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_gemma_keeps_what_it_has_read(kind):
    assert cache.agrees(tiny.build(kind))


def test_the_mini_gpt_keeps_what_it_has_read():
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = MiniGPTConfig(**MODERN | sizes, num_attention_heads=2)
    assert cache.agrees(MiniGPTForCausalLM(config).eval())


def test_a_model_that_keeps_nothing_is_told():
    model = tiny.build("gemma2")
    plain = model.forward
    model.forward = lambda *args, **given: plain(*args, **{**given, cache.name(): None})
    assert not cache.agrees(model)


def test_only_an_untested_library_is_checked(monkeypatch):
    monkeypatch.setattr(cache, "agrees", lambda model: False)
    model = tiny.build("gemma2")
    major, minor = cache.NEWEST
    for version in ("5.17.0", f"{major}.{minor}.9", f"{major}.{minor}.0.dev0"):
        monkeypatch.setattr(cache, "version", {"transformers": version}.get)
        Decoder(model, [[2, 7, 8]], pad=0)
    for version in (f"{major}.{minor + 1}.0", f"{major + 1}.0.0", f"{major}.{minor + 1}.0.dev0"):
        monkeypatch.setattr(cache, "version", {"transformers": version}.get)
        Decoder(model, [[2, 7, 8]], pad=0, use_cache=False)
        with pytest.raises(UserError, match=f"transformers {version} loses"):
            Decoder(model, [[2, 7, 8]], pad=0)
