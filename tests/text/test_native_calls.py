"""Calls in the notation of Gemma's chat templates: read back as what was rendered."""

import pytest

from ft.text import native_calls

Q = '<|"|>'


def rendered(value):
    """As Gemma 4's chat template writes a value."""
    match value:
        case str():
            return f"{Q}{value}{Q}"
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ",".join(f"{k}:{rendered(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ",".join(map(rendered, value)) + "]"
    return str(value)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"city": "Paris"},
        {"a": 'b, c: {d} "e"', "n": [1, -2.5, 1e-07, True, None]},
        {"deep": {"list": [[], {}, [{"x": "y"}]]}, "empty": ""},
    ],
)
def test_what_was_rendered_is_read_back(arguments):
    found = native_calls.read(f"call:get_weather{rendered(arguments)}", Q)
    assert found == {"name": "get_weather", "arguments": arguments}
    assert native_calls.read('{"name": "f", "arguments": {"a": 1}}', Q)["arguments"] == {"a": 1}


def test_a_text_without_quotes_is_a_text():
    assert native_calls.read("call:f{city: Paris , n: 3}", Q)["arguments"] == {
        "city": "Paris",
        "n": 3,
    }


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "call:f", "call:f{", "call:f{a}", "call:f{a:1", f"call:f{{a:{Q}b}}"]
    + ["call:f{a:1}b", "call:f{a:1 2,}", "{", '{"name": 1}', "call:f" + "{a:" * 99 + "}" * 99],
)
def test_what_is_no_call_is_told(text):
    with pytest.raises(native_calls.NoCall):
        native_calls.read(text, Q)
