"""Functions that a model may call and its calls of them, in one form, whatever form they came in."""

import json
from collections.abc import Mapping
from typing import Any

from ft.errors import UserError


def listed(value: Any) -> list[Any]:
    """Calls as a list: JSON is parsed, one alone is a list of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise UserError(f"its call is not JSON: {value[:60]!r}") from None
    return value if isinstance(value, list) else [value]


def call_of(call: Any) -> dict[str, Any]:
    """``{"type": "function", "function": {"name", "arguments"}}``, with ``id`` where it has one.

    Raises ``UserError`` for what is no ``{name, arguments}`` or ``{name, parameters}``.
    """
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise UserError(f"a call is not {{name, arguments}}: {str(call)[:60]}")
    given = inner.get("arguments", inner.get("parameters"))
    arguments = {} if given in (None, "") else given
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = None
    elif isinstance(arguments, Mapping):
        arguments = without_nulls(arguments)
    if not isinstance(arguments, dict):
        raise UserError(f"the arguments of {inner['name']} are no JSON object: {str(given)[:60]}")
    found = {"type": "function", "function": {"name": inner["name"], "arguments": arguments}}
    return found | ({"id": call["id"]} if call.get("id") is not None else {})


def tools_of(value: Any) -> list[dict[str, Any]]:
    """Functions that may be called, as ``[{"type": "function", "function": {"name", …}}]``; JSON is parsed.

    Raises ``UserError`` for one without a name.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except ValueError:
            raise UserError(f"tools is no JSON: {value[:60]!r}") from None
    if not isinstance(value, list):
        raise UserError(f"tools is not a list but {type(value).__name__}")
    found = []
    for number, tool in enumerate(value, 1):
        try:
            tool = without_nulls(json.loads(tool) if isinstance(tool, str) else tool)
        except ValueError:
            raise UserError(f"tool {number} is no JSON: {tool[:60]!r}") from None
        if isinstance(tool, dict) and "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}}
        inner = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise UserError(f"tool {number} is not {{type, function: {{name, …}}}}")
        found.append(tool)
    return found


def without_nulls(value: Any) -> Any:
    """A JSON value without the null entries of its objects, which ``datasets`` puts there."""
    if isinstance(value, Mapping):
        return {key: without_nulls(v) for key, v in value.items() if v is not None}
    return [without_nulls(v) for v in value] if isinstance(value, list) else value
