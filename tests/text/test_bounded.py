"""Chat templates that are harmful programs: each is one line, soon, and in no more memory than it was given."""

import time

import pytest
from support import tiny

from ft.errors import UserError
from ft.text import bounded, chat_template

HARMFUL = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "powers": "{{ bos_token }}{{ (9 ** (9 ** 9)) % 7 }}",
    "doubles": "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "recurs": "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "writes": "{% for a in range(99999) %}{{ 'word ' * 99 }}{% endfor %}",
    "generates": "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endgeneration %}",
    "includes": "{% include '/etc/passwd' %}",
    "imports": "{% import 'os' as os %}",
    "pads": "{{ 'a'.ljust(9999999999) }}",
}


def tokenizer_of(jinja: str):
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = jinja
    return tokenizer


@pytest.mark.parametrize("kind", HARMFUL)
def test_a_harmful_template_is_one_line(kind: str, monkeypatch) -> None:
    monkeypatch.setattr(bounded, "SECONDS", 1)
    monkeypatch.setattr(bounded, "BYTES", 2**28)
    start = time.monotonic()
    with pytest.raises(UserError, match="the tokenizer's chat template ") as error:
        chat_template.read(tokenizer_of(HARMFUL[kind]))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 60  # and not hours


def test_an_honest_one_is_tried_once(monkeypatch) -> None:
    tries = []
    run = bounded.subprocess.run
    monkeypatch.setattr(bounded.subprocess, "run", lambda *a, **k: tries.append(a) or run(*a, **k))
    honest = tokenizer_of(tiny.tokenizer().chat_template + "{# another #}")
    assert chat_template.read(honest) == chat_template.read(honest)
    assert len(tries) == 1
