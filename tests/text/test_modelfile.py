"""A Modelfile's template, rendered as Go does it, is the prompt that the run was trained on."""

import re

import pytest
from support import tiny

from ft.errors import UserError
from ft.text import chat_template, prompts
from ft.text.modelfile import modelfile
from ft.text.template import Template

CHAT = chat_template.read(tiny.tokenizer())
TEMPLATES = [*prompts.INSTRUCTION.values(), CHAT, prompts.translation("French")]


def rendered(text: str, **values: str) -> str:
    """What Ollama makes of a Modelfile's TEMPLATE: the few actions of Go's templates that we write."""
    (text,) = re.findall(r'TEMPLATE """(.*?)"""', text, flags=re.S)
    for negated in (False, True):
        action = r"\{\{ if " + "not " * negated + r"\.System \}\}(.*?)\{\{ end \}\}"
        kept = bool(values["System"]) != negated
        text = re.sub(action, lambda found, kept=kept: found[1] * kept, text, flags=re.S)
    text = re.sub(r"\{\{ \.(\w+) \}\}", lambda found: values[found[1]], text)
    return re.sub(r'\{\{ "([{}]+)" \}\}', r"\1", text)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_prompt_and_its_answer_are_those_of_the_template(template, system):
    row = {
        "instruction": "Why {{so}}?",
        "source": "Why {{so}}?",
        "response": "No.",
        "target": "No.",
    }
    row["system"] = system if "system" in template.reads else ""
    pair = template.render(row)
    values = {"System": row["system"], "Prompt": "Why {{so}}?", "Response": "No."}
    expected = pair["prompt"] + template.opening + pair["completion"] + template.end + template.tail
    assert rendered(modelfile("a.gguf", template, end="<eos>"), **values) == expected


def test_braces_absent_systems_and_stops():
    template = Template("mine", "{!system}none{/system}{{{{ {instruction}", "{response}", ('"\n',))
    text = modelfile("a.gguf", template, end="<eos>", greedy=True)
    assert rendered(text, System="", Prompt="a", Response="b") == "none{{ ab"
    assert rendered(text, System="s", Prompt="a", Response="b") == "{{ ab"
    assert text.splitlines()[0] == "FROM ./a.gguf"
    assert text.splitlines()[2:] == [
        'PARAMETER stop "\\"\\n"',
        'PARAMETER stop "<eos>"',
        "PARAMETER temperature 0",
    ]


@pytest.mark.parametrize(
    ("prompt", "said"), [("{question}?", "asks for question"), ('"""{instruction}', 'holds """')]
)
def test_what_no_modelfile_can_hold_is_refused(prompt, said):
    with pytest.raises(UserError, match=said):
        modelfile("a.gguf", Template("mine", prompt, "{response}"), end="<eos>")
