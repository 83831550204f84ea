"""Chat templates in Jinja: read a tokenizer's own as a template of ours, and write one of ours as Jinja."""

import re
from dataclasses import replace
from typing import Any

from ft.errors import UserError
from ft.text import bounded, calls
from ft.text.template import OPTIONAL, Template

MARKS = {"system": " \x02S\x02 ", "instruction": " \x02U\x02 ", "response": " \x02A\x02 "}
_TURNS = {  # of a tokenizer without a chat template, by the token that opens a turn
    "<start_of_turn>": {
        "prompt": "<start_of_turn>user\n{?system}{system}\n\n{/system}{instruction}"
        "{?context}\n\n{context}{/context}<end_of_turn>\n<start_of_turn>model\n",
        "end": "<end_of_turn>",
        "strip": ("instruction", "context", "response"),
    },
    "<|turn>": {
        "prompt": "{?system}<|turn>system\n{system}<turn|>\n{/system}<|turn>user\n{instruction}"
        "{?context}\n\n{context}{/context}<turn|>\n<|turn>model\n",
        "end": "<turn|>",
        "strip": ("system", "instruction", "context", "response"),
    },
}


def read(tokenizer: Any) -> Template:
    """The tokenizer's chat template as a ``Template`` that renders the same text.

    It is found by rendering a conversation with marks for its texts, and checked on one of two
    exchanges; where each question stands alone, such as a translation's, it fills the field ``question``. A template that refuses a system message (Gemma 1 and 2) gets it in front of the first
    user's text, as Gemma 3 has it. A tokenizer without a chat template is known by its control tokens.
    Raises ``UserError`` where neither is there, or where the template does more than join texts.
    """
    if not getattr(tokenizer, "chat_template", None):
        for token, turns in _TURNS.items():
            if token in tokenizer.get_vocab():
                return Template(name="chat", completion="{response}", tail="\n", **turns)
        raise UserError(
            "the tokenizer has no chat template and no tokens for turns; choose another --template"
        )
    if not tokenizer.bos_token or tokenizer.bos_token not in (
        _render(tokenizer, _TALK[:2]) or tokenizer.bos_token
    ):
        raise UserError(
            "the tokenizer's chat template writes no bos_token, which Gemma needs in front: put "
            "{{ bos_token }} at its beginning, or choose another --template"
        )
    user = {"role": "user", "content": MARKS["instruction"]}
    answer = {"role": "assistant", "content": MARKS["response"]}
    plain = _render(tokenizer, [user, answer])
    if plain is None:
        raise UserError("the tokenizer's chat template refuses a user's turn with an answer")
    before, rest = _cut(plain, "instruction")
    middle, after = _cut(rest, "response")
    opened, _, bos = before.rpartition(tokenizer.bos_token)
    ends = sorted((t for t in _control(tokenizer) if t in after), key=after.index)
    if opened or not middle or not ends or not after.startswith(ends[0]):
        raise UserError(
            "the tokenizer's chat template is not one of turns with a control token at the end of "
            "an answer; choose another --template"
        )
    prompt = (
        f"{_escape(bos)}{{instruction}}{{?context}}\n\n{{context}}{{/context}}{_escape(middle)}"
    )
    strip = [f for f in ("instruction", "response") if MARKS[f] not in plain]
    strip += ["context"] * ("instruction" in strip)
    with_system = _render(tokenizer, [{"role": "system", "content": MARKS["system"]}, user, answer])
    if with_system is None:
        section = "{system}\n\n"
        prompt = prompt.replace(
            "{instruction}", f"{{?system}}{section}{{/system}}{{instruction}}", 1
        )
        strip.append("system")
    else:
        front = _cut(with_system, "instruction")[0].rpartition(tokenizer.bos_token)[2]
        head, tail = _cut(front, "system")
        if head.startswith(bos):  # folded into the user's turn
            section = f"{{?system}}{_escape(head[len(bos) :])}{{system}}{_escape(tail)}{{/system}}"
            prompt = _escape(bos) + section + prompt[len(_escape(bos)) :]
        else:  # a turn of its own
            own = tail.removesuffix(bos)
            prompt = f"{{?system}}{_escape(head)}{{system}}{_escape(own)}{{/system}}" + prompt
        strip += ["system"] * (MARKS["system"] not in with_system)
    asked = _render(tokenizer, [user], ask=True)
    opening = _cut(asked or "", "instruction")[1]
    if not opening.startswith(middle):
        raise UserError(
            f"asked to generate, the tokenizer's chat template writes {opening!r} behind the user's "
            f"text, and before an answer that is there {middle!r}; choose another --template"
        )
    template = Template(
        name="chat",
        prompt=prompt,
        completion="{response}",
        end=ends[0],
        tail=after[len(ends[0]) :],
        strip=tuple(strip),
        opening=opening[len(middle) :],
    )
    if (talk := _render(tokenizer, _TALK)) and talk == _render(tokenizer, _TALK[-2:]):
        _check(template, tokenizer, [_TALK[:2]])  # each question stands alone, as `write` has it
        return _alone(template, f"{_escape(bos)}{{question}}{_escape(middle)}")
    first = [{"role": "system", "content": "s "}] if with_system is not None else []
    _check(template, tokenizer, [[*first, *_TALK], _TALK, _TALK[:2]])
    return template


def _alone(template: Template, prompt: str) -> Template:
    """The same with another prompt, which has the only field ``question``."""
    names = {"instruction": "question", "response": "response"}
    strip = tuple(name for field, name in names.items() if field in template.strip)
    return replace(template, prompt=prompt, strip=strip)


def _check(template: Template, tokenizer: Any, talks: list[list[dict[str, str]]]) -> None:
    """Raise ``UserError`` where conversations or prompts read otherwise than the tokenizer's own."""
    for messages in talks:
        for given, ask in ((messages, False), (messages[:-1], True)):
            wanted = _render(tokenizer, given, ask=ask)
            found = text(template, given, tokenizer.bos_token)
            if found != wanted:
                raise UserError(
                    "the tokenizer's chat template does more than join turns: it renders "
                    f"{wanted!r}, its turns alone would be {found!r}; choose another --template"
                )


def text(template: Template, messages: list[dict[str, str]], bos: str) -> str:
    """A whole conversation as text, or a prompt where the last turn is the user's, as ``apply_chat_template``
    gives it."""
    *turns, last = (
        turn["prompt"] + turn["completion"] + template.end + template.tail
        for turn in template.turns({"messages": messages})
    )
    if messages[-1]["role"] == "user":
        last = last.removesuffix(template.end + template.tail)
    elif template.opening:  # it stands only in a prompt
        at = last.rindex(template.opening)
        last = last[:at] + last[at + len(template.opening) :]
    return bos + "".join([*turns, last])


def write(template: Template, eos: str) -> str:
    """The Jinja chat template that renders conversations as ``template`` does.

    Saved with a tokenizer it makes every program that speaks the Hub's format (transformers, vLLM,
    llama.cpp, TRL) ask the model in the way it was trained.
    """

    def jinja(key: str) -> str:
        parts = []
        for literal, field, section, present in template._pieces(key):
            value = _quote(literal)
            if field:
                value = f"{field} | trim" if field in template.strip else field
            if not value or value == "''":
                continue
            condition = f"{section} | trim" if present else f"not ({section} | trim)"
            parts.append(f"({value} if {condition} else '')" if section else f"({value})")
        return " ~ ".join(parts) or "''"

    end = _quote(template.end or eos)
    asked, alone = set(template.fields - OPTIONAL.keys()), ""
    field = asked.pop() if len(asked) == 1 else "instruction"
    if field != "instruction":  # each question fills the only field, and stands alone
        alone = (
            "{%- if messages[0]['role'] == 'system' -%}\n"
            "    {{- raise_exception('there is no place for a system message') -}}\n"
            "{%- endif -%}\n"
            "{%- set messages = messages[-1:] if messages[-1]['role'] == 'user' else messages[-2:] -%}\n"
        )
    written = set(template.reads - template.fields - OPTIONAL.keys())
    answer = written.pop() if len(written) == 1 else "response"
    return (
        f"{{{{- bos_token -}}}}\n{alone}"
        "{%- set ns = namespace(system='') -%}\n"
        "{%- for message in messages -%}\n"
        "    {%- set content = message['content'] if message['content'] is string"
        " else message['content'] | map(attribute='text') | join('') -%}\n"
        "    {%- set context = '' -%}\n"
        "    {%- if message['role'] == 'system' and loop.first -%}\n"
        "        {%- set ns.system = content -%}\n"
        "    {%- elif message['role'] == 'user' -%}\n"
        "        {%- if loop.index0 and loop.previtem['role'] == 'user' -%}\n"
        "            {{- raise_exception('two user turns in a row') -}}\n"
        "        {%- endif -%}\n"
        f"        {{%- set {field}, system = content, ns.system -%}}\n"
        "        {%- set ns.system = '' -%}\n"
        f"        {{{{- {jinja('prompt')} -}}}}\n"
        "    {%- elif message['role'] == 'assistant' and loop.index0 and loop.previtem['role'] == 'user' -%}\n"
        f"        {{%- set {answer} = content -%}}\n"
        f"        {{{{- ({jinja('completion')}) ~ {end} ~ {_quote(template.tail)} -}}}}\n"
        "    {%- else -%}\n"
        "        {{- raise_exception('turns must be [system,] user, assistant, user, ...') -}}\n"
        "    {%- endif -%}\n"
        "{%- endfor -%}\n"
    )


_TALK = [
    {"role": "user", "content": " a\nb "},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e\n"},
]


# of Gemma 1 and 2, whose templates refuse a system message: it goes in front of the first question
_FOLD = (
    "{%- if messages | length > 1 and messages[0]['role'] == 'system' and messages[1]['role'] == 'user' -%}\n"
    "    {%- set system, first = messages[0]['content'] | trim, messages[1]['content'] | trim -%}\n"
    "    {%- set first = system ~ '\\n\\n' ~ first if system else first -%}\n"
    "    {%- set messages = [{'role': 'user', 'content': first}] + messages[2:] -%}\n"
    "{%- endif -%}\n"
)


TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "shows_tools",
        "description": "shows_tools",
        "parameters": {"type": "object", "properties": {}},
    },
}
"""A function whose name tells in a rendering whether a chat template shows any."""


def install(tokenizer: Any, template: Template) -> None:
    """Have a tokenizer ask in the way that ``template`` trains, in every program that it is saved for."""
    if template.name != "chat" or not tokenizer.chat_template:
        tokenizer.chat_template = write(template, tokenizer.eos_token)
    else:
        tokenizer.chat_template = complete(tokenizer)


def complete(tokenizer: Any) -> str:
    """The tokenizer's chat template, before which stands what gives a place to all that is trained.

    One that refuses a system message (Gemma 1 and 2) gets it folded into the first question, and one with
    the turns of Gemma 1 to 3 that shows no tools gets these by prompt, as ``calls`` has them.
    """
    jinja = tokenizer.chat_template
    if _render(tokenizer, [{"role": "system", "content": "s"}, *_TALK[:2]]) is None:
        jinja = _FOLD + jinja
    shown = _render(tokenizer, _TALK[:2], tools=[TOOL]) or ""
    if "<start_of_turn>" in shown and TOOL["function"]["name"] not in shown:
        jinja = calls.JINJA + jinja
    return jinja


def _render(
    tokenizer: Any, messages: list[dict[str, str]], *, ask: bool = False, tools: Any = None
) -> str | None:
    """What the tokenizer's chat template makes of a conversation; nothing where it refuses it."""
    from jinja2 import TemplateError

    bounded.prove(tokenizer)
    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=ask
        )
    except (TemplateError, TypeError, ValueError, KeyError):
        return None
    except Exception as error:  # it is a program of others
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"the tokenizer's chat template fails: {why}; choose another --template"
        ) from None


def _cut(rendered: str, field: str) -> tuple[str, str]:
    """What stands before and behind a field's mark, which the template may have stripped."""
    mark = MARKS[field] if MARKS[field] in rendered else MARKS[field].strip()
    before, _, after = rendered.partition(mark)
    return before, after


def _control(tokenizer: Any) -> list[str]:
    """The texts of all control tokens."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _escape(literal: str) -> str:
    return re.sub(r"[{}]", lambda found: found.group() * 2, literal)


def _quote(literal: str) -> str:
    r"""A string of Jinja: ``'it\'s\n'``."""
    return "'" + literal.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
