"""Function calls by prompt, for a chat template without a place for tools: how they are shown and read back.

The functions and how to call them stand in front of the first question, as Google's guide for Gemma 3
has it (ai.google.dev/gemma/docs/capabilities/function-calling, its second form); a call is one line of JSON, and the
results stand in the user's turn, each in a block ``tool_output``.
"""

import json
import re
from collections.abc import Collection
from typing import Any

from ft.errors import UserError
from ft.text.functions import call_of

PROMPT = """You have access to functions. If you decide to invoke any of the function(s),
you MUST put it in the format of
{"name": function name, "parameters": dictionary of argument name and its value}

You SHOULD NOT include any other text in the response if you call a function
"""

JINJA = (
    """{%- if tools -%}
    {%- set shown = namespace(functions=[]) -%}
    {%- for tool in tools -%}
        {%- set shown.functions = shown.functions + [tool.function or tool] -%}
    {%- endfor -%}
    {%- set prompt = """
    + json.dumps(PROMPT)
    + """ ~ (shown.functions | tojson(indent=2)) -%}
    {%- if messages[0].role == 'system' -%}
        {%- set system = messages[0].content -%}
        {%- set system = system if system is string else system | map(attribute='text') | join('') -%}
        {%- set prompt = (system | trim ~ '\\n\\n' if system | trim else '') ~ prompt -%}
        {%- set messages = messages[1:] -%}
    {%- endif -%}
    {%- set messages = [{'role': 'system', 'content': prompt}] + messages -%}
    {%- set tools = none -%}
{%- endif -%}
{%- set by_prompt = namespace(messages=[]) -%}
{%- for message in messages -%}
    {%- if message.role == 'tool' -%}
        {%- set content = message.content -%}
        {%- set content = content if content is string else content | map(attribute='text') | join('') -%}
        {%- set result = '```tool_output\\n' ~ content ~ '\\n```' -%}
        {%- if not loop.first and loop.previtem.role == 'tool' -%}
            {%- set result = by_prompt.messages[-1].content ~ '\\n' ~ result -%}
            {%- set by_prompt.messages = by_prompt.messages[:-1] -%}
        {%- endif -%}
        {%- set by_prompt.messages = by_prompt.messages + [{'role': 'user', 'content': result}] -%}
    {%- elif message.tool_calls -%}
        {%- set said = namespace(text=(message.content or '') | trim) -%}
        {%- for call in message.tool_calls -%}
            {%- set call = call.function or call -%}
            {%- set given = call.arguments if call.arguments is string else call.arguments | tojson -%}
            {%- set line = '{"name": ' ~ (call.name | tojson) ~ ', "parameters": ' ~ given ~ '}' -%}
            {%- set said.text = said.text ~ ('\\n' if said.text else '') ~ line -%}
        {%- endfor -%}
        {%- set by_prompt.messages = by_prompt.messages + [{'role': 'assistant', 'content': said.text}] -%}
    {%- else -%}
        {%- set by_prompt.messages = by_prompt.messages + [message] -%}
    {%- endif -%}
{%- endfor -%}
{%- set messages = by_prompt.messages -%}
"""
)
"""Stands before a chat template: it makes plain turns of tools, calls and results."""

_AROUND = re.compile(r"```\w*|[\[\],;\s]+")  # what models write around a call, beside its JSON


def read_back(text: str, names: Collection[str]) -> tuple[str, list[dict[str, Any]]]:
    """An answer's text without its calls, and the calls ``{"type", "function": {"name", "arguments"}}``.

    A call is an object of JSON anywhere in the text that names one of the functions ``names``, alone or in
    a list or a fenced block; any other text stays as it is.
    """
    calls, kept, seen, at = [], [], 0, text.find("{")
    while at >= 0:
        try:
            value, end = json.JSONDecoder().raw_decode(text, at)
            call = call_of(value)
        except (ValueError, RecursionError, UserError):
            call, end = None, at + 1
        if call and call["function"]["name"] in names:
            calls.append(call)
            kept.append(text[seen:at])
            seen = end
        at = text.find("{", end)
    if not calls:
        return text, []
    rest = [*kept, text[seen:]]
    return "".join(part for part in rest if _AROUND.sub("", part)).strip(), calls
