"""What Ollama needs beside a GGUF file: a run's template as a Modelfile, https://docs.ollama.com/modelfile."""

import re

from ft.errors import UserError
from ft.text.template import Template

FIELDS = {"instruction": "{{ .Prompt }}", "source": "{{ .Prompt }}", "system": "{{ .System }}"}
FIELDS |= dict.fromkeys(("response", "target"), "{{ .Response }}")
SECTIONS = {("system", True): "{{ if .System }}", ("system", False): "{{ if not .System }}"}


def modelfile(gguf: str, template: Template, *, end: str, greedy: bool = False) -> str:
    """The text of a Modelfile for the file ``gguf`` beside it.

    Its prompts are those of ``template`` for a question and a system message; ``end`` is the text of the
    tokenizer's EOS. ``greedy`` sets the temperature to 0, for what was trained to have one answer. Raises
    ``UserError`` for a template that a Modelfile cannot hold.
    """
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{_go(template)}"""']
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in (*template.stop, template.end or end)]
    lines += ["PARAMETER temperature 0"] * greedy
    return "\n".join(lines) + "\n"


def _go(template: Template) -> str:
    """The template in Go's language, of one exchange; Ollama repeats it for each of a conversation."""
    found, inside = "", ""
    for key in ("prompt", "completion"):
        for text, field, section, present in template._pieces(key):
            if section and section != "system" and present:
                continue  # a field that Ollama has no word for, such as context, is empty
            if (begins := SECTIONS.get((section, present), "")) != inside:
                found += "{{ end }}" * bool(inside) + begins
                inside = begins
            if field and field not in FIELDS:
                raise UserError(
                    f"template {template.name!r} asks for {field}, for which Ollama has no place; it has "
                    f"one for {', '.join(FIELDS)}"
                )
            found += FIELDS[field] if field else _escaped(text)
        found += _escaped(template.opening) * (key == "prompt")
    if '"""' in found:
        raise UserError(f'template {template.name!r} holds """, which no Modelfile can')
    return found + _escaped(template.end + template.tail)


def _escaped(text: str) -> str:
    """Text as Go's templates have it, in which two braces would begin an action."""
    return re.sub(r"\{\{|\}\}", lambda found: f'{{{{ "{found.group()}" }}}}', text)


def _quoted(stop: str) -> str:
    return '"' + stop.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'
