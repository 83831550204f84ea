"""A tiny model, and a server that it answers at."""

import pytest
from support import tiny
from support.serving import serving

from ft.chat import partner
from ft.text import prompts


@pytest.fixture(scope="module")
def model():
    return tiny.build("gemma3_text")


@pytest.fixture(scope="module")
def server(model):
    chat = prompts.by_name("chat", tiny.tokenizer())
    with serving(partner.Partner("tiny", model, tiny.tokenizer(), chat)) as server:
        yield server
