"""The shared templates: translation, instructions as several authors write them, the model's own chat turns, or YAML."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ft.errors import UserError, nearest, one_of
from ft.files import check_regular
from ft.text import chat_template, forms, languages
from ft.text.template import OPTIONAL, Template, from_record

TUTORIALS = (
    "en-fr",
    "fr-en",
    "en-ja",
    "ja-en",
)  # MTNT's pairs: prompts as Google's tutorials have them

_OWN = ("opening", "thinking", "ignore")  # what no file of a template's may say

_SYSTEM = "{?system}{system}\n\n{/system}"
_TASK = "Below is an instruction that describes a task"
_ANSWER = "Write a response that appropriately completes the request.\n\n"

INSTRUCTION = {
    template.name: template
    for template in (
        # F. Chollet, Deep Learning with Python, third edition
        Template(
            name="book",
            prompt=_SYSTEM
            + "[instruction]\n{instruction}{?context}\n{context}{/context}[end]\n[response]\n",
            completion="{response}[end]",
            stop=("[end]",),
            tail="\n",
        ),
        # databrickslabs/dolly, training/consts.py
        Template(
            name="dolly",
            prompt=_SYSTEM
            + f"{_TASK}. {_ANSWER}"
            + "### Instruction:\n{instruction}\n\n{?context}Input:\n{context}\n\n{/context}### Response:\n",
            completion="{response}\n\n### End",
            stop=("### End",),
            tail="\n\n",
        ),
        # tatsu-lab/stanford_alpaca, train.py
        Template(
            name="alpaca",
            prompt=_SYSTEM
            + _TASK
            + "{?context}, paired with an input that provides further context{/context}. "
            + _ANSWER
            + "### Instruction:\n{instruction}\n\n{?context}### Input:\n{context}\n\n{/context}### Response:",
            completion="{response}",
            tail="\n\n",
        ),
        Template(
            name="steps",
            prompt=_SYSTEM
            + "Solve the problem step by step, then write ANSWER: and the final number.\n\n"
            + "{?context}{context}\n\n{/context}Problem: {instruction}\n\nSolution:\n",
            completion="{response}",
            stop=("Problem:",),
            tail="\n\n",
        ),
        Template(
            name="plain",
            prompt=_SYSTEM + "{?context}{context}\n\n{/context}{instruction}",
            completion="{response}",
        ),
    )
}
"""Templates of instructions that need no control token; fields: system, instruction, context, response."""


def translation(target: str = "French", source: str = "", *, one_line: bool = True) -> Template:
    """The tutorials' prompt: ``Translate this into French:`` and the text, each on its own line.

    With ``source`` it is ``Translate this from German into French:``. Where each translation is
    ``one_line``, as in MTNT, a line break ends it; else only the end token does.
    Source: google-deepmind/gemma, colabs/fine_tuning.ipynb.
    """
    direction = f"from {source} into {target}" if source else f"into {target}"
    return Template(
        name=f"translate {direction}",
        prompt=f"Translate this {direction}:\n{{source}}\n",
        completion="{target}",
        stop=("\n",) if one_line else (),
    )


def translation_of(pair: str, *, one_line: bool = True) -> Template:
    """``translation`` for a pair of language codes such as ``en-de``, as ``languages.pair`` reads it.

    The prompt names both languages; in MTNT's four directions only the target's, as the tutorials do.
    """
    source, target = languages.pair(pair)
    named = "" if pair in TUTORIALS else source.name
    return translation(target.name, named, one_line=one_line)


def by_name(
    name: str, tokenizer: Any, *, ignore_fields: Sequence[str] = (), enable_thinking: bool = False
) -> Template:
    """A template of instructions: ``chat`` (the tokenizer's own turns), a built-in, or a YAML file.

    ``ignore_fields`` are those of ``system`` and ``context`` that rows may have and it has no place
    for; with ``enable_thinking`` the tokenizer's chat template asks for thoughts. Raises ``UserError``
    for another name, a file that cannot be read, and a template that the tokenizer cannot follow.
    """
    template = without_tokenizer(name, ignore_fields) or chat_template.read(tokenizer)
    if enable_thinking and not (name == "chat" and forms.form_of(tokenizer).thinks):
        raise UserError(
            f"template {name!r} has nothing that asks for thoughts: --enable-thinking is for --template "
            "chat of a model whose own chat template has, such as Gemma 4"
        )
    template = replace(template, thinking=enable_thinking)
    check(template, tokenizer)
    return template


def without_tokenizer(name: str, ignore_fields: Sequence[str] = ()) -> Template | None:
    """``by_name`` before a tokenizer is read; nothing for ``chat``, which only the tokenizer knows."""
    for field in ignore_fields:
        one_of("ignore_fields", field, tuple(OPTIONAL))
    template = _without_tokenizer(name)
    return template and replace(template, ignore=tuple(ignore_fields))


def _without_tokenizer(name: str) -> Template | None:
    known = ["chat", *INSTRUCTION]
    if name == "chat":
        return None
    if name in INSTRUCTION:
        return INSTRUCTION[name]
    if name.endswith((".yaml", ".yml")):
        return from_yaml(Path(name))
    raise UserError(
        f"template {name!r}: allowed are {', '.join(known)}, or a file NAME.yaml.{nearest(name, known)}"
    )


def from_yaml(file: Path) -> Template:
    """A template of the user's own: the fields of ``Template`` as keys; ``name`` defaults to the file's."""
    import yaml

    check_regular(file.expanduser())
    try:
        found = yaml.safe_load(file.expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"template {file}: {' '.join(str(error).split())}") from None
    allowed = [key for key in Template.__dataclass_fields__ if key not in _OWN]
    if not isinstance(found, dict):
        raise UserError(
            f"template {file}: expected a line `key: value` for each of {', '.join(allowed)}"
        )
    for key, value in found.items():
        if key not in allowed:
            raise UserError(
                f"template {file}: unknown key {key!r}; allowed are {', '.join(allowed)}."
                f"{nearest(str(key), allowed)}"
            )
        listed = key in ("stop", "strip")
        if not (
            isinstance(value, list) and all(isinstance(v, str) for v in value)
            if listed
            else isinstance(value, str)
        ):
            wanted = "a list of strings" if listed else "a string"
            raise UserError(f"template {file}: {key} is {value!r}; expected {wanted}")
    for key in ("prompt", "completion"):
        if key not in found:
            raise UserError(f"template {file}: it has no {key}")
    return from_record({"name": file.stem} | found)


def check(template: Template, tokenizer: Any) -> None:
    """Raise ``UserError`` where ``tokenizer`` lacks the template's end token or cannot write a stop string."""
    unknown = tokenizer.convert_tokens_to_ids(template.end) in (None, tokenizer.unk_token_id)
    if template.end and unknown:
        raise UserError(
            f"template {template.name!r}: its end {template.end!r} is no token of this tokenizer; "
            "name one of its control tokens, or leave it empty for its EOS"
        )
    for stop in template.stop:
        ids = tokenizer(stop, add_special_tokens=False)["input_ids"]
        written = tokenizer.decode(ids, skip_special_tokens=True)
        if stop not in written:
            raise UserError(
                f"template {template.name!r}: the stop string {stop!r} is one that this tokenizer cannot "
                f"write (it would write {written!r}), so generation would never stop there"
            )
